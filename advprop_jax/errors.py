"""The exceptions that mean: the input is at fault, or the moment, not the program.

And other libraries' errors in one line, where they come from the user's input.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """Says in one line what is wrong, what was given and what is allowed.

  `main.py` prints the message alone and exits with status 1; every other exception
  is a defect of the program and keeps its traceback.
  """


class RestartError(Exception):
  """Says in one line what has stopped a run that goes on when it is started again."""


def check_choice(what: str, given: str, allowed) -> None:
  """Raises UserError unless `given` is one of `allowed`, naming all of them.

  Args:
    what: the thing chosen, for the message: 'activation', 'model', ...
    given: the name the user asked for.
    allowed: the known names, any iterable of str.
  """
  allowed = sorted(allowed)
  if given not in allowed:
    hint = nearest(given, allowed)
    raise UserError(f'unknown {what} {given!r}; {hint}allowed: {", ".join(allowed)}')


def nearest(given: str, allowed: Iterable[str]) -> str:
  """Returns "did you mean 'epsilon'? " for 'epsilom'; '' if nothing is like it.

  It ends in a blank, to stand before the rest of a message.
  """
  found = difflib.get_close_matches(given, list(allowed), n=1)
  return f'did you mean {found[0]!r}? ' if found else ''


def describe_device_error(
  e: Exception,
  allowed: str = 'a smaller data.batch_size, eval_batch_size or image_size, a smaller '
  'model, or more devices',
) -> str | None:
  """Returns in one line that a device has too little memory; None for other errors.

  Args:
    e: a `jax.errors.JaxRuntimeError`.
    allowed: what would need less.
  """
  message = str(e).strip().splitlines()[0].rstrip('.')
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  return f'the device has too little memory: {message}; allowed: {allowed}'
