r"""Makes golden_resnet.json: logits of torchvision's ResNets, for our own to equal.

  pip install torch torchvision
  python tests/models/golden_resnet.py > tests/models/golden_resnet.json

torchvision has the stride at the same place, the 3 x 3 convolution (v1.5), and the same
padding of convolutions. Its max pooling pads evenly; TensorFlow's 'SAME', as SAT's
ResNets have it, pads below and to the right: here its layer is exchanged for that.

Weights are a function of their names, so that they need not be stored.
"""

import json
import zlib

import numpy as np

# Our arguments, and torchvision's: stages, groups, channels of a group. Small, with
# every kind of block: with and without a projection, with and without a stride.
NETWORKS = {
  'resnet': ((1, 2, 1, 1), 1, 64),
  'resnext': ((2, 1, 1, 1), 32, 4),
}
NUM_CLASSES, IMAGE_SIZE, BATCH_SIZE = 7, 64, 4
# Trained values are counted of these.
COUNTED = {
  'resnet_50': ((3, 4, 6, 3), 1, 64),
  'resnet_101': ((3, 4, 23, 3), 1, 64),
  'resnet_152': ((3, 8, 36, 3), 1, 64),
  'resnet_200': ((3, 24, 36, 3), 1, 64),
  'resnext_50_32x4d': ((3, 4, 6, 3), 32, 4),
  'resnext_50_32x8d': ((3, 4, 6, 3), 32, 8),
  'resnext_152_32x8d': ((3, 8, 36, 3), 32, 8),
}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the values of an array of ours, 'params/blocks_0/conv_1/kernel'.

  numpy promises that `RandomState` draws the same for ever.
  """
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  noise = rng.standard_normal(shape).astype(np.float32)
  kind = name.rpartition('/')[2]
  if kind == 'kernel':
    return noise / np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
  if kind in ('scale', 'var'):
    return 1 + np.abs(noise) / 4
  return noise / 4


def image() -> np.ndarray:
  """Returns images in [0, 1], float32 [B, H, W, 3]."""
  rng = np.random.RandomState(0)
  return rng.uniform(size=(BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def torch_names(stage_sizes):
  """Yields (our module, theirs) of all convolutions and norms."""
  yield 'stem_conv', 'conv1'
  yield 'stem_bn', 'bn1'
  blocks = [(s, j) for s, size in enumerate(stage_sizes) for j in range(size)]
  for i, (stage, j) in enumerate(blocks):
    theirs = f'layer{stage + 1}.{j}'
    for k in (1, 2, 3):
      yield f'blocks_{i}/conv_{k}', f'{theirs}.conv{k}'
      yield f'blocks_{i}/bn_{k}', f'{theirs}.bn{k}'
    if j == 0:
      yield f'blocks_{i}/project_conv', f'{theirs}.downsample.0'
      yield f'blocks_{i}/project_bn', f'{theirs}.downsample.1'


def main():
  import torch
  import torchvision

  def create(arguments, num_classes=1000):
    stage_sizes, groups, width = arguments
    return torchvision.models.resnet.ResNet(
      torchvision.models.resnet.Bottleneck,
      list(stage_sizes),
      num_classes=num_classes,
      groups=groups,
      width_per_group=width,
    )

  def fill(model, stage_sizes):
    theirs = model.state_dict()

    def put(name, key, transpose=()):
      array = theirs[key]
      order = np.argsort(transpose) if transpose else range(array.ndim)
      shape = tuple(array.shape[i] for i in order)
      ours = value(name, shape)
      array.copy_(torch.tensor(ours.transpose(transpose) if transpose else ours))

    for ours, key in torch_names(stage_sizes):
      if 'conv' in ours:
        put(f'params/{ours}/kernel', f'{key}.weight', (3, 2, 0, 1))
      else:
        put(f'norm/{ours}/scale', f'{key}.weight')
        put(f'norm/{ours}/bias', f'{key}.bias')
        put(f'batch_stats/{ours}/mean', f'{key}.running_mean')
        put(f'batch_stats/{ours}/var', f'{key}.running_var')
    put('params/classifier/kernel', 'fc.weight', (1, 0))
    put('params/classifier/bias', 'fc.bias')

  golden = {'torchvision': torchvision.__version__, 'counts': {}, 'logits': {}}
  for name, arguments in COUNTED.items():
    parameters = create(arguments).parameters()
    golden['counts'][name] = sum(x.numel() for x in parameters)
  x = torch.tensor((image() - 0.5) / 0.5).permute(0, 3, 1, 2)
  for name, arguments in NETWORKS.items():
    for mode in ('inference', 'training'):
      model = create(arguments, NUM_CLASSES)
      model.maxpool = torch.nn.Sequential(
        torch.nn.ZeroPad2d((0, 1, 0, 1)), torch.nn.MaxPool2d(3, 2)
      )
      fill(model, arguments[0])
      model.train(mode == 'training')
      with torch.no_grad():
        logits = model(x)
      golden['logits'][f'{name}/{mode}'] = logits.numpy().tolist()
    # After the pass in training mode.
    golden['logits'][f'{name}/running_mean'] = (
      model.layer4[0].bn3.running_mean[:20].tolist()
    )
  print(json.dumps(golden))


if __name__ == '__main__':
  main()
