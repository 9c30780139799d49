"""Activation functions, by name, with the parameters that some of them train."""

import functools
import inspect
import math
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
    """Returns an array of the shape and type of `x`, computed in float32.

    As a norm does: in bfloat16 the gradient of a trained parameter would be lost.
    """
    parameters = self.activation.parameters(self)
    return self.activation.function(x.astype(jnp.float32), *parameters).astype(x.dtype)


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


@jax.custom_jvp
def relu6(x: jax.Array) -> jax.Array:
  """Returns x between 0 and 6, with derivative 0 at both. Source: EfficientNet-Lite."""
  return nn.relu6(x)


@relu6.defjvp
def _relu6_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return relu6(x), jnp.where((x > 0) & (x < 6), dx, 0)


def softplus(x: jax.Array) -> jax.Array:
  """Returns log(1 + e^x). Source: SAT, `resnet_model.py`."""
  return nn.softplus(x)


def parametric_softplus(x: jax.Array, *, alpha: float = 10.0) -> jax.Array:
  """Returns log(1 + e^(alpha * x)) / alpha; the larger alpha, the nearer to ReLU.

  Source: SAT, section 3.2; its alpha is in none of the sources that we could read.
  """
  return nn.softplus(alpha * x) / alpha


def gelu(x: jax.Array) -> jax.Array:
  """Returns GELU by its approximation with tanh. Source: SAT, `resnet_model.py`."""
  return nn.gelu(x, approximate=True)


def gelu_exact(x: jax.Array) -> jax.Array:
  """Returns x times the cumulative distribution function of the standard normal.

  Source: Hendrycks & Gimpel 2016.
  """
  return nn.gelu(x, approximate=False)


def elu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
  """Returns x, below 0 alpha * (e^x - 1). Source: SAT, `resnet_model.py`: alpha 1.

  With another alpha than 1 its derivative jumps at 0, from alpha to 1.
  """
  return nn.elu(x, alpha)


def celu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
  """Returns x, below 0 alpha * (e^(x / alpha) - 1). Source: SAT, section 4.3."""
  return nn.celu(x, alpha)


def smooth_relu(x: jax.Array, beta: jax.Array) -> jax.Array:
  """Returns x - log(1 + alpha * x) / alpha, below 0 nothing, with alpha = beta^2.

  Written with |x|, without a choice between two values: the gradient of the one not
  taken would be NaN. Source: SAT, `resnet_model.py`.
  """
  alpha = jnp.maximum(jnp.square(beta), 1e-6)  # At 0 the limit would be 0 / 0.
  return nn.relu(x - jnp.log1p(alpha * jnp.abs(x)) / alpha)


def mish(x: jax.Array) -> jax.Array:
  """Returns x * tanh(log(1 + e^x)). Source: SAT, `resnet_model.py`; Misra 2019."""
  return x * jnp.tanh(nn.softplus(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _relu_smooth_backward(x, alpha):
  return nn.relu(x)


@_relu_smooth_backward.defjvp
def _relu_smooth_backward_jvp(alpha, primals, tangents):
  (x,), (dx,) = primals, tangents
  return nn.relu(x), dx * nn.sigmoid(alpha * x)


def relu_smooth_backward(x: jax.Array, *, alpha: float = 10.0) -> jax.Array:
  """Returns max(0, x), with the derivative of `parametric_softplus` for its own.

  For the study of gradients, see `model.smooth_backward`. Source: SAT, section 3.2.
  """
  return _relu_smooth_backward(x, alpha)


MIN_ALPHA, MAX_ALPHA = 0.001, 1000.0  # Beyond, float32 gives NaN or a constant.
IDENTITY = Activation(identity)
RELU, RELU_SMOOTH_BACKWARD = 'relu', 'relu_smooth_backward'
# Name -> what it is. A function with an `alpha` takes another one behind a colon:
# 'celu:0.5'.
ACTIVATIONS = {
  RELU: Activation(nn.relu),
  'relu6': Activation(relu6),
  'softplus': Activation(softplus),
  'parametric_softplus': Activation(parametric_softplus),
  'silu': Activation(silu),
  'swish': Activation(silu),
  'gelu': Activation(gelu),
  'gelu_exact': Activation(gelu_exact),
  'elu': Activation(elu),
  'celu': Activation(celu),
  'smooth_relu': Activation(smooth_relu, (20.0,)),  # Source: SAT, `resnet_model.py`.
  'mish': Activation(mish),
  RELU_SMOOTH_BACKWARD: Activation(relu_smooth_backward),
}


@functools.cache  # A function is known by its identity to JAX's own caches.
def get_activation(name: str) -> Activation:
  """Returns the named activation, 'silu' or, with an alpha of its own, 'celu:0.5'.

  Raises:
    UserError: the name is unknown, or the alpha is none.
  """
  kind, colon, alpha_text = name.partition(':')
  errors.check_choice('activation', kind, ACTIVATIONS)
  activation = ACTIVATIONS[kind]
  if not colon:
    return activation
  if 'alpha' not in inspect.signature(activation.function).parameters:
    raise errors.UserError(f'activation {name!r}: {kind} has no alpha; allowed: {kind}')
  try:
    alpha = float(alpha_text)
  except ValueError:
    alpha = math.nan
  if not MIN_ALPHA <= alpha <= MAX_ALPHA:
    raise errors.UserError(
      f'activation {name!r}: {alpha_text!r} is no alpha; allowed: {MIN_ALPHA} to '
      f"{MAX_ALPHA}, as in '{kind}:0.5'"
    )
  return Activation(functools.partial(activation.function, alpha=alpha))
