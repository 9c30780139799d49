"""Makes an object by its name in a table, and checks what a config says of it.

Models, attacks, optimizers, schedules and the like are tables, {name: function of
keyword arguments}. A section of a config is {'name': ..., argument: value, ...}; a new
thing of a known kind is one entry of its table and nothing else.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from advprop_jax import errors

# Attributes of every Flax module, which no config sets.
_RESERVED = ('name', 'parent')


def create(
  what: str,
  table: Mapping[str, Any],
  section: Mapping[str, Any],
  *,
  also: tuple[str, ...] = (),
  **given,
) -> Any:
  """Returns `table[name](**arguments)` for a section {'name': ..., **arguments}.

  Args:
    what: place of the section in the config, for messages: 'model', 'optim.schedule'.
    table: the known names and their functions of keyword arguments.
    section: the name, and values for arguments of the function.
    also: keys of the section that are no arguments: the caller reads them.
    **given: what the program knows, such as the number of classes; the function gets
      those that it has arguments for, and no section can set them.

  Raises:
    UserError: the table has no such name, the function no such argument, or an argument
      without a default is missing.
  """
  arguments = dict(section)
  name = arguments.pop('name')
  errors.check_choice(f'{what}.name', name, table)
  function = table[name]
  parameters = inspect.signature(function).parameters
  settable = [x for x in parameters if x not in given and x not in _RESERVED]
  allowed = [*settable, *also]
  for key in arguments:
    if key not in allowed:
      hint = errors.nearest(key, allowed)
      raise errors.UserError(
        f'unknown key {key!r} in {what}, which is {name!r}; {hint}allowed: '
        f'{", ".join(allowed) or "none"}'
      )
  required = [x for x in settable if parameters[x].default is inspect.Parameter.empty]
  for key in [*required, *also]:
    if key not in arguments:
      raise errors.UserError(
        f'{what}, which is {name!r}, has no value for {key!r}; allowed: a section with '
        f'all of {", ".join([*required, *also])}'
      )
  values = {key: arguments[key] for key in settable if key in arguments}
  known = {key: value for key, value in given.items() if key in parameters}
  return function(**values, **known)
