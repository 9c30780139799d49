"""Schedules, optimizers and the moving average of weights, as optax transformations.

What is trained is one pytree: {'params': ..., 'norm': {branch: {scale, bias}}}.
"""

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(
  *, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Returns a linear climb from 0 to `peak`, then half a cosine down to 0.

  Source: Goyal et al. 2017 (warm-up), Loshchilov & Hutter 2017 (cosine).
  """
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_steps else peak,
    peak_value=peak,
    warmup_steps=warmup_steps,
    decay_steps=max(total_steps, warmup_steps + 1),
  )
  # optax mixes its integer count with floats, which strict dtype promotion forbids.
  return lambda step: schedule(jnp.asarray(step, jnp.float32))


def sgd(
  schedule: optax.Schedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Returns Nesterov SGD with coupled weight decay, wd * w added to the gradient.

  The decay spares the norms' scales and biases, whatever their branch, and nothing
  else. Source: the official code decays all but batch-norm variables.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask={'params': True, 'norm': False}),
    optax.sgd(schedule, momentum=momentum, nesterov=True),
  )


def ema_update(ema, new, *, step, decay: float):
  """Returns the moving average after `step` updates, d * ema + (1 - d) * new.

  With d = min(decay, (1 + step) / (10 + step)), so that early values do not linger.

  Args:
    ema: pytree of float32 arrays: weights, norms and batch statistics.
    new: pytree like `ema`, the newest values.
    step: number of updates done before this one, int32 scalar.
    decay: final weight of the old value. Source: the official code, 0.9999 with
      `tf.train.ExponentialMovingAverage(decay, num_updates=global_step)`.
  """
  step = jnp.asarray(step, jnp.float32)
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda old, x: decay * old + (1.0 - decay) * x, ema, new)
