"""Finds the first array of a tree that has a value which is not finite."""

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 4096  # Values of an array.


def first(tree) -> jax.Array:
  """Returns which array of a tree is the first that is not finite; inside a step.

  Args:
    tree: arrays; those that are not of floats do not count.

  Returns:
    Its place among the arrays of floats in the order of `jax.tree.leaves`, int32 []; -1
    if all are finite.
  """
  leaves = _floats(tree)
  # The many small arrays as one: XLA would compile a reduction of each.
  small = [i for i, (_, x) in enumerate(leaves) if x.size < SMALL]
  large = [i for i, (_, x) in enumerate(leaves) if x.size >= SMALL]
  found = [
    jnp.where(jnp.isfinite(leaves[i][1]).all(), len(leaves), jnp.int32(i))
    for i in large
  ]
  if small:
    is_bad = ~jnp.isfinite(jnp.concatenate([leaves[i][1].reshape(-1) for i in small]))
    ends = np.cumsum([leaves[i][1].size for i in small], dtype=np.int32)
    array = jnp.searchsorted(ends, is_bad.argmax(), side='right')
    place = jnp.asarray(small, jnp.int32)[array]
    found.append(jnp.where(is_bad.any(), place, len(leaves)))
  place = jnp.stack(found).min()
  return jnp.where(place < len(leaves), place, -1).astype(jnp.int32)


def name(tree, place: int) -> str:
  """Returns the name of an array that `first` has found, 'gradients/params/kernel'."""
  path, _ = _floats(tree)[place]
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _floats(tree):
  return [
    (path, x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
