"""Gradients of a large batch from small ones, one after the other, on each device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (batch_stats, batch, rng) -> (gradients, new batch_stats, metrics).
GradientsFn = Callable[[Any, dict, Any], tuple[Any, Any, dict]]


def accumulate(
  gradients_fn: GradientsFn,
  batch_stats,
  batch: dict[str, jax.Array],
  rng,
  *,
  num_parts: int,
) -> tuple[Any, Any, dict]:
  """Returns the mean gradients and metrics of equal parts of a batch.

  Every part is attacked on its own and normalised by its own statistics; the running
  statistics go from part to part.

  Args:
    gradients_fn: what is done with each part.
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
