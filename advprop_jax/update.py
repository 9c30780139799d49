"""One update from a batch: in parts, over all devices, for any training method."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advprop_jax import layer_rates, nonfinite, parallel, train_state

# (trained, batch_stats, batch, {'device': key, 'shared': key})
#   -> (gradients, new batch_stats, metrics).
GradientsFn = Callable[[Any, Any, dict, dict], tuple[Any, Any, dict]]

# Of `_causes`, in the order of the step: what is first is nearest to the fault.
_NAMES = ('statistics', 'loss', 'gradients', 'update_norm')


def make_step(
  gradients_fn: GradientsFn,
  tx: optax.GradientTransformation,
  *,
  ema_decay: float,
  accumulate_steps: int,
  frozen: tuple[str, ...] = (),
  skip_nonfinite: bool = False,
):
  """Returns `step(state, batch) -> (state, metrics)`, for `parallel.data_parallel`.

  To the metrics of the method it adds 'grad_norm' and 'update_norm', float32: the
  length of the mean gradient, and of what the optimizer made of it and was added, over
  all that is trained; 'all_finite', bool: whether loss, statistics, gradients, updates
  and new state are; and 'nonfinite', int32: which of them is not, see `describe`.

  Args:
    gradients_fn: what a method does with the images of one device. It gets what is
      trained, {'params': ..., 'norms': {branch: ...}}, two random keys, one of the
      device and one that all devices share, and returns gradients of what is trained.
      Its metrics have the 'loss'.
    tx: optimizer of what is trained.
    ema_decay: see `optim.ema_update`.
    accumulate_steps: parts that the batch is computed in, see `accumulate`.
    frozen: patterns of what `tx` does not train, see `layer_rates.freeze`.
    skip_nonfinite: whether a step that is not finite returns the state as it was, bit
      for bit. All devices decide alike, since they see the same means.
  """

  def step(state: train_state.TrainState, batch):
    results = accumulate(
      functools.partial(gradients_fn, state.trained),
      state.batch_stats,
      batch,
      {
        'device': parallel.device_rng(state.rng, state.step),
        'shared': parallel.shared_rng(state.rng, state.step),
      },
      num_parts=accumulate_steps,
    )
    # Not inside a loss: under pmap a collective there would be differentiated, too.
    grads, batch_stats, metrics = parallel.mean(results)
    new, updates = state.update(tx, grads, batch_stats, ema_decay=ema_decay)
    # Of what is frozen nothing is read: its backward pass is left out.
    grads = layer_rates.leave_out(grads, frozen)
    metrics['grad_norm'] = norm(grads)
    metrics['update_norm'] = norm(updates)
    causes = _causes(grads, batch_stats, metrics['loss'], metrics['update_norm'])
    found = nonfinite.first(causes)
    if skip_nonfinite:
      chosen = jax.tree.map(
        functools.partial(jnp.where, found < 0),
        new.replace(rng=None),
        state.replace(rng=None),
      )
      new = chosen.replace(rng=state.rng)
    # Last: the sum of finite values may be infinite, and averages may be from before.
    in_state = new.first_nonfinite()
    in_state = jnp.where(in_state < 0, -1, len(jax.tree.leaves(causes)) + in_state)
    metrics['nonfinite'] = jnp.where(found < 0, in_state, found)
    metrics['all_finite'] = metrics['nonfinite'] < 0
    return new, metrics

  return step


def _causes(grads, batch_stats, loss, update_norm) -> list[Any]:
  """Returns what shows that a step is not finite, by _NAMES."""
  return [batch_stats, loss, grads, update_norm]


def describe(
  state: train_state.TrainState, place: int, *, frozen: tuple[str, ...]
) -> tuple[str, bool]:
  """Returns (name of the array, whether only the new state has it) of a step.

  In the second case the step cannot be skipped.

  Args:
    state: the step's.
    place: the step's metric 'nonfinite', 0 or more.
    frozen: see `make_step`.
  """
  scalar = np.float32(0)
  grads = layer_rates.leave_out(state.trained, frozen)
  causes = _causes(grads, state.batch_stats, scalar, scalar)
  count = len(jax.tree.leaves(causes))
  if place >= count:
    return state.name_of_array(place - count), True
  index, *path = nonfinite.name(causes, place).split('/')
  return '/'.join([_NAMES[int(index)], *path]), False


def norm(tree) -> jax.Array:
  """Returns the L2 norm over all values of a tree of float32 arrays, float32 []."""
  vectors = [x.reshape(-1) for x in jax.tree.leaves(tree)]
  # The many small ones as one. And products: XLA compiles them ten times as fast as it
  # does reductions.
  small = [x for x in vectors if x.size < nonfinite.SMALL]
  large = [x for x in vectors if x.size >= nonfinite.SMALL]
  joined = [jnp.concatenate(small), *large] if small else large
  return jnp.sqrt(sum(jnp.vdot(x, x, precision='highest') for x in joined))


def accumulate(
  gradients_fn: Callable[[Any, dict, Any], tuple[Any, Any, dict]],
  batch_stats,
  batch: dict[str, jax.Array],
  rng,
  *,
  num_parts: int,
) -> tuple[Any, Any, dict]:
  """Returns the mean gradients and metrics of equal parts of a batch.

  Every part is attacked on its own and normalised by its own statistics. The running
  statistics go from part to part, so that a step moves them once for each.

  Args:
    gradients_fn: what is done with each part; as in `make_step`, of one network.
    batch_stats: running statistics before the first.
    batch: arrays [B, ...] of one device.
    rng: a key, or a pytree of them; every part has others of its own. A single part
      has these very keys.
    num_parts: how many; it divides B.

  Returns:
    (gradients, the running statistics after the last part, metrics).
  """
  if num_parts == 1:
    return gradients_fn(batch_stats, batch, rng)

  def part(batch_stats, x):
    small_batch, i = x
    small_rng = jax.tree.map(lambda key: jax.random.fold_in(key, i), rng)
    grads, batch_stats, metrics = gradients_fn(batch_stats, small_batch, small_rng)
    return batch_stats, (grads, metrics)

  def add(carry, x):
    batch_stats, sums = carry
    batch_stats, more = part(batch_stats, x)
    return (batch_stats, jax.tree.map(jnp.add, sums, more)), None

  parts = jax.tree.map(lambda x: x.reshape((num_parts, -1) + x.shape[1:]), batch)
  xs = (parts, jnp.arange(num_parts))
  shapes = jax.eval_shape(part, batch_stats, jax.tree.map(lambda x: x[0], xs))[1]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), xs)
  grads, metrics = jax.tree.map(lambda x: x / num_parts, sums)
  return grads, batch_stats, metrics
