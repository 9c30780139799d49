"""The one idea of AdvProp: the same weights, a batch norm of its own per branch.

Variables that differ between branches live in two collections, each keyed by branch at
the top level; everything in 'params' is shared.

  params       {conv, dense, squeeze-excite ...}             trained, shared
  norms        {'clean': {scale, bias}, 'adv': {...}, ...}   trained, per branch
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


def variables(params, norms, batch_stats, branch: str):
  """Returns the variables that `model.apply` expects, for one branch."""
  return {'params': params, 'norm': norms[branch], 'batch_stats': batch_stats[branch]}


def sum_gradients(loss_fn, params, norms, inputs):
  """Returns the gradients of the sum of all branches' losses, accumulated over them.

  Branches of equal shapes and types are one `scan`: compiled once, with the peak memory
  of one branch. Others are unrolled, and XLA may keep the residuals of all of them
  alive. Figures: benchmarks/README.md.

  Args:
    loss_fn: (params, one branch's norm, one branch's input) -> (loss, auxiliary).
    params: shared by all branches.
    norms: {branch: scale and bias}.
    inputs: {branch: pytree of arrays}.

  Returns:
    ({'params': ..., 'norms': {branch: ...}}, {branch: auxiliary}).
  """

  def add(param_grads, x):
    grad = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)
    (more, norm_grads), aux = grad(params, *x)
    return jax.tree.map(jnp.add, param_grads, more), (norm_grads, aux)

  xs = [(norms[branch], inputs[branch]) for branch in inputs]
  param_grads = jax.tree.map(jnp.zeros_like, params)
  types = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x) for x in xs]
  if len(xs) > 1 and all(type_ == types[0] for type_ in types):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *xs)
    param_grads, stacked = jax.lax.scan(add, param_grads, stacked)
    outputs = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(xs))]
  else:
    outputs = []
    for x in xs:
      param_grads, output = add(param_grads, x)
      outputs.append(output)
  norm_grads, aux = (
    dict(zip(inputs, parts, strict=True)) for parts in zip(*outputs, strict=True)
  )
  return {'params': param_grads, 'norms': norm_grads}, aux
