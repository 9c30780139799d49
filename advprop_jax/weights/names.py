"""How published weights are called and laid out: a table of namings, and its use.

Our own names are those of the models' layers, 'blocks_3/expand_conv', with the values
'kernel' and 'bias' in 'params', 'scale' and 'bias' in 'norm', 'mean' and 'var' in
'batch_stats'. Kernels are [k, k, in / groups, out], those of dense layers [in, out].

Sources: the official checkpoints (tensorflow/tpu) as lukemelas' converter reads them,
lukemelas/EfficientNet-PyTorch, timm, rwightman/efficientnet-jax, and the checkpoints of
cihangxie/SmoothAdversarialTraining.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax import traverse_util

from advprop_jax import errors
from advprop_jax.models import efficientnet, resnet

NUM_LISTED = 5  # So many names of a kind stand in a message.


class Naming(NamedTuple):
  """What one kind of source calls the layers of a network and their values.

  `layers` and `block_layers` map our layers to the source's; a value that the source
  keeps elsewhere has an entry of its own, 'stem_bn/activation'.
  """

  title: str
  example: str  # Of a name, for messages.
  block: str  # With {index}, or {stage} and {repeat}, all from 0.
  layers: Mapping[str, str]
  block_layers: Mapping[str, str]
  values: Mapping[str, str]  # 'params/kernel' -> 'weight', ...
  # Of blocks that do not expand their input; None: as the others.
  plain_block_layers: Mapping[str, str] | None = None
  separator: str = '.'
  torch_layout: bool = True  # [out, in / groups, k, k] and [out, in].
  unused: tuple[str, ...] = ()  # Patterns of variables that no network consists of.

  def value_name(self, layer: str, value: str) -> str:
    """Returns the source's name of a value of a layer that is in no block.

    Args:
      layer: a key of `layers`.
      value: a key of `values`.
    """
    return self.separator.join([self.layers[layer], self.values[value]])

  def is_unused(self, name: str) -> bool:
    """Returns whether no network consists of the variable."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in self.unused)


_TORCH_VALUES = {
  'params/kernel': 'weight',
  'params/bias': 'bias',
  'norm/scale': 'weight',
  'norm/bias': 'bias',
  'batch_stats/mean': 'running_mean',
  'batch_stats/var': 'running_var',
}
_TORCH_UNUSED = ('*num_batches_tracked',)
# Steps and what optimizers keep. Source: lukemelas' converter.
_TF_UNUSED = ('*global_step', '*RMS*', '*/Momentum*', '*/Adam*', '*_power')

