"""Activation functions, by name, with the parameters that some of them train."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax import errors


class Activation(NamedTuple):
  """A function of values and, if it has any, of trained parameters of its own."""

  function: Callable[..., jax.Array]  # (x, *parameters, each []) -> like x.
  initial: tuple[float, ...] = ()  # The parameters' first values, at every site.

  def parameters(self, module: nn.Module) -> tuple[jax.Array, ...]:
    """Returns the parameters of a module's site, float32 [] each; inside its call."""
    if not self.initial:
      return ()
    first = jnp.array(self.initial, jnp.float32)
    return tuple(module.param('activation', lambda rng: first))


class Activate(nn.Module):
  """Applies an activation where no norm comes before it.

  Attributes:
    activation: what is applied.
  """

  activation: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns an array of the shape and type of `x`."""
    parameters = self.activation.parameters(self)
    return self.activation.function(x, *(p.astype(x.dtype) for p in parameters))


def identity(x: jax.Array) -> jax.Array:
  """Returns x: what a norm that nothing is applied to has for an activation."""
  return x


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
  """Returns x * sigmoid(x), also called swish. Source: Ramachandran et al. 2017."""
  return x * nn.sigmoid(x)


@silu.defjvp
def _silu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  # min(s, 1) == s. XLA:CPU materialises an exponential with two consumers; through
  # `minimum` it has one and is fused. Speed on the CPU only.
  s = jnp.minimum(nn.sigmoid(x), 1)
  return silu(x), dx * (s * (1 + x * (1 - s)))


IDENTITY = Activation(identity)
ACTIVATIONS = {
  'silu': Activation(silu),
  'swish': Activation(silu),
  'relu': Activation(nn.relu),
}


def get_activation(name: str) -> Activation:
  """Returns the named activation. Raises UserError for an unknown name."""
  errors.check_choice('activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]
