"""Batch norm whose branch-dependent parts sit in collections of their own.

  norm         {scale, bias}: trained
  batch_stats  {mean, var}: running averages, updated only where the caller says
               `mutable=['batch_stats']`

Reading and writing are two switches: the attack may normalise with the statistics of
its batch and still leave the running ones alone. flax's own `nn.BatchNorm` keeps scale
and bias in 'params', out of a branch's reach, and cannot normalise without writing.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from advprop_jax.models.cpu import norm as cpu_norm
from advprop_jax.models.cpu.no_inline import no_inline


class BatchNorm(nn.Module):
  """Normalises the last axis over all others, in float32, whatever type comes in.

  Knows nothing of branches: the caller passes one branch's collections (see
  `branches.variables`), so the same model serves clean, adversarial or plain training,
  and a released checkpoint is simply the clean branch.

  Attributes:
    momentum: weight of the old running value.
    epsilon: added to the variance.
    axis_name: name of the devices' axis to share batch statistics over; None: the
      statistics of each device's own batch.
    axis_index_groups: groups of device indices that share statistics; None: all.
    activation: applied to the result, in float32 as well. The two are one function,
      which keeps nothing for the backward pass but its input; it has reverse-mode
      derivatives of any order and no forward-mode ones.
  """

  momentum: float
  epsilon: float
  axis_name: str | None = None
  axis_index_groups: tuple[tuple[int, ...], ...] | None = None
  activation: Callable[[jax.Array], jax.Array] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
    """Returns [..., C] of the same shape and type as `x`."""
    channels = (x.shape[-1],)
    scale = self.variable('norm', 'scale', jnp.ones, channels, jnp.float32)
    bias = self.variable('norm', 'bias', jnp.zeros, channels, jnp.float32)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)

    if use_running_average:
      batch_mean, batch_var = mean.value, var.value
    else:
      batch_mean, batch_var = self._batch_statistics(x)
      if self.is_mutable_collection('batch_stats') and not self.is_initializing():
        mean.value = self._average(mean.value, batch_mean)
        var.value = self._average(var.value, batch_var)

    multiplier = scale.value * lax.rsqrt(batch_var + self.epsilon)
    offset = bias.value - batch_mean * multiplier
    return _scale_and_activate(self.activation, x, multiplier, offset)

  def _average(self, old: jax.Array, new: jax.Array) -> jax.Array:
    return self.momentum * old + (1.0 - self.momentum) * new

  def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance, [C] each, over the batch and the devices.

    From the means of x and of x squared, so that devices exchange two vectors once.
    Source: `BatchNormalization._moments` in `utils.py` of the official code.
    """
    mean, square = _moments(x)
    if self.axis_name is not None and not self.is_initializing():
      mean, square = lax.pmean(
        (mean, square), self.axis_name, axis_index_groups=self.axis_index_groups
      )
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def _activation_gradient(activation, x, multiplier, offset, g):
  return jax.vjp(activation, x * multiplier + offset)[1](g)[0]


# Called, not fused: XLA:CPU would compute the activation anew for each of its readers.
_activation_gradient_on_cpu = no_inline(
  _activation_gradient, static_argnames=('activation',)
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scale_and_activate(activation, x, multiplier, offset):
  """Returns activation(x * multiplier + offset), computed in float32, like x."""
  y = x.astype(jnp.float32) * multiplier + offset
  return (y if activation is None else activation(y)).astype(x.dtype)


def _scale_and_activate_forward(activation, *args):
  return _scale_and_activate(activation, *args), args


def _scale_and_activate_backward(activation, residuals, g):
  """Computes the activation's gradient anew from x, which the sums need anyway."""
  x, multiplier, offset = residuals
  x, g = x.astype(jnp.float32), g.astype(jnp.float32)
  if activation is not None:
    gradient = functools.partial(_activation_gradient, activation)
    called = functools.partial(_activation_gradient_on_cpu, activation)
    g = lax.platform_dependent(x, multiplier, offset, g, cpu=called, default=gradient)
  axes = tuple(range(x.ndim - 1))
  return (g * multiplier).astype(residuals[0].dtype), (g * x).sum(axes), g.sum(axes)


_scale_and_activate.defvjp(_scale_and_activate_forward, _scale_and_activate_backward)


@jax.custom_vjp
def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the means of x and of x squared over all but the last axis.

  Float32 [C] each, whatever the type of x; for the backward pass only x is kept.
  """
  return lax.platform_dependent(
    x.astype(jnp.float32), cpu=cpu_norm.moments, default=_plain_moments
  )


def _moments_backward(x, g):
  mean, square = (part / (x.size // x.shape[-1]) for part in g)
  return ((mean + 2 * x.astype(jnp.float32) * square).astype(x.dtype),)


_moments.defvjp(lambda x: (_moments(x), x), _moments_backward)


def _plain_moments(x):
  axes = tuple(range(x.ndim - 1))
  return x.mean(axes), jnp.square(x).mean(axes)