_TPU = Naming(
  title='official TensorFlow',
  example='efficientnet-b0/stem/conv2d/kernel',
  block='blocks_{index}',
  layers={
    'stem_conv': 'stem/conv2d',
    'stem_bn': 'stem/tpu_batch_normalization',
    'head_conv': 'head/conv2d',
    'head_bn': 'head/tpu_batch_normalization',
    'classifier': 'head/dense',
  },
  block_layers={
    'expand_conv': 'conv2d',
    'expand_bn': 'tpu_batch_normalization',
    'depthwise_conv': 'depthwise_conv2d',
    'depthwise_bn': 'tpu_batch_normalization_1',
    'se_reduce': 'se/conv2d',
    'se_expand': 'se/conv2d_1',
    'project_conv': 'conv2d_1',
    'project_bn': 'tpu_batch_normalization_2',
  },
  plain_block_layers={  # Numbered in the order of their use: without the expansion.
    'depthwise_conv': 'depthwise_conv2d',
    'depthwise_bn': 'tpu_batch_normalization',
    'se_reduce': 'se/conv2d',
    'se_expand': 'se/conv2d_1',
    'project_conv': 'conv2d',
    'project_bn': 'tpu_batch_normalization_1',
  },
  values={
    'params/kernel': 'kernel',
    'params/bias': 'bias',
    'depthwise_conv/kernel': 'depthwise_kernel',
    'norm/scale': 'gamma',
    'norm/bias': 'beta',
    'batch_stats/mean': 'moving_mean',
    'batch_stats/var': 'moving_variance',
  },
  separator='/',
  torch_layout=False,
  unused=_TF_UNUSED,
)
_TIMM = Naming(
  title='timm',
  example='conv_stem.weight',
  block='blocks.{stage}.{repeat}',
  layers={
    'stem_conv': 'conv_stem',
    'stem_bn': 'bn1',
    'head_conv': 'conv_head',
    'head_bn': 'bn2',
    'classifier': 'classifier',
  },
  block_layers={
    'expand_conv': 'conv_pw',
    'expand_bn': 'bn1',
    'depthwise_conv': 'conv_dw',
    'depthwise_bn': 'bn2',
    'se_reduce': 'se.conv_reduce',
    'se_expand': 'se.conv_expand',
    'project_conv': 'conv_pwl',
    'project_bn': 'bn3',
  },
  plain_block_layers={
    'depthwise_conv': 'conv_dw',
    'depthwise_bn': 'bn1',
    'se_reduce': 'se.conv_reduce',
    'se_expand': 'se.conv_expand',
    'project_conv': 'conv_pw',
    'project_bn': 'bn2',
  },
  values=_TORCH_VALUES,
  unused=_TORCH_UNUSED,
)
_LUKEMELAS = Naming(
  title='lukemelas',
  example='_conv_stem.weight',
  block='_blocks.{index}',
  layers={
    'stem_conv': '_conv_stem',
    'stem_bn': '_bn0',
    'head_conv': '_conv_head',
    'head_bn': '_bn1',
    'classifier': '_fc',
  },
  block_layers={
    'expand_conv': '_expand_conv',
    'expand_bn': '_bn0',
    'depthwise_conv': '_depthwise_conv',
    'depthwise_bn': '_bn1',
    'se_reduce': '_se_reduce',
    'se_expand': '_se_expand',
    'project_conv': '_project_conv',
    'project_bn': '_bn2',
  },
  values=_TORCH_VALUES,
  unused=_TORCH_UNUSED,
)
_JEFFNET = Naming(
  title='efficientnet-jax',
  example='stem.conv.weight',
  block='blocks.{stage}.{repeat}',
  layers={
    'stem_conv': 'stem.conv',
    'stem_bn': 'stem.bn',
    'head_conv': 'head.conv_pw',
    'head_bn': 'head.bn',
    'classifier': 'head.classifier',
  },
  block_layers={
    'expand_conv': 'conv_exp',
    'expand_bn': 'bn_exp',
    'depthwise_conv': 'conv_dw',
    'depthwise_bn': 'bn_dw',
    'se_reduce': 'se.reduce',
    'se_expand': 'se.expand',
    'project_conv': 'conv_pwl',
    'project_bn': 'bn_pwl',
  },
  plain_block_layers={
    'depthwise_conv': 'conv_dw',
    'depthwise_bn': 'bn_dw',
    'se_reduce': 'se.reduce',
    'se_expand': 'se.expand',
    'project_conv': 'conv_pw',
    'project_bn': 'bn_pw',
  },
  values=_TORCH_VALUES,
  unused=_TORCH_UNUSED,
)
_TIMM_RESNET = Naming(
  title='timm',
  example='conv1.weight',
  block='layer{stage_from_1}.{repeat}',
  layers={'stem_conv': 'conv1', 'stem_bn': 'bn1', 'classifier': 'fc'},
  block_layers={
    'conv_1': 'conv1',
    'bn_1': 'bn1',
    'conv_2': 'conv2',
    'bn_2': 'bn2',
    'conv_3': 'conv3',
    'bn_3': 'bn3',
    'project_conv': 'downsample.0',
    'project_bn': 'downsample.1',
  },
  values=_TORCH_VALUES,
  unused=_TORCH_UNUSED,
)
_SAT_RESNET = Naming(
  title='SmoothAdversarialTraining',
  example='conv0/W',
  block='group{stage}/block{repeat}',
  layers={
    'stem_conv': 'conv0',
    'stem_bn': 'conv0/bn',
    'stem_bn/activation': 'conv0',
    'classifier': 'linear',
  },
  block_layers={
    'conv_1': 'conv1',
    'bn_1': 'conv1/bn',
    'bn_1/activation': 'conv1',
    'conv_2': 'conv2',
    'bn_2': 'conv2/bn',
    'bn_2/activation': 'conv2',
    'conv_3': 'conv3',
    'bn_3': 'conv3/bn',
    'project_conv': 'convshortcut',
    'project_bn': 'convshortcut/bn',
    'activation/activation': '',  # After the addition: of the block itself.
  },
  values={
    'params/kernel': 'W',
    'params/bias': 'b',
    'params/activation': 'smoothrelu_beta',
    'norm/scale': 'gamma',
    'norm/bias': 'beta',
    'batch_stats/mean': 'mean/EMA',
    'batch_stats/var': 'variance/EMA',
  },
  separator='/',
  torch_layout=False,
  unused=(*_TF_UNUSED, 'learning_rate'),
)
# Class of a model -> the namings that its weights are published in.
NAMINGS: dict[Any, tuple[Naming, ...]] = {
  efficientnet.EfficientNet: (_TPU, _TIMM, _LUKEMELAS, _JEFFNET),
  resnet.ResNet: (_TIMM_RESNET, _SAT_RESNET),
}
# In this one weights are exported, so that timm reads them.
TIMM: dict[Any, Naming] = {
  efficientnet.EfficientNet: _TIMM,
  resnet.ResNet: _TIMM_RESNET,
}


