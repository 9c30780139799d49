"""Activation functions, by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax import errors


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
  """Returns x * sigmoid(x), also called swish. Source: Ramachandran et al. 2017."""
  return x * nn.sigmoid(x)


@silu.defjvp
def _silu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  # The minimum changes nothing. But XLA stores whatever takes an exponential and has
  # two readers, and now the sigmoid has one.
  s = jnp.minimum(nn.sigmoid(x), 1)
  return silu(x), dx * (s * (1 + x * (1 - s)))


ACTIVATIONS = {'silu': silu, 'swish': silu, 'relu': nn.relu}


def get_activation(name: str):
  """Returns the named function. Raises UserError for an unknown name."""
  errors.check_choice('activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]
