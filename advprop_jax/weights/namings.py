"""How published weights are called and laid out: a table.

Our own names are those of the models' layers, 'blocks_3/expand_conv', with the values
'kernel' and 'bias' in 'params', 'scale' and 'bias' in 'norm', 'mean' and 'var' in
'batch_stats'. Kernels are [k, k, in / groups, out], those of dense layers [in, out].

Sources: the official checkpoints (tensorflow/tpu) as lukemelas' converter reads them,
lukemelas/EfficientNet-PyTorch, timm, rwightman/efficientnet-jax, and the checkpoints of
cihangxie/SmoothAdversarialTraining.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

from advprop_jax.models import efficientnet, resnet


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


def timm_computes(model: Any) -> bool:
  """Returns whether timm's networks with these names compute as this one does."""
  if isinstance(model, efficientnet.EfficientNet):
    own = 'relu6' if model.se_ratio == 0 else 'swish'
    is_activated = model.activation == own or {model.activation, own} == {
      'silu',
      'swish',
    }
    return is_activated and model.bn_epsilon == 1e-3
  is_torchs = model.activation == 'relu' and model.even_pool_padding
  return is_torchs and model.bn_epsilon == 1e-5
