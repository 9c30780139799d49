"""The one idea of AdvProp: the same weights, a batch norm of its own per branch.

Variables that differ between branches live in two collections, each keyed by branch at
the top level; everything in 'params' is shared.

  params       {conv, dense, squeeze-excite ...}             trained, shared
  norm         {'clean': {scale, bias}, 'adv': {...}, ...}   trained, per branch
  batch_stats  {'clean': {mean, var},   'adv': {...}, ...}   running, per branch

A branch is a name and there may be any number of them. CLEAN is the main one: it is
what evaluation uses and what a released model consists of.

Source: Xie et al. 2020 (AdvProp), section 4.2, 'Disentangled Learning via An Auxiliary
BN'; scale and bias are separate in every public implementation.
"""

import jax
import jax.numpy as jnp

CLEAN, ADV = 'clean', 'adv'


def fork(collection, branches):
  """Returns {branch: copy of `collection`} for every branch.

  Real copies, not aliases: a donated pytree may not hold the same buffer twice.
  """
  return {branch: jax.tree.map(jnp.copy, collection) for branch in branches}


def variables(params, norm, batch_stats, branch: str):
  """Returns the variables that `model.apply` expects, for one branch."""
  return {'params': params, 'norm': norm[branch], 'batch_stats': batch_stats[branch]}