def find_naming(
  model: nn.Module, arrays: Mapping[str, Any], *, where: str
) -> tuple[Naming, str]:
  """Returns the naming of a source's variables, and what stands before every name.

  The latter is the scope of a TensorFlow graph, 'efficientnet-b0/', or what PyTorch's
  wrappers put there, 'module.'.

  Args:
    model: the network that is to be filled.
    arrays: the variables of the source, by name.
    where: the source, for the message.

  Raises:
    UserError: the names are of none of the model's namings.
  """
  namings = NAMINGS[type(model)]
  found = []
  for naming in namings:
    stem = naming.value_name('stem_conv', 'params/kernel')
    for name in arrays:
      prefix = name.removesuffix(stem)
      if prefix != name and (not prefix or prefix.endswith(naming.separator)):
        found.append((len(prefix), naming, prefix))
  if not found:
    known = ', '.join(f'{x.example} ({x.title})' for x in namings)
    raise errors.UserError(
      f'{where} holds no {type(model).__name__} under a known name; found: '
      f'{_listed(arrays)}; allowed: weights with names like {known}'
    )
  _, naming, prefix = min(found, key=lambda x: x[0])
  return naming, prefix


def source_names(
  model: nn.Module, template: Mapping[str, Any], naming: Naming
) -> dict[tuple[str, ...], str]:
  """Returns {path of a value in `template`: the source's name of it}.

  Args:
    model: the network.
    template: what `model.init` returns, arrays or their shapes.
    naming: the source's.
  """
  blocks = dict(_blocks(model))
  result = {}
  for path in traverse_util.flatten_dict(template):
    collection, *layers, value = path
    block = blocks.get(layers[0])
    if block is None:
      table, place = naming.layers, ''
    else:
      table = naming.block_layers
      if block['plain'] and naming.plain_block_layers is not None:
        table = naming.plain_block_layers
      place = naming.block.format(**block)
      layers = layers[1:]
    layer = '/'.join(layers)
    names = [place, table.get(f'{layer}/{value}', table.get(layer, layer))]
    value_name = naming.values.get(
      f'{layer}/{value}', naming.values.get(f'{collection}/{value}', value)
    )
    result[path] = naming.separator.join(x for x in [*names, value_name] if x)
  return result


