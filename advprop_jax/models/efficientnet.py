"""EfficientNet B0-B8, L0-L2 and Lite0-4, exactly as the official code builds them.

The model maps images, float32 [B, H, W, 3] in [0, 1], to logits, float32 [B, K]; the
mean/std normalisation is its first line, so whatever holds the model (an attack, a
notebook) works in pixel units. It knows nothing of attacks or branches.

Sources: Tan & Le 2019 (arXiv 1905.11946) and `efficientnet_builder.py`,
`efficientnet_model.py`, `lite/efficientnet_lite_builder.py` of the official code
(tensorflow/tpu).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax.models import activations, initializers, network

# Below this the last feature map has less than one input pixel per cell: 2 ** 5.
MIN_IMAGE_SIZE = 32


class Stage(NamedTuple):
  """A run of blocks, before scaling; only the first has the stride."""

  repeats: int
  kernel_size: int
  stride: int
  expand_ratio: int
  features: int


# Source: Tan & Le 2019, table 1; the official block strings.
STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)
# Not published: four narrow blocks, for the CPU. The third has a shortcut that
# drop-connect may cut, both kernel sizes and both strides occur.
TINY_STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(1, 5, 2, 6, 80),
)
STEM_FEATURES = 32
HEAD_FEATURES = 1280


class Variant(NamedTuple):
  """What distinguishes one EfficientNet."""

  width: float
  depth: float
  image_size: int  # Its own, in pixels.
  dropout_rate: float
  stages: tuple[Stage, ...] = STAGES
  se_ratio: float = 0.25  # Source: `se0.25` in the official block strings.
  activation: str = 'swish'
  scale_ends: bool = True


def _lite(width, depth, image_size, dropout_rate) -> Variant:
  """Returns a network for phones: no squeeze-excite, ReLU6, ends as they are."""
  return Variant(
    width,
    depth,
    image_size,
    dropout_rate,
    se_ratio=0.0,
    activation='relu6',
    scale_ends=False,
  )


# Source: `efficientnet_builder.py`; L0: Xie et al. 2020 (Noisy Student), table 7 (its
# dropout is printed nowhere: that of L1); L1: cihangxie/SmoothAdversarialTraining.
VARIANTS = {
  'efficientnet_b0': Variant(1.0, 1.0, 224, 0.2),
  'efficientnet_b1': Variant(1.0, 1.1, 240, 0.2),
  'efficientnet_b2': Variant(1.1, 1.2, 260, 0.3),
  'efficientnet_b3': Variant(1.2, 1.4, 300, 0.3),
  'efficientnet_b4': Variant(1.4, 1.8, 380, 0.4),
  'efficientnet_b5': Variant(1.6, 2.2, 456, 0.4),
  'efficientnet_b6': Variant(1.8, 2.6, 528, 0.5),
  'efficientnet_b7': Variant(2.0, 3.1, 600, 0.5),
  'efficientnet_b8': Variant(2.2, 3.6, 672, 0.5),
  'efficientnet_l0': Variant(2.8, 3.7, 600, 0.5),
  'efficientnet_l1': Variant(3.9, 3.7, 600, 0.5),
  'efficientnet_l2': Variant(4.3, 5.3, 800, 0.5),
  'efficientnet_lite0': _lite(1.0, 1.0, 224, 0.2),
  'efficientnet_lite1': _lite(1.0, 1.1, 240, 0.2),
  'efficientnet_lite2': _lite(1.1, 1.2, 260, 0.3),
  'efficientnet_lite3': _lite(1.2, 1.4, 280, 0.3),
  'efficientnet_lite4': _lite(1.4, 1.8, 300, 0.3),
  'efficientnet_tiny': Variant(0.25, 1.0, 32, 0.1, TINY_STAGES),
}


def round_features(features: int, width: float) -> int:
  """Returns features * width as a multiple of 8, never below 90 % of the product.

  Source: `round_filters` of the official code.
  """
  scaled = features * width
  rounded = max(8, int(scaled + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
  """Returns ceil(repeats * depth). Source: `round_repeats` of the official code."""
  return math.ceil(depth * repeats)


class MBConv(nn.Module):
  """Expands, filters each channel, gates, projects and adds: the inverted bottleneck.

  Attributes:
    features: output channels.
    kernel_size: of the depthwise convolution.
    stride: of the depthwise convolution.
    expand_ratio: inner width over input width; at 1 there is no expansion.
    se_ratio: width of squeeze-excite over input width; 0: there is none.
    drop_rate: probability that an example skips the block, in training.
    activation: function of the two inner norms and of squeeze-excite.
    conv: makes a convolution, see `Conv`.
    batch_norm: makes a norm, see `BatchNorm`.
  """

  features: int
  kernel_size: int
  stride: int
  expand_ratio: int
  se_ratio: float
  drop_rate: float
  activation: activations.Activation
  conv: Any
  batch_norm: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, use_running_average: bool):
    """Returns [B, H / stride, W / stride, features]."""

    def norm(name, x, activation=activations.IDENTITY):
      batch_norm = self.batch_norm(activation=activation, name=name)
      return batch_norm(x, use_running_average=use_running_average)

    shortcut = x
    inner = x.shape[-1] * self.expand_ratio

    if self.expand_ratio != 1:
      x = self.conv(inner, name='expand_conv')(x)
      x = norm('expand_bn', x, self.activation)

    depthwise = self.conv(
      inner, self.kernel_size, self.stride, groups=inner, name='depthwise_conv'
    )
    x = norm('depthwise_bn', depthwise(x), self.activation)

    if self.se_ratio > 0:
      # The gate's width comes from the block's input, not from the expanded width.
      squeezed = max(1, int(shortcut.shape[-1] * self.se_ratio))
      gate = x.mean(axis=(1, 2), keepdims=True)
      gate = self.conv(squeezed, use_bias=True, name='se_reduce')(gate)
      gate = activations.Activate(self.activation, name='se_activation')(gate)
      gate = self.conv(inner, use_bias=True, name='se_expand')(gate)
      x = x * nn.sigmoid(gate)

    x = self.conv(self.features, name='project_conv')(x)
    x = norm('project_bn', x)

    if self.stride == 1 and shortcut.shape == x.shape:
      # One draw per example; what is kept is divided by the survival probability.
      x = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), name='drop_connect')(
        x, deterministic=not train
      )
      x = x + shortcut
    return x


class EfficientNet(nn.Module):
  """Images in [0, 1] to logits.

  Attributes:
    num_classes: K.
    width: multiplier of the channels.
    depth: multiplier of the blocks per stage.
    stages: before scaling.
    dropout_rate: before the classifier, in training.
    se_ratio: width of squeeze-excite over a block's input width; 0: there is none.
    scale_ends: whether `width` acts on stem and head, too, and `depth` on the first and
      the last stage.
    drop_connect_rate: of the last block, were there one more; grows linearly from 0.
      Source: survival probability 0.8 of the official code, for every size.
    activation: 'swish' (also called 'silu'), or another name in `activations.py`.
    mean: per-channel mean, in [0, 1] pixel units. AdvProp: 0.5, with std 0.5.
    std: per-channel standard deviation, in [0, 1] pixel units.
    dtype: type of the arithmetic; parameters, statistics and logits are float32.
    remat_blocks: whether the backward pass keeps the blocks' inputs only, and computes
      each block again, to need less memory.
    cpu_kernels: see `Conv` and `BatchNorm`. False leaves plain operations only, for
      forward-mode derivatives, exports and comparisons.
    bn_momentum: see `BatchNorm`. Source: the official code, 0.99.
    bn_epsilon: see `BatchNorm`. Source: the official code, 1e-3.
    bn_axis_name: see `BatchNorm`.
    bn_axis_index_groups: see `BatchNorm`.
  """

  num_classes: int
  width: float
  depth: float
  stages: tuple[Stage, ...]
  dropout_rate: float
  se_ratio: float
  scale_ends: bool
  drop_connect_rate: float = 0.2
  activation: str = 'swish'
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  dtype: Any = jnp.float32
  remat_blocks: bool = False
  cpu_kernels: bool = True
  bn_momentum: float = 0.99
  bn_epsilon: float = 1e-3
  bn_axis_name: str | None = None
  bn_axis_index_groups: tuple[tuple[int, ...], ...] | None = None

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    *,
    train: bool,
    use_running_average: bool | None = None,
  ) -> jax.Array:
    """Returns logits, float32 [B, K].

    Args:
      image: float32 [B, H, W, 3] in [0, 1]; H and W at least MIN_IMAGE_SIZE.
      train: whether dropout and drop-connect act; they need the rng 'dropout'.
      use_running_average: whether norms use their running statistics instead of the
        batch's; None: exactly when not training.

    Raises:
      UserError: the image is too small, or the activation is unknown.
    """
    activation = activations.get_activation(self.activation)
    if use_running_average is None:
      use_running_average = not train

    conv, batch_norm = network.create_layers(self)

    def norm_and_activate(name, x):
      layer = batch_norm(activation=activation, name=name)
      return layer(x, use_running_average=use_running_average)

    x = network.normalise(self, image, min_size=MIN_IMAGE_SIZE)

    stem = self._end_features(STEM_FEATURES)
    x = conv(stem, 3, stride=2, name='stem_conv')(x)
    x = norm_and_activate('stem_bn', x)

    # The static ones are `train` and `use_running_average`, behind `self` and `x`.
    mbconv = nn.remat(MBConv, static_argnums=(2, 3)) if self.remat_blocks else MBConv
    blocks = self.blocks()
    for i, (stage, stride) in enumerate(blocks):
      x = mbconv(
        features=round_features(stage.features, self.width),
        kernel_size=stage.kernel_size,
        stride=stride,
        expand_ratio=stage.expand_ratio,
        se_ratio=self.se_ratio,
        drop_rate=self.drop_connect_rate * i / len(blocks),
        activation=activation,
        conv=conv,
        batch_norm=batch_norm,
        name=f'blocks_{i}',
      )(x, train, use_running_average)

    head = self._end_features(HEAD_FEATURES)
    x = conv(head, name='head_conv')(x)
    x = norm_and_activate('head_bn', x)
    x = x.mean(axis=(1, 2))
    x = nn.Dropout(self.dropout_rate, name='dropout')(x, deterministic=not train)
    return network.classify(self, x, kernel_init=initializers.dense_kernel)

  def blocks(self) -> list[tuple[Stage, int]]:
    """Returns every block as (its stage, its stride), in order."""
    return [
      (stage, stage.stride if i == 0 else 1)
      for stage, repeats in zip(self.stages, self.stage_sizes, strict=True)
      for i in range(repeats)
    ]

  @property
  def stage_sizes(self) -> tuple[int, ...]:
    """Returns the number of blocks of every stage."""
    last = len(self.stages) - 1
    return tuple(
      stage.repeats
      if i in (0, last) and not self.scale_ends
      else round_repeats(stage.repeats, self.depth)
      for i, stage in enumerate(self.stages)
    )

  def _end_features(self, features: int) -> int:
    return round_features(features, self.width) if self.scale_ends else features
