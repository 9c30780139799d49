"""The convolutions of EfficientNet as Flax modules.

Images are [B, H, W, C], kernels [k, k, in, out] (depthwise: [k, k, 1, C]), padding is
TensorFlow's 'SAME'. Parameters are called 'kernel' and 'bias', as in flax's `nn.Conv`,
whose result this is; how it is computed is the business of `cpu_conv.py`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax.models import cpu_conv, initializers

# With more input channels than this, k * k copies of them cost more than they save.
MAX_PATCH_CHANNELS = 4


class Conv(nn.Module):
  """Convolves; with `depthwise`, every channel with a filter of its own.

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel.
    stride: in both directions.
    depthwise: one filter per channel; there are as many outputs as inputs.
    use_bias: whether a bias, at first zero, is added.
    dtype: type of the arithmetic and of the result; parameters are float32.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  depthwise: bool = False
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, ceil(H / stride), ceil(W / stride), features]."""
    channels = 1 if self.depthwise else x.shape[-1]
    kernel = self.param(
      'kernel',
      initializers.conv_kernel,
      (self.kernel_size, self.kernel_size, channels, self.features),
      jnp.float32,
    )
    x = self._convolve(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
      x += bias.astype(self.dtype)
    return x

  def _convolve(self, x, kernel):
    if self.depthwise:
      return cpu_conv.depthwise_conv(x, kernel, self.stride)
    if self.kernel_size == self.stride == 1:
      return cpu_conv.pointwise_conv(x, kernel, self.stride)
    if x.shape[-1] <= MAX_PATCH_CHANNELS:
      return cpu_conv.patches_conv(x, kernel, self.stride)
    return cpu_conv.native_conv(x, kernel, self.stride)