def fill(
  model: nn.Module,
  template: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  where: str,
  model_name: str,
) -> dict[str, Any]:
  """Returns the variables of a model, filled from a source, in the source's types.

  Every value is filled exactly once, and every variable of the source is used, or on
  the naming's list of those that no network consists of.

  Args:
    model: the network.
    template: shapes and types of what `model.init` returns.
    arrays: the source's variables, by name.
    where: the source, for messages.
    model_name: of the network, for messages.

  Raises:
    UserError: values are missing, left over or of another shape; or the names are
      unknown.
  """
  naming, prefix = find_naming(model, arrays, where=where)
  names = {
    path: prefix + name for path, name in source_names(model, template, naming).items()
  }
  shapes = traverse_util.flatten_dict(template)
  missing, wrong, values = [], [], {}
  for path, name in names.items():
    expected = tuple(shapes[path].shape)
    if name not in arrays:
      missing.append(f'{name} {_source_shape(path, expected, naming)}')
      continue
    value = to_flax(arrays[name], path, naming)
    if value.shape != expected:
      allowed = _source_shape(path, expected, naming)
      wrong.append(f'{name} {tuple(arrays[name].shape)} instead of {allowed}')
    values[path] = value
  used = set(names.values())
  left = [
    f'{name} {tuple(x.shape)}'
    for name, x in arrays.items()
    if name not in used and not naming.is_unused(name)
  ]
  if missing or left or wrong:
    parts = [('missing', missing), ('left over', left), ('of another shape', wrong)]
    found = '; '.join(f'{len(x)} {what}: {_listed(x)}' for what, x in parts if x)
    raise errors.UserError(
      f'{where} ({naming.title} names) does not hold the weights of {model_name}: '
      f'{found}; allowed: exactly its {len(names)} variables'
    )
  return traverse_util.unflatten_dict(values)


def to_flax(x: np.ndarray, path: tuple[str, ...], naming: Naming) -> np.ndarray:
  """Returns a value of a source in Flax's layout, in memory of its own.

  Args:
    x: the value.
    path: ours of it, ('params', 'blocks_0', 'depthwise_conv', 'kernel').
    naming: the source's.
  """
  return np.ascontiguousarray(x.transpose(_axes(x.ndim, path, naming)))


def to_source(x: np.ndarray, path: tuple[str, ...], naming: Naming) -> np.ndarray:
  """Returns a value of ours in a source's layout; the inverse of `to_flax`."""
  axes = np.argsort(_axes(x.ndim, path, naming))
  return np.ascontiguousarray(x.transpose(axes))


def _axes(ndim: int, path, naming: Naming) -> tuple[int, ...]:
  if path[-1] == 'kernel':
    if naming.torch_layout:
      return (2, 3, 1, 0) if ndim == 4 else tuple(reversed(range(ndim)))
    if path[-2] == 'depthwise_conv' and ndim == 4:
      return (0, 1, 3, 2)  # TensorFlow's is [k, k, in, 1].
  return tuple(range(ndim))


def _source_shape(path, shape: tuple[int, ...], naming: Naming) -> tuple[int, ...]:
  axes = np.argsort(_axes(len(shape), path, naming))
  return tuple(shape[i] for i in axes)


def _blocks(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields every block's name of ours, and what its name elsewhere is made of."""
  index = 0
  for stage, repeats in enumerate(model.stage_sizes):
    stages = getattr(model, 'stages', ())
    for repeat in range(repeats):
      yield (
        f'blocks_{index}',
        {
          'index': index,
          'stage': stage,
          'stage_from_1': stage + 1,
          'repeat': repeat,
          'plain': bool(stages) and stages[stage].expand_ratio == 1,
        },
      )
      index += 1


def _listed(names) -> str:
  names = list(names)
  rest = ', ...' if len(names) > NUM_LISTED else ''
  return ', '.join(names[:NUM_LISTED]) + rest
