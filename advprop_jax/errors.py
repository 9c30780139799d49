"""The one exception that means: the input is at fault, not the program."""


class UserError(ValueError):
  """Says in one line what is wrong, what was given and what is allowed.

  `main.py` prints the message alone and exits with status 1; every other exception
  is a defect of the program and keeps its traceback.
  """


def check_choice(what: str, given: str, allowed) -> None:
  """Raises UserError unless `given` is one of `allowed`, naming all of them.

  Args:
    what: the thing chosen, for the message: 'activation', 'model', ...
    given: the name the user asked for.
    allowed: the known names, any iterable of str.
  """
  allowed = sorted(allowed)
  if given not in allowed:
    raise UserError(f'unknown {what} {given!r}; allowed: {", ".join(allowed)}')
