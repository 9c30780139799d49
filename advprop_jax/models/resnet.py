"""ResNets and ResNeXts, version 1.5, as adversarial training uses them.

The stride of a block is at its 3 x 3 convolution (v1.5), convolutions with a stride are
padded evenly, and the activation is a choice, also after the addition. Images come in
as in `efficientnet.py`: float32 [B, H, W, 3] in [0, 1].

Sources: He et al. 2016, Xie et al. 2017 (ResNeXt); `resnet_model.py` of
cihangxie/SmoothAdversarialTraining for padding, initial values and activations. Its
initial kernels are of a truncated normal distribution; ours of a whole one.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax.models import activations, initializers, network

MIN_IMAGE_SIZE = 32  # The network divides the sides by 2 ** 5.
EXPANSION = 4  # Output channels of a block over those of its first convolution.


class Variant(NamedTuple):
  """What distinguishes one ResNet."""

  stage_sizes: tuple[int, ...]  # Blocks.
  groups: int = 1
  group_width: int = 64  # Channels of a group in the first stage.
  stem_features: int = 64


# Source: He et al. 2016, table 1; 200: He et al. 2016b. ResNeXt: groups x width.
VARIANTS = {
  'resnet_50': Variant((3, 4, 6, 3)),
  'resnet_101': Variant((3, 4, 23, 3)),
  'resnet_152': Variant((3, 8, 36, 3)),
  'resnet_200': Variant((3, 24, 36, 3)),
  'resnext_50_32x4d': Variant((3, 4, 6, 3), groups=32, group_width=4),
  'resnext_50_32x8d': Variant((3, 4, 6, 3), groups=32, group_width=8),
  'resnext_152_32x8d': Variant((3, 8, 36, 3), groups=32, group_width=8),
  # Not published: three narrow blocks, for the CPU.
  'resnet_tiny': Variant((1, 1, 1), group_width=16, stem_features=16),
}


class Bottleneck(nn.Module):
  """Narrows, convolves, widens and adds.

  Attributes:
    width: channels of the two inner convolutions.
    features: output channels.
    stride: of the 3 x 3 convolution.
    groups: of the 3 x 3 convolution.
    activation: function of the two inner norms and of the sum.
    conv: makes a convolution, see `Conv`.
    batch_norm: makes a norm, see `BatchNorm`.
  """

  width: int
  features: int
  stride: int
  groups: int
  activation: activations.Activation
  conv: Any
  batch_norm: Any

  @nn.compact
  def __call__(self, x: jax.Array, use_running_average: bool):
    """Returns [B, H / stride, W / stride, features]."""

    def norm(name, x, activation=activations.IDENTITY, **arguments):
      batch_norm = self.batch_norm(activation=activation, name=name, **arguments)
      return batch_norm(x, use_running_average=use_running_average)

    shortcut = x
    x = self.conv(self.width, name='conv_1')(x)
    x = norm('bn_1', x, self.activation)
    conv = self.conv(
      self.width, 3, self.stride, groups=self.groups, even_padding=True, name='conv_2'
    )
    x = norm('bn_2', conv(x), self.activation)
    x = self.conv(self.features, name='conv_3')(x)
    # At first a block is its shortcut. Source: Goyal et al. 2017, section 5.1.
    x = norm('bn_3', x, scale_init=nn.initializers.zeros)

    if shortcut.shape != x.shape:
      project = self.conv(self.features, 1, self.stride, name='project_conv')
      shortcut = norm('project_bn', project(shortcut))
    return activations.Activate(self.activation, name='activation')(x + shortcut)


class ResNet(nn.Module):
  """Images in [0, 1] to logits.

  Attributes:
    num_classes: K.
    stage_sizes: blocks of each stage.
    groups: of the 3 x 3 convolutions.
    group_width: channels of a group in the first stage; doubled in each later one.
    stem_features: channels of the first convolution.
    even_pool_padding: pad the max pooling by one on every side, as PyTorch does; False:
      'SAME', as SAT does, which pads even sides at the bottom and right alone.
    activation: a name in `activations.py`.
    mean: per-channel mean, in [0, 1] pixel units.
    std: per-channel standard deviation, in [0, 1] pixel units.
    dtype: type of the arithmetic; parameters, statistics and logits are float32.
    remat_blocks: whether the backward pass keeps the blocks' inputs only, and computes
      each block again, to need less memory.
    cpu_kernels: see `Conv` and `BatchNorm`.
    bn_momentum: see `BatchNorm`. Source: tensorpack's default, which SAT uses, 0.9.
    bn_epsilon: see `BatchNorm`. Source: tensorpack's default, 1e-5.
    bn_axis_name: see `BatchNorm`.
    bn_axis_index_groups: see `BatchNorm`.
  """

  num_classes: int
  stage_sizes: tuple[int, ...]
  groups: int
  group_width: int
  stem_features: int
  even_pool_padding: bool = False
  activation: str = 'relu'
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  dtype: Any = jnp.float32
  remat_blocks: bool = False
  cpu_kernels: bool = True
  bn_momentum: float = 0.9
  bn_epsilon: float = 1e-5
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
      train: there is no dropout; see `use_running_average`.
      use_running_average: whether norms use their running statistics instead of the
        batch's; None: exactly when not training.

    Raises:
      UserError: the image is too small, or the activation is unknown.
    """
    activation = activations.get_activation(self.activation)
    if use_running_average is None:
      use_running_average = not train

    conv, batch_norm = network.create_layers(self)

    x = network.normalise(self, image, min_size=MIN_IMAGE_SIZE)

    x = conv(self.stem_features, 7, 2, even_padding=True, name='stem_conv')(x)
    stem_bn = batch_norm(activation=activation, name='stem_bn')
    x = stem_bn(x, use_running_average=use_running_average)
    padding = [(1, 1)] * 2 if self.even_pool_padding else 'SAME'
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)

    # The static one is `use_running_average`, behind `self` and `x`.
    bottleneck = (
      nn.remat(Bottleneck, static_argnums=2) if self.remat_blocks else Bottleneck
    )
    index = 0
    for stage, num_blocks in enumerate(self.stage_sizes):
      width = self.group_width * 2**stage
      for block in range(num_blocks):
        x = bottleneck(
          width=width * self.groups,
          features=EXPANSION * self.stem_features * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          groups=self.groups,
          activation=activation,
          conv=conv,
          batch_norm=batch_norm,
          name=f'blocks_{index}',
        )(x, use_running_average)
        index += 1

    x = x.mean(axis=(1, 2))
    return network.classify(self, x, kernel_init=initializers.normal_kernel)
