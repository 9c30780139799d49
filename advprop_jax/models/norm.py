"""Batch norm whose branch-dependent parts sit in collections of their own.

  norm         {scale, bias}: trained
  batch_stats  {mean, var}: running averages, updated only where the caller says
               `mutable=['batch_stats']`

Reading and writing are two switches: the attack may normalise with the statistics of
its batch and still leave the running ones alone. flax's own `nn.BatchNorm` keeps scale
and bias in 'params', out of a branch's reach, and cannot normalise without writing.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from advprop_jax.models import activations
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
    activation: applied to the result, in float32 as well; its parameters, if it has
      any, are in 'params', shared by all branches.
    scale_init: first value of the scale.
    cpu_kernels: whether norm and activation are one function, which keeps nothing for
      the backward pass but its input, and whose parts are the fastest ones on a CPU. It
      has reverse-mode derivatives of any order and no forward-mode ones; False leaves
      plain operations, which have all.
  """

  momentum: float
  epsilon: float
  axis_name: str | None = None
  axis_index_groups: tuple[tuple[int, ...], ...] | None = None
  activation: activations.Activation = activations.IDENTITY
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  cpu_kernels: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
    """Returns [..., C] of the same shape and type as `x`."""
    channels = (x.shape[-1],)
    scale = self.variable('norm', 'scale', self._first_scale, channels)
    bias = self.variable('norm', 'bias', jnp.zeros, channels, jnp.float32)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)

    if use_running_average:
      batch_mean, batch_var = mean.value, var.value
    else:
      batch_mean, batch_var = self._batch_statistics(x, mean.value)
      if self.is_mutable_collection('batch_stats') and not self.is_initializing():
        mean.value = self._average(mean.value, batch_mean)
        var.value = self._average(var.value, batch_var)

    multiplier = scale.value * lax.rsqrt(batch_var + self.epsilon)
    offset = bias.value - batch_mean * multiplier
    parameters = self.activation.parameters(self)
    activate = _scale_and_activate if self.cpu_kernels else _plain_scale_and_activate
    return activate(self.activation.function, x, multiplier, offset, parameters)

  def _first_scale(self, shape):
    return self.scale_init(jax.random.key(0), shape, jnp.float32)

  def _average(self, old: jax.Array, new: jax.Array) -> jax.Array:
    return self.momentum * old + (1.0 - self.momentum) * new

  def _batch_statistics(self, x: jax.Array, shift: jax.Array):
    """Returns mean and biased variance, [C] each, over the batch and the devices.

    From the means of x - shift and of its square, so that devices exchange two vectors
    once. `shift` is the running mean: around 0, float32 loses the variance of values
    whose mean is a hundred times their standard deviation.
    Source: `BatchNormalization._moments` in `utils.py` of the official code, around 0.
    """
    moments = _moments if self.cpu_kernels else _plain_moments
    mean, square = moments(x, lax.stop_gradient(shift))
    if self.axis_name is not None and not self.is_initializing():
      mean, square = lax.pmean(
        (mean, square), self.axis_name, axis_index_groups=self.axis_index_groups
      )
    return shift + mean, jnp.maximum(square - jnp.square(mean), 0.0)


def _plain_scale_and_activate(function, x, multiplier, offset, parameters):
  """Returns function(x * multiplier + offset), computed in float32, like x."""
  y = x.astype(jnp.float32) * multiplier + offset
  return function(y, *parameters).astype(x.dtype)


def _activation_gradient(function, x, multiplier, offset, parameters, g):
  """Returns the gradients to the activation's input and to each of its parameters."""
  return jax.vjp(function, x * multiplier + offset, *parameters)[1](g)


# Called, not fused: XLA:CPU would compute the activation anew for each of its readers.
_activation_gradient_on_cpu = no_inline(
  _activation_gradient, static_argnames=('function',)
)
_scale_and_activate = jax.custom_vjp(_plain_scale_and_activate, nondiff_argnums=(0,))


def _scale_and_activate_forward(function, *args):
  return _scale_and_activate(function, *args), args


def _scale_and_activate_backward(function, residuals, g):
  """Computes the activation's gradient anew from x, which the sums need anyway."""
  x, multiplier, offset, parameters = residuals
  dtype = x.dtype
  x, g = x.astype(jnp.float32), g.astype(jnp.float32)
  parameter_grads: list[jax.Array] = []
  if function is not activations.identity:
    g, *parameter_grads = lax.platform_dependent(
      x,
      multiplier,
      offset,
      parameters,
      g,
      cpu=functools.partial(_activation_gradient_on_cpu, function),
      default=functools.partial(_activation_gradient, function),
    )
  axes = tuple(range(x.ndim - 1))
  x_grad = (g * multiplier).astype(dtype)
  return x_grad, (g * x).sum(axes), g.sum(axes), tuple(parameter_grads)


_scale_and_activate.defvjp(_scale_and_activate_forward, _scale_and_activate_backward)


def _plain_moments(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the means of x - shift and of its square over all but the last axis.

  Float32 [C] each, whatever the type of x.
  """
  return _mean_and_square(x.astype(jnp.float32) - shift)


def _mean_and_square(x):
  axes = tuple(range(x.ndim - 1))
  return x.mean(axes), jnp.square(x).mean(axes)


@jax.custom_vjp
def _moments(x, shift):
  """Returns `_plain_moments`; for the backward pass only x and the shift are kept."""
  return lax.platform_dependent(
    x.astype(jnp.float32) - shift, cpu=cpu_norm.moments, default=_mean_and_square
  )


def _moments_backward(residuals, g):
  x, shift = residuals
  mean, square = (part / (x.size // x.shape[-1]) for part in g)
  x_grad = mean + 2 * (x.astype(jnp.float32) - shift) * square
  return x_grad.astype(x.dtype), jnp.zeros_like(shift)  # The shift is a constant.


_moments.defvjp(lambda x, shift: (_moments(x, shift), (x, shift)), _moments_backward)
