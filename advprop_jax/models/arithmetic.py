"""Counts, from a model's layers alone, the arithmetic that a step cannot do without.

One multiply-add is two operations (FLOPs). Convolutions and dense layers are nearly all
of it; of what is done to each value between them, the counts are below. Exponentials
and roots are left out, as XLA leaves them out of its 'flops'.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax.models import activations, conv, norm

# Operations per value that passes a norm or an activation.
NORM = 2  # x * multiplier + offset, the rest is per channel.
NORM_GRAD = 1  # g * multiplier.
STATISTICS = 3  # Sums of x and of x * x.
STATISTICS_GRAD = 6  # Sums of g and of g * x; g + mean's term + x * square's term.
# Of every activation. Others cost more or less, which changes a sum by about 1 %.
SWISH = 4  # x * (1 / (1 + exp(-x))).
SWISH_GRAD = 5  # g * (s * (1 + x * (1 - s))), given the sigmoid s.
# Per value that squeeze-excite gates: the mean and the product; their two gradients.
GATE = 2
GATE_GRAD = 4


class Count(NamedTuple):
  """What one image meets on its way through a model."""

  multiply_adds: int  # Of convolutions and dense layers ...
  first_multiply_adds: int  # ... and of the first of them, the stem.
  normalised: int  # Values that pass a norm.
  activated: int  # Values that pass an activation.
  gated: int  # Values that squeeze-excite multiplies.


def count_model(model: nn.Module, image_size: int) -> Count:
  """Counts by tracing the model on one image [1, image_size, image_size, 3]."""
  multiply_adds, normalised, activated = [], {}, []

  def record(call, args, kwargs, context):
    y = call(*args, **kwargs)
    module = context.module
    if context.method_name == '__call__':
      if isinstance(module, conv.Conv):
        channels = args[0].shape[-1] // module.groups
        multiply_adds.append(y.size * module.kernel_size**2 * channels)
      elif isinstance(module, nn.Conv):
        channels = args[0].shape[-1] // module.feature_group_count
        multiply_adds.append(y.size * int(np.prod(module.kernel_size)) * channels)
      elif isinstance(module, nn.Dense):
        multiply_adds.append(y.size * args[0].shape[-1])
      elif isinstance(module, norm.BatchNorm):
        normalised[module.path] = y.size
        if module.activation != activations.IDENTITY:
          activated.append(y.size)
      elif isinstance(module, activations.Activate):
        activated.append(y.size)
    return y

  image = jnp.zeros((1, image_size, image_size, 3))
  with nn.intercept_methods(record):
    jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  return Count(
    multiply_adds=sum(multiply_adds),
    first_multiply_adds=multiply_adds[0],
    normalised=sum(normalised.values()),
    activated=sum(activated),
    gated=sum(size for path, size in normalised.items() if path[-1] == 'depthwise_bn'),
  )


def forward(count: Count, *, running: bool) -> int:
  """Returns the FLOPs of one image's logits, through running or batch statistics."""
  per_norm = NORM + (0 if running else STATISTICS)
  return (
    2 * count.multiply_adds
    + per_norm * count.normalised
    + SWISH * count.activated
    + GATE * count.gated
  )


def backward(
  count: Count, *, running: bool, image: bool = False, weights: bool = False
) -> int:
  """Returns the FLOPs of one image's gradients.

  Args:
    count: of the model.
    running: whether the norms are constants or functions of the batch.
    image: whether the gradient to the image itself is made.
    weights: whether those to the weights are made.
  """
  multiply_adds = count.multiply_adds * (2 if weights else 1)
  if not image:
    multiply_adds -= count.first_multiply_adds
  per_norm = NORM_GRAD + (0 if running else STATISTICS_GRAD)
  return (
    2 * multiply_adds
    + per_norm * count.normalised
    + SWISH_GRAD * count.activated
    + GATE_GRAD * count.gated
  )


def image_grad(count: Count, *, running: bool) -> int:
  """Returns the FLOPs of one image's gradient: one step of an attack."""
  return forward(count, running=running) + backward(count, running=running, image=True)


def update(count: Count) -> int:
  """Returns the FLOPs of one image's logits and its gradient to the weights."""
  return forward(count, running=False) + backward(count, running=False, weights=True)


def train(count: Count, *, clean: float, attacked: float, num_steps: int) -> float:
  """Returns the FLOPs of a training step per image of the batch.

  Args:
    count: of the model.
    clean: streams without an attack.
    attacked: streams with one, through running statistics.
    num_steps: of the attack.
  """
  attack = num_steps * image_grad(count, running=True)
  return (clean + attacked) * update(count) + attacked * attack
