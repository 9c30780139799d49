"""The one exception that means: the input is at fault, not the program.

And other libraries' errors in one line, where they come from the user's input.
"""

import difflib
import re
from collections.abc import Iterable


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


def nearest(given: str, allowed: Iterable[str]) -> str:
  """Returns "did you mean 'epsilon'? " for 'epsilom'; '' if nothing is like it."""
  found = difflib.get_close_matches(given, list(allowed), n=1)
  return f'did you mean {found[0]!r}? ' if found else ''


# What other libraries say of a command line, and what to say instead.
_REWORDED = (
  (
    r'Did you mean "(\w+)" instead of "(\w+)"\?',
    r"unknown config key '\2'; did you mean '\1'? allowed: those of configs/default.py",
  ),
  (  # A key that resembles no other.
    r"'(\w*)'",
    r"unknown config key '\1'; allowed: those of configs/default.py",
  ),
  (  # `--config.streams.clean.weight=2`
    r'.*tuple indices must be.*',
    'a key of the command line lies inside of a tuple, as config.streams is one; '
    'allowed: keys of whole values; streams are set in a config file',
  ),
  (
    r'flag (--config\.[\w.]+)=(.*): Failed to parse .* as a ConfigDict.*',
    r"\1 is a section, and '\2' a value; allowed: its keys, as in \1.name=...",
  ),
  (
    r"flag (--[\w.]+)=.*: invalid literal for int\(\) .*: ('.*')",
    r'\1 is \2; allowed: a whole number',
  ),
  (
    r"flag (--[\w.]+)=.*: \('Non-boolean argument to boolean flag', ('.*')\)",
    r'\1 is \2; allowed: True or False',
  ),
  (
    r"Unknown command line flag '(\w+)'\.? ?(.*)",
    r'unknown flag --\1; \2 allowed: those of --help, and --config.key=value',
  ),
)


def describe_flag_error(e: BaseException, keys: Iterable[str] = ()) -> str:
  """Returns in one line what is wrong with a command line.

  Args:
    e: from parsing it. ml_collections raises whatever the lookup of a misspelt key or
      the execution of a config file raised.
    keys: of the config, 'attack.epsilon'; one of them may stand for the flag.
  """
  flag = getattr(e, 'flagname', '')
  if meant := [key for key in keys if flag and key.split('.')[-1] == flag]:
    allowed = ', '.join(f'--config.{key}' for key in sorted(meant))
    return f'unknown flag --{flag}, which is part of the config; allowed: {allowed}'
  while e.args and isinstance(e.args[0], Exception):
    e = e.args[0]
  message = str(e.args[0] if isinstance(e, KeyError) and e.args else e).strip()
  # Of a traceback in the message, the last line says what is wrong.
  message = (message or type(e).__name__).splitlines()[-1].strip()
  for pattern, instead in _REWORDED:
    if match := re.fullmatch(pattern, message):
      return ' '.join(match.expand(instead).split())
  prefix = 'Configuration is not available because of an earlier failure to load: '
  is_of_file = isinstance(e, OSError | SyntaxError) or message.startswith(prefix)
  if is_of_file or 'get_config()' in message:
    return (
      f'--config cannot be loaded: {message.removeprefix(prefix)}; allowed: a file of '
      'configs/, FILE.py:argument, or the config.json of a run'
    )
  return message.removeprefix('ValueError: ')


def describe_device_error(e: Exception) -> str | None:
  """Returns in one line that a device has too little memory; None for other errors.

  Args:
    e: a `jax.errors.JaxRuntimeError`.
  """
  message = str(e).strip().splitlines()[0].rstrip('.')
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  return (
    f'the device has too little memory: {message}; allowed: a smaller '
    'data.batch_size, eval_batch_size or image_size, a smaller model, or more devices'
  )
