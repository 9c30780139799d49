"""What a checkpoint may lack or hold by mistake: items, shapes, values, position."""

import json
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from advprop_jax import errors, json_files, schema
from advprop_jax.workdir import directory

JSON_ITEMS = ('config', 'data')


def check_items(path: epath.Path, items: Iterable[str], *, flag: str):
  """Raises UserError for a checkpoint of the older format, or that lacks an item.

  Args:
    path: of the checkpoint.
    items: that are to be read.
    flag: the one that has named the directory.
  """
  if (path / 'state').exists():
    raise errors.UserError(
      f"the checkpoint {path} was saved by an older version, as one item 'state'; "
      f'allowed: that version to go on with it, or another {flag}'
    )
  if not (path / 'model').exists():
    return  # It is damaged, and what reads it says so.
  if 'training' in items and not (path / 'training').exists():
    raise errors.UserError(
      f'the checkpoint {path} holds a network without the state of a training; '
      f'allowed: --config.init_from={path.parent.parent} with another --workdir'
    )
  if 'ema' in items and not (path / 'ema').exists():
    raise errors.UserError(
      f'the checkpoint {path} has no averaged weights; allowed: to go on with it as '
      'it was trained, optim.ema_decay=0, or to read its weights as they are'
    )


def problem_of_json(path: epath.Path) -> str | None:
  """Returns what is wrong with the items of JSON, of which Orbax reads anything."""
  for item in JSON_ITEMS:
    try:
      json_files.read_object(path / item / 'metadata')
    except FileNotFoundError:
      pass  # Orbax says so.
    except json_files.UnreadableError as e:
      return f'{item}/metadata: {e}'
  return None


def check_config(path: epath.Path, config: dict, *, needs: Iterable[str] = ()):
  """Raises UserError for a config that no training can have had.

  Args:
    path: of the checkpoint.
    config: that it has.
    needs: sections that it must have.
  """
  try:
    schema.check_saved(config, needs=needs)
  except errors.UserError as e:
    raise errors.UserError(f'in the config of {path} {e}') from e


def warn_of_changes(
  saved: dict, config: dict, *, is_unused: Callable[[str], bool] = lambda key: False
):
  """Logs every value of a config that was another one when a checkpoint was saved.

  Args:
    saved: the config of the checkpoint. Of keys that it does not have, nothing is
      said: an older or converted checkpoint has only some.
    config: the one of now.
    is_unused: whether a key, 'attack.epsilon', has no effect on what is done.
  """
  # As JSON: a config that was not saved has tuples in the place of lists.
  old = directory.flatten(json.loads(json.dumps(saved)))
  new = directory.flatten(json.loads(json.dumps(config)))
  for key, value in sorted(old.items()):
    if value == new.get(key):
      continue
    if is_unused(key):
      logging.warning('config.%s is changed, and has no effect here', key)
    else:
      logging.warning('config.%s was %s before and is %s now', key, value, new.get(key))


def problem_of_position(step: int, config: dict, position: dict) -> str | None:
  """Returns what cannot be in the data's position of a training, if anything."""
  seen = position.get('examples_seen')
  if type(seen) is not int or seen < 0:
    return f'data: examples_seen is {seen!r}'
  for key, kind in (('process_count', int), ('fingerprint', dict), ('spent', dict)):
    if type(position.get(key, kind())) is not kind:  # Older ones lack some.
      return f'data: {key} is {position[key]!r}'
  if not all(isinstance(x, int | float) for x in position.get('spent', {}).values()):
    return f'data: spent is {position["spent"]!r}'
  since = position.get('since', [0, 0])
  if not isinstance(since, list) or [type(x) for x in since] != [int, int]:
    return f'data: since is {since!r}'
  batch_size = config.get('data', {}).get('batch_size')
  if batch_size is None:
    return None
  expected = since[1] + (step - since[0]) * batch_size
  if seen != expected:
    return f'data: examples_seen is {seen}, and {expected} at its step'
  return None


def find_nonfinite(tree) -> str | None:
  """Returns the name of the first array with a value that is not finite, if any."""
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(x.dtype, jnp.floating) and not np.isfinite(np.asarray(x)).all():
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


def _leaf_shapes(tree) -> dict[str, tuple[int, ...]]:
  """Returns {'params/stem_conv/kernel': shape, ...}, without the key of the run."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
    for path, leaf in leaves
    # Orbax describes a typed key by the raw words under it.
    if path[0] != jax.tree_util.DictKey('rng')
  }


def describe_change(saved, template) -> str | None:
  """Returns the first leaf that is absent or of another shape in one of the two."""
  found, expected = _leaf_shapes(saved), _leaf_shapes(template)
  for name in [*expected, *found]:
    if found.get(name) != expected.get(name):
      return (
        f'{name} is {found.get(name, "absent")} there and '
        f'{expected.get(name, "absent")} in this config'
      )
  return None
