"""Phases: runs one after the other, each from the weights of the last."""

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
  if not config.phases:
    return [base]
  result = []
  for i, changes in enumerate(config.phases):
    _check_keys(base, changes, f'phases[{i}]')
    phase = schema.read(_replace(base, changes))
    if phase.model != base.model or phase.data.class_names != base.data.class_names:
      raise errors.UserError(
        f'phases[{i}] changes the network: its weights are those of the phase before; '
        "allowed: all keys but 'model' and 'data.class_names'"
      )
    result.append(phase)
  return result


def workdir_of(workdir: str, index: int) -> str:
  """Returns the directory of a phase, 'runs/pilot/phase_0'."""
  return f'{workdir}/phase_{index}'


def _check_keys(section: Mapping[str, Any], changes: Mapping[str, Any], place: str):
  """Raises UserError for a key that is not in the config."""
  for key, value in changes.items():
    if key not in section or key == 'phases':
      hint = errors.nearest(key, section)
      raise errors.UserError(
        f'unknown key {key!r} in {place}; {hint}allowed: those of configs/default.py'
      )
    is_section = isinstance(section[key], Mapping)
    if is_section and not isinstance(value, Mapping):
      raise errors.UserError(
        f'{key!r} in {place} is {value!r}; allowed: a dict of its values'
      )
    if is_section and 'name' not in value:
      _check_keys(section[key], value, f'{place}[{key!r}]')


def _replace(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a section with other values; one with a name is replaced as a whole."""
  result = dict(section)
  for key, value in changes.items():
    if isinstance(value, Mapping) and 'name' not in value:
      value = _replace(section[key], value)
    result[key] = value
  return result
