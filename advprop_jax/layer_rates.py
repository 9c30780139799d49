"""How fast each layer learns: frozen ones not at all, lower ones less than upper ones.

What is trained is one pytree, {'params': ..., 'norms': {branch: {scale, bias}}}. An
array in it has a name, '<layer path>/<name>', without the branch: 'stem_conv/kernel',
'blocks_0/expand_bn/scale'. What is said of a name holds in the norms of every branch.
"""

import fnmatch
import operator
import re
from typing import Any

import jax
import optax

from advprop_jax import errors


def freeze(
  tx: optax.GradientTransformation, patterns: tuple[str, ...]
) -> optax.GradientTransformation:
  """Returns an optimizer that leaves some values as they are, and has no state of them.

  Neither gradients nor weight decay reach them. Running statistics are no trained
  values and follow the data all the same.

  Args:
    tx: of all other values.
    patterns: of names, as `fnmatch` reads them: 'stem_*', 'blocks_0/*'; '*' stands for
      '/', too. (): none are frozen, and the optimizer is `tx`.
  """
  if not patterns:
    return tx

  def label(name):
    return 'frozen' if _matches(name, patterns) else 'trained'

  return optax.partition(
    {'trained': tx, 'frozen': optax.set_to_zero()},
    lambda tree: jax.tree.map(label, _names(tree)),
  )


def leave_out(trained, patterns: tuple[str, ...]) -> dict[str, jax.Array]:
  """Returns the arrays of a tree like what is trained by name, but for the frozen ones.

  Args:
    trained: the values, or their gradients.
    patterns: see `freeze`.
  """
  named = zip(jax.tree.leaves(_names(trained)), jax.tree.leaves(trained), strict=True)
  return {name: x for name, x in named if not _matches(name, patterns)}


def decay(
  tx: optax.GradientTransformation, layer_decay: float
) -> optax.GradientTransformation:
  """Returns an optimizer whose learning rate falls from the classifier down.

  It is multiplied as `factors` says: exactly so, since the updates of every optimizer
  here are proportional to it. The state is that of `tx`, so that a run may go on with
  another value.

  Args:
    tx: sees all of what is trained.
    layer_decay: 1: the optimizer is `tx`.
  """
  if layer_decay == 1:
    return tx

  def update(grads, state, trained=None):
    updates, state = tx.update(grads, state, trained)
    return jax.tree.map(operator.mul, updates, factors(updates, layer_decay)), state

  return optax.GradientTransformation(tx.init, update)


def factors(trained, layer_decay: float):
  """Returns what the learning rate of each value is multiplied by, a tree of floats.

  That is layer_decay ** (number of layers above), with the layers stem, each block,
  head and classifier, as far as there are any. What has another name counts as stem.

  Source: Clark et al. 2020 (ELECTRA); Bao et al. 2021 (BEiT), `optim_factory.py` of its
  released code, where what is no block and stands before the first counts as stem, too.
  """
  names = _names(trained)
  layers = sorted({_layer(name) for name in jax.tree.leaves(names)})
  above = {layer: i for i, layer in enumerate(reversed(layers))}
  return jax.tree.map(lambda name: float(layer_decay ** above[_layer(name)]), names)


def check_frozen(trained, patterns: tuple[str, ...]):
  """Raises UserError for a pattern that matches nothing, or if all is frozen.

  Args:
    trained: the values, or their shapes.
    patterns: see `freeze`.
  """
  names = list(dict.fromkeys(jax.tree.leaves(_names(trained))))
  tops = sorted(dict.fromkeys(x.partition('/')[0] for x in names), key=_layer)
  for pattern in patterns:
    if not any(_matches(name, (pattern,)) for name in names):
      hint = errors.nearest(pattern, [*(f'{top}/*' for top in tops), *names])
      raise errors.UserError(
        f'optim.freeze has {pattern!r}, which matches no name such as {names[0]!r}; '
        f'{hint}allowed: patterns of the names in {_list(tops)}'
      )
  if patterns and all(_matches(name, patterns) for name in names):
    raise errors.UserError(
      f'optim.freeze is {patterns}, and nothing is left to train; allowed: patterns '
      f'that leave some of {_list(tops)}'
    )


def describe(trained, patterns: tuple[str, ...], layer_decay: float) -> list[str]:
  """Returns what a user should know of it, a line each; none if nothing is special."""
  values = zip(
    jax.tree.leaves(_names(trained)),
    [x.size for x in jax.tree.leaves(trained)],
    jax.tree.leaves(factors(trained, layer_decay)),
    strict=True,
  )
  found = [(_matches(name, patterns), size, factor) for name, size, factor in values]
  lines = []
  if patterns:
    num_frozen = sum(size for is_frozen, size, _ in found if is_frozen)
    lines.append(
      f'frozen by optim.freeze: {num_frozen:,} of '
      f'{sum(size for _, size, _ in found):,} values'
    )
  if layer_decay != 1:
    rates = [factor for is_frozen, _, factor in found if not is_frozen]
    lines.append(
      f'the learning rate is multiplied by {min(rates):.3g} in the lowest layer that '
      f'is trained, by {max(rates):.3g} in the uppermost'
    )
  return lines


def _names(trained) -> Any:
  """Returns a tree of names in the place of the values."""

  def name(path, _):
    collection, *keys = (str(key.key) for key in path)
    return '/'.join(keys if collection == 'params' else keys[1:])

  return jax.tree_util.tree_map_with_path(name, trained)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _layer(name: str) -> tuple[int, int]:
  """Returns the layer of a name, as what layers are sorted by: from the images up."""
  top = name.partition('/')[0]
  if block := re.fullmatch(r'blocks_(\d+)', top):
    return 1, int(block[1])
  return {'head': 2, 'classifier': 3}.get(top.partition('_')[0], 0), 0


def _list(tops: list[str]) -> str:
  """Returns 'stem_conv, blocks_0 ... blocks_15, classifier'."""
  blocks = [top for top in tops if _layer(top)[0] == 1]
  hidden = blocks[1:-1]
  shown = ', '.join(top for top in tops if top not in hidden)
  return shown.replace(f'{blocks[0]}, ', f'{blocks[0]} ... ') if hidden else shown
