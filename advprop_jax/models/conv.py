"""Convolutions, plain, grouped and depthwise, as a Flax module.

Images are [B, H, W, C], kernels [k, k, in / groups, out], padding is TensorFlow's
'SAME' unless it is asked to be even. Parameters are called 'kernel' and 'bias', as in
flax's `nn.Conv`, whose result this is. On the CPU the functions of `cpu/conv.py`
compute it, elsewhere XLA's own convolution.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from advprop_jax import errors
from advprop_jax.models import initializers
from advprop_jax.models.cpu import conv as cpu_conv

# With more input channels than this, k * k copies of them cost more than they save.
MAX_PATCH_CHANNELS = 4


def native_conv(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Any = 'SAME'
) -> jax.Array:
  """Returns the convolution as XLA has it; the number of groups follows from shapes."""
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


def _with_cpu_version(forward, image_grad, kernel_grad):
  """Returns `conv(x, kernel, stride)`: these three on the CPU, else XLA's own.

  The choice is made when the program is lowered, so a program lowered for a TPU has
  native convolutions wherever it is lowered.

  Args:
    forward: (x, kernel, stride) -> y.
    image_grad: (kernel, g, x, stride) -> gradient like x, of which only the shape is
      read; g is the gradient of y.
    kernel_grad: (x, g, kernel, stride) -> gradient like the kernel, of which only the
      shape is read.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
  def conv(x, kernel, stride):
    return lax.platform_dependent(
      x,
      kernel,
      cpu=functools.partial(forward, stride=stride),
      default=functools.partial(native_conv, stride=stride),
    )

  def conv_forward(x, kernel, stride):
    return conv(x, kernel, stride), (x, kernel)

  def conv_backward(stride, residuals, g):
    x, kernel = residuals

    def native_image_grad(kernel, g):
      transpose = jax.linear_transpose(lambda x: native_conv(x, kernel, stride), x)
      return transpose(g)[0]

    def native_kernel_grad(x, g):
      transpose = jax.linear_transpose(lambda w: native_conv(x, w, stride), kernel)
      return transpose(g)[0]

    return (
      lax.platform_dependent(
        kernel,
        g,
        cpu=functools.partial(image_grad, x=x, stride=stride),
        default=native_image_grad,
      ),
      lax.platform_dependent(
        x,
        g,
        cpu=functools.partial(kernel_grad, kernel=kernel, stride=stride),
        default=native_kernel_grad,
      ),
    )

  conv.defvjp(conv_forward, conv_backward)
  return conv


depthwise_conv = _with_cpu_version(
  cpu_conv.depthwise_forward,
  cpu_conv.depthwise_image_grad,
  cpu_conv.depthwise_kernel_grad,
)
pointwise_conv = _with_cpu_version(
  cpu_conv.pointwise_forward,
  cpu_conv.pointwise_image_grad,
  cpu_conv.pointwise_kernel_grad,
)
patches_conv = _with_cpu_version(
  cpu_conv.patches_forward, cpu_conv.patches_image_grad, cpu_conv.patches_kernel_grad
)


class Conv(nn.Module):
  """Convolves, within groups of channels.

  Attributes:
    features: output channels.
    kernel_size: side of the square kernel.
    stride: in both directions.
    groups: equal parts of the channels, each convolved alone; as many as there are
      channels make a depthwise convolution.
    use_bias: whether a bias, at first zero, is added.
    even_padding: pad by (k - 1) / 2 on every side, as PyTorch does, and SAT's ResNets;
      'SAME' pads even sides with a stride of 2 by one less at the top and left.
    dtype: type of the arithmetic and of the result; parameters are float32.
    cpu_kernels: whether the CPU gets its own formulations, which have reverse-mode
      derivatives of any order and no forward-mode ones; False leaves XLA's own
      convolution everywhere, which has all.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  groups: int = 1
  use_bias: bool = False
  even_padding: bool = False
  dtype: Any = jnp.float32
  cpu_kernels: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, ceil(H / stride), ceil(W / stride), features]."""
    if x.shape[-1] % self.groups or self.features % self.groups:
      raise errors.UserError(
        f'{x.shape[-1]} channels to {self.features} cannot be convolved in '
        f'{self.groups} groups; allowed: a number that divides both'
      )
    channels = x.shape[-1] // self.groups
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
    if self.even_padding and self.stride > 1:
      border = (self.kernel_size - 1) // 2
      return native_conv(x, kernel, self.stride, [(border, border)] * 2)
    if self.cpu_kernels:
      if self.groups == x.shape[-1] == self.features:
        return depthwise_conv(x, kernel, self.stride)
      if self.groups == 1 and self.kernel_size == self.stride == 1:
        return pointwise_conv(x, kernel, self.stride)
      if self.groups == 1 and x.shape[-1] <= MAX_PATCH_CHANNELS:
        return patches_conv(x, kernel, self.stride)
    return native_conv(x, kernel, self.stride)
