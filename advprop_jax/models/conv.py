"""The convolutions of EfficientNet, in one place so that they can be replaced.

Images are [B, H, W, C], kernels [k, k, in, out] (depthwise: [k, k, 1, C]), padding is
TensorFlow's 'SAME'. Parameters are called 'kernel' and 'bias' and are float32; `dtype`
is the type of the arithmetic and of the result.
"""

import math

import flax.linen as nn
import jax

# Normal, not truncated, with variance 2 / (k * k * out).
# Source: `conv_kernel_initializer` of the official code (tensorflow/tpu).
CONV_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def depthwise_init(kernel_size: int):
  """Returns the initialiser of a [k, k, 1, C] kernel: variance 2 / (k * k).

  The fan-out of one group is k * k; `variance_scaling` would count all C channels.
  Source: the official code, where the kernel is [k, k, C, 1] and fan_out k * k * 1.
  """
  return nn.initializers.normal(math.sqrt(2.0) / kernel_size)


def conv(
  features: int,
  kernel_size: int = 1,
  *,
  name: str,
  stride: int = 1,
  use_bias: bool = False,
  dtype: jax.typing.DTypeLike,
) -> nn.Module:
  """Returns a dense convolution [B, H, W, in] -> [B, H / stride, W / stride, features].

  A bias, where there is one, starts at zero.
  """
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=stride,
    padding='SAME',
    use_bias=use_bias,
    kernel_init=CONV_INIT,
    dtype=dtype,
    name=name,
  )


def depthwise_conv(
  channels: int,
  kernel_size: int,
  *,
  name: str,
  stride: int = 1,
  dtype: jax.typing.DTypeLike,
) -> nn.Module:
  """Returns one k x k filter per channel, [B, H, W, C] -> [B, H / s, W / s, C]."""
  return nn.Conv(
    channels,
    (kernel_size, kernel_size),
    strides=stride,
    padding='SAME',
    feature_group_count=channels,
    use_bias=False,
    kernel_init=depthwise_init(kernel_size),
    dtype=dtype,
    name=name,
  )
