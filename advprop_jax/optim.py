"""Schedules, optimizers and the moving average of weights, as optax transformations.

What is trained is one pytree: {'params': ..., 'norms': {branch: {scale, bias}}}.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from advprop_jax import errors


def staircase(
  *,
  learning_rate: float,
  warmup_epochs: float,
  decay_epochs: float,
  decay_rate: float,
  batch_size: int,
  steps_per_epoch: float,
) -> optax.Schedule:
  """Returns a linear warm-up from 0 to the peak and steps down by `decay_rate`.

  The steps down are counted from step 0, not from the end of the warm-up: that ends
  below the peak if it is longer than `decay_epochs`.

  Args:
    learning_rate: at the peak, for each 256 images of the batch.
    warmup_epochs: length of the warm-up; 0: none.
    decay_epochs: length of one stair.
    decay_rate: factor between two stairs.
    batch_size: images of a step, of all devices.
    steps_per_epoch: need not be whole.

  Source: `build_learning_rate` in `utils.py` of the official code.
  """
  peak = _peak(learning_rate, batch_size)
  warmup_steps = int(warmup_epochs * steps_per_epoch)
  decay_steps = decay_epochs * steps_per_epoch

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    decayed = peak * decay_rate ** jnp.floor(step / decay_steps)
    warming = peak * step / max(1, warmup_steps)
    return jnp.where(step < warmup_steps, warming, decayed)

  return schedule


def cosine(
  *,
  learning_rate: float,
  warmup_epochs: float,
  batch_size: int,
  steps_per_epoch: float,
  total_steps: int,
) -> optax.Schedule:
  """Returns a linear warm-up from 0 to the peak, then half a cosine down to 0.

  Args:
    learning_rate: at the peak, for each 256 images of the batch.
    warmup_epochs: length of the warm-up; 0: none.
    batch_size: images of a step, of all devices.
    steps_per_epoch: need not be whole.
    total_steps: of the run; the last one has the value 0.

  Source: Goyal et al. 2017 (warm-up), Loshchilov & Hutter 2017 (cosine).
  """
  peak = _peak(learning_rate, batch_size)
  warmup_steps = int(warmup_epochs * steps_per_epoch)
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_steps else peak,
    peak_value=peak,
    warmup_steps=warmup_steps,
    decay_steps=max(total_steps, warmup_steps + 1),
  )
  # optax mixes its integer count with floats, which strict dtype promotion forbids.
  return lambda step: schedule(jnp.asarray(step, jnp.float32))


def milestones(
  *,
  learning_rate: float,
  warmup_learning_rate: float,
  warmup_epochs: float,
  milestones_epochs: tuple[float, ...],
  decay_rate: float,
  batch_size: int,
  steps_per_epoch: float,
) -> optax.Schedule:
  """Returns a linear warm-up to the peak, times `decay_rate` at each milestone.

  Args:
    learning_rate: at the peak, for each 256 images of the batch.
    warmup_learning_rate: at the first step of a warm-up, unless the peak is less.
    warmup_epochs: length of the warm-up; 0: none.
    milestones_epochs: epochs, counted from the first step.
    decay_rate: factor at each milestone.
    batch_size: images of a step, of all devices.
    steps_per_epoch: need not be whole.

  Source: Goyal et al. 2017; `main.py` of cihangxie/SmoothAdversarialTraining.
  """
  peak = _peak(learning_rate, batch_size)
  warmup_steps = int(warmup_epochs * steps_per_epoch)
  if not all(0 < epoch < math.inf for epoch in milestones_epochs):
    raise errors.UserError(
      f'optim.schedule.milestones_epochs is {milestones_epochs}; allowed: more than 0, '
      'finite'
    )
  borders = jnp.array([epoch * steps_per_epoch for epoch in milestones_epochs])
  # A peak below it, of a small batch, needs no warm-up.
  first = min(warmup_learning_rate, peak)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warming = first + (peak - first) * step / max(1, warmup_steps)
    passed = (step >= borders).sum().astype(jnp.float32)
    return jnp.where(step < warmup_steps, warming, peak * decay_rate**passed)

  return schedule


def _peak(learning_rate: float, batch_size: int) -> float:
  """Returns the rate of a batch by the linear rule. Source: Goyal et al. 2017."""
  return learning_rate * batch_size / 256


def rmsprop(
  schedule: optax.Schedule,
  *,
  decay: float,
  momentum: float,
  epsilon: float,
  weight_decay: float,
) -> optax.GradientTransformation:
  """Returns RMSProp as TensorFlow 1 has it, with coupled weight decay as in `sgd`.

    ms = decay * ms + (1 - decay) * g^2            from ms = 1
    m = momentum * m + learning_rate * g / sqrt(ms + epsilon)
    w = w - m

  The learning rate stands inside the momentum: a change of it acts slowly.

  Source: `tf.train.RMSPropOptimizer`, which the official code uses.
  """
  return optax.chain(
    _coupled_weight_decay(weight_decay),
    optax.rmsprop(
      schedule,
      decay=decay,
      eps=epsilon,
      initial_scale=1.0,
      eps_in_sqrt=True,
      momentum=momentum,
    ),
  )


def sgd(
  schedule: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  decay_biases: bool = True,
  nesterov: bool = True,
) -> optax.GradientTransformation:
  """Returns SGD with coupled weight decay.

  Args:
    schedule: of the learning rate.
    nesterov: whether the momentum is Nesterov's.
    momentum: weight of the old direction.
    weight_decay: see `_coupled_weight_decay`.
    decay_biases: whether it also acts on biases. Source of False: `main.py` of
      cihangxie/SmoothAdversarialTraining, where it acts on names that end in W.
  """
  return optax.chain(
    _coupled_weight_decay(weight_decay, decay_biases=decay_biases),
    optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
  )


# Kinds of `config.optim.schedule` and `config.optim.optimizer`.
SCHEDULES = {'staircase': staircase, 'cosine': cosine, 'milestones': milestones}
OPTIMIZERS: dict[str, Any] = {'rmsprop': rmsprop, 'sgd': sgd}


def _coupled_weight_decay(
  weight_decay: float, *, decay_biases: bool = True
) -> optax.GradientTransformation:
  """Returns the addition of wd * w to the gradient, that of wd / 2 * |w|^2 to the loss.

  The decay spares the norms' scales and biases, whatever their branch, and what
  activations train. Source: the official code adds wd * tf.nn.l2_loss of all trained
  variables but those of batch norms.
  """
  spared = {'activation'} if decay_biases else {'activation', 'bias'}

  def is_decayed(path, _):
    first, *_, last = (str(key.key) for key in (*path, *path))
    return first == 'params' and last not in spared

  return optax.add_decayed_weights(
    weight_decay, mask=lambda tree: jax.tree_util.tree_map_with_path(is_decayed, tree)
  )


def ema_update(ema, new, *, step, decay: float):
  """Returns the moving average after `step` updates, d * ema + (1 - d) * new.

  With d = min(decay, (1 + step) / (10 + step)), so that early values do not linger. The
  average of what does not change is that very value, without an error of rounding.

  Args:
    ema: pytree of float32 arrays: weights, norms and batch statistics.
    new: pytree like `ema`, the newest values.
    step: number of updates done, this one included, int32 scalar.
    decay: final weight of the old value. Source: the official code, 0.9999 with
      `tf.train.ExponentialMovingAverage(decay, num_updates=global_step)`, applied once
      the step has been counted.
  """
  step = jnp.asarray(step, jnp.float32)
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda old, x: old + (1.0 - d) * (x - old), ema, new)
