"""What every network has: its layers' common arguments, first line and last layer."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax import errors
from advprop_jax.models.conv import Conv
from advprop_jax.models.norm import BatchNorm


class Layers(NamedTuple):
  """Makers of layers that have the network's own arguments already."""

  conv: Any  # See `Conv`.
  batch_norm: Any  # See `BatchNorm`.


def create_layers(network) -> Layers:
  """Returns the makers of a network's convolutions and norms, from its attributes."""
  return Layers(
    conv=functools.partial(Conv, dtype=network.dtype, cpu_kernels=network.cpu_kernels),
    batch_norm=functools.partial(
      BatchNorm,
      momentum=network.bn_momentum,
      epsilon=network.bn_epsilon,
      axis_name=network.bn_axis_name,
      axis_index_groups=network.bn_axis_index_groups,
      cpu_kernels=network.cpu_kernels,
    ),
  )


def normalise(network, image: jax.Array, *, min_size: int) -> jax.Array:
  """Returns (image - mean) / std, [B, H, W, 3] in the network's dtype.

  Args:
    network: has mean and std per channel, in the units of the image.
    image: float32 [B, H, W, 3] in [0, 1].
    min_size: of H and W.

  Raises:
    UserError: the image is smaller.
  """
  # One by one: the sides may be symbolic, of which `min` can make no number.
  if image.shape[1] < min_size or image.shape[2] < min_size:
    raise errors.UserError(
      f'image size {image.shape[1]}x{image.shape[2]} is too small for '
      f'{type(network).__name__}; allowed: {min_size} or more'
    )
  mean = jnp.asarray(network.mean, image.dtype)
  std = jnp.asarray(network.std, image.dtype)
  return ((image - mean) / std).astype(network.dtype)


def classify(network, x: jax.Array, *, kernel_init) -> jax.Array:
  """Returns logits, float32 [B, num_classes], of features, [B, C].

  The layer is called 'classifier'; to be called from the network's own `__call__`.
  """
  dense = nn.Dense(
    network.num_classes,
    kernel_init=kernel_init,
    dtype=network.dtype,
    name='classifier',
  )
  return dense(x).astype(jnp.float32)
