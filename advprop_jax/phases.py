"""Phases: runs one after the other, each from the weights of the last.

The seed is the config's: a phase sees images in the order of the one before and draws
as it did, unless it sets `seed`.
"""

from collections.abc import Mapping
from typing import Any

from advprop_jax import errors, schema


def split(config: schema.Section) -> list[schema.Section]:
  """Returns the config of every phase, checked; of a run without phases its own.

  Args:
    config: see `schema.read`.

  Raises:
    UserError: a phase changes what it may not, or cannot be.
  """
  base = schema.Section(config | {'phases': ()})
  later = schema.Section(base | {'init_from': ''})
  if not config.phases:
    return [base]
  result = []
  for i, changes in enumerate(config.phases):
    if 'init_from' in changes:
      raise errors.UserError(
        f'phases[{i}] sets init_from, and begins with the weights of the phase before; '
        'allowed: config.init_from, with which the first begins'
      )
    _check_keys(base, changes, index=i)
    phase = schema.read(_replace(later if i else base, changes))
    if phase.model != base.model or phase.data.class_names != base.data.class_names:
      raise errors.UserError(
        f'phases[{i}] changes the network: its weights are those of the phase before; '
        "allowed: all keys but 'model' and 'data.class_names'"
      )
    result.append(phase)
  return result


def _check_keys(section, changes, *, index: int, place: tuple[str, ...] = ()):
  """Raises UserError for a key that the config does not have."""
  where = f'phases[{index}]' + ''.join(f'[{key!r}]' for key in place)
  for key, value in changes.items():
    if key not in section or key == 'phases':
      hint = errors.nearest(str(key), section)
      raise errors.UserError(
        f'unknown key {key!r} in {where}; {hint}allowed: those of configs/default.py'
      )
    inside = (*place, key)
    is_section = isinstance(section[key], Mapping)
    if is_section and not isinstance(value, Mapping):
      raise errors.UserError(
        f'{key!r} in {where} is {value!r}; allowed: a dict of its values'
      )
    if is_section and not _is_other_kind(inside, value):
      _check_keys(section[key], value, index=index, place=inside)


def _replace(section, changes, place: tuple[str, ...] = ()) -> dict[str, Any]:
  """Returns a section with other values; one of another kind is replaced as a whole."""
  result = dict(section)
  for key, value in changes.items():
    inside = (*place, key)
    if isinstance(value, Mapping) and not _is_other_kind(inside, value):
      value = _replace(section[key], value, inside)
    result[key] = value
  return result


def _is_other_kind(place: tuple[str, ...], value: Mapping[str, Any]) -> bool:
  """Returns whether a value names the kind of its section, {'name': 'cosine', ...}."""
  return '.'.join(place) in schema.KINDS and 'name' in value
