"""The command line before its flags are parsed, and what may be wrong with it."""

import json
import pathlib
import re
from collections.abc import Iterable

from absl import flags, logging

from advprop_jax import errors, methods, phases, schema
from advprop_jax.workdir import directory

# What other libraries say of a flag, and what to say instead.
_REWORDED = (
  (
    r'flag (--config\.[^=]+)=(.*): Failed to parse .* as a ConfigDict.*',
    r"\1 is a section, and '\2' a value; allowed: its keys, as in \1.name=...",
  ),
  (
    r"flag (--[^=]+)=.*: invalid literal for int\(\) .*: ('.*')",
    r'\1 is \2; allowed: a whole number',
  ),
  (
    r"flag (--[^=]+)=.*: \('Non-boolean argument to boolean flag', ('.*')\)",
    r'\1 is \2; allowed: True or False',
  ),
  (
    r"Unknown command line flag '(.+)'\.? ?(.*)",
    r'unknown flag --\1; \2 allowed: those of --help, and --config.key=value',
  ),
)


class FractionParser(flags.FloatParser):
  """Parses a number, or two with a stroke between them, as papers write 4/255."""

  def convert(self, argument):
    """Returns the float; ValueError for anything else."""
    numerator, stroke, denominator = str(argument).partition('/')
    try:
      if not stroke:
        return super().convert(argument)
      return float(numerator) / float(denominator)
    except (ValueError, ZeroDivisionError):
      raise ValueError(f'{argument!r} is no number; allowed: 0.5 or 4/255') from None


def write_out_fractions(argv: list[str]) -> list[str]:
  """Returns a command line with (0.5, 0.25) for (1/2, 1/4), which tuples cannot hold.

  Args:
    argv: whose values of `--config.key=(...)` count; what is in quotes is text.
  """

  def divide(match):
    text, numerator, denominator = match.groups()
    is_number = text is None and float(denominator)
    return repr(float(numerator) / float(denominator)) if is_number else match[0]

  pattern = r"""('[^']*'|"[^"]*")|(?<![\w.-])(\d+\.?\d*)\s*/\s*(\d+\.?\d*)(?![\w.])"""
  return [
    re.sub(pattern, divide, word) if re.match(r'--?config\.[^=]*=\(', word) else word
    for word in argv
  ]


def choose_config(
  argv: list[str], *, default_config: str, saved_config: str
) -> tuple[list[str], str]:
  """Returns the command line with a config file in it, and which config was meant.

  Args:
    argv: the command line, with or without `--config`.
    default_config: the file of the config if none is given; to evaluate, or to make a
      step again, that is the config.json of the workdir.
    saved_config: the file that takes the text of a config.json as its argument: of a
      config, ml_collections reads Python only.

  Raises:
    UserError: the config.json cannot be read.
  """
  config, rest = _take_flag(argv[1:], 'config')
  workdir, _ = _take_flag(argv, 'workdir')
  mode, _ = _take_flag(argv, 'mode')
  replay_step, _ = _take_flag(argv, 'replay_step')
  if config is None:
    config = default_config
    workdir = workdir or directory.default_workdir(default_config)
    if mode == 'evaluate':
      config = f'{directory.last_run(workdir)}/config.json'
    elif replay_step is not None:
      config = f'{workdir}/config.json'
  config = _in_full(config, default_config)
  source = config
  if config.endswith('.json'):
    config = f'{saved_config}:{json.dumps(directory.read_config(config))}'
  # It comes first: ml_collections wants it before `--config.key=value`.
  return [argv[0], f'--config={config}', *rest], source


def _in_full(config: str, default_config: str) -> str:
  """Returns 'configs/digits_sat.py:silu' for 'digits_sat:silu', if that file exists."""
  name, colon, argument = config.partition(':')
  path = pathlib.Path(default_config).parent / f'{name}.py'
  is_short = re.fullmatch(r'\w+', name) and path.exists()
  return f'{path}{colon}{argument}' if is_short else config


def _take_flag(words: list[str], name: str) -> tuple[str | None, list[str]]:
  """Returns the last value of a flag, None if it is not there, and the other words."""
  value, rest = None, []
  remaining = iter(words)
  for word in remaining:
    match = re.fullmatch(f'--?{name}(=(.*))?', word, re.DOTALL)
    if match is None:
      rest.append(word)
    else:
      value = match[2] if match[1] else next(remaining, '')
  return value, rest


def check_keys(argv: list[str], config):
  """Checks that every `--config.key` of a command line is one of the config.

  Raises:
    UserError: it is none, or what stands before its last dot is no section.
  """
  for key in _keys(argv):
    _look_up(config, key)


def check_effects(argv: list[str], config):
  """Checks that every `--config.key` of a command line matters to the training.

  Args:
    argv: the command line.
    config: with these values in it; see `schema.read`.

  Raises:
    UserError: each phase has a value of its own, or the method does not look at it; or
      the config cannot be.
  """
  config = schema.read(config)
  runs = phases.split(config)
  found = [methods.create_method(run, num_classes=2) for run in runs]
  for key in _keys(argv):
    beginnings = [key[: match.start()] for match in re.finditer(r'[.\[]|$', key)]
    if beginnings[0] in ('phases', 'init_from'):  # The second is of the first phase.
      continue
    if all(set(beginnings) & set(method.unused) for method in found):
      raise errors.UserError(
        f'--config.{key} has no effect: method {config.method["name"]!r} with the '
        f'streams {", ".join(found[0].names)} does not use it; allowed: '
        + _instead(config, key)
      )
    value = _look_up(config, key)
    replaced = [i for i, run in enumerate(runs) if _is_replaced(run, key, value)]
    instead = [f'--config.phases[{i}].{key}' for i in replaced]
    if len(replaced) == len(runs):
      allowed = f'{" or ".join(instead)}, where it is there, or another config file'
      raise errors.UserError(
        f'--config.{key} has no effect: every phase has a value of its own; allowed: '
        f'{allowed}'
      )
    for i, other in zip(replaced, instead, strict=True):
      logging.warning(
        '--config.%s has no effect in phase %d, which has a value of its own: %s',
        *(key, i, other),
      )


def _instead(config, key: str) -> str:
  """Returns what to set in the place of a key that the method does not use."""
  name = key.rpartition('.')[2]
  if name in config.method and name != 'name':
    return f'--config.method.{name}'
  return 'what the streams or config.method have, see the config file'


def _keys(argv: list[str]) -> list[str]:
  """Returns the keys of the `--config.key`s of a command line."""
  words = argv[: argv.index('--')] if '--' in argv else argv
  matches = [re.match(r'--?config\.([^=]*)', word) for word in words]
  return [match[1] for match in matches if match]


def _is_replaced(config, key: str, value) -> bool:
  """Returns whether a config has another value than this one, or none."""
  try:
    return _look_up(config, key) != value
  except errors.UserError:
    return True


def _look_up(config, key: str):
  """Returns the value of a key, 'streams[0].weight'; UserError if there is none."""
  value, place = config, 'config'
  for name in re.split(r'\.|(?=\[)', key):
    is_tuple = isinstance(value, tuple | list)
    index = re.fullmatch(r'\[(\d+)\]', name)
    if is_tuple and not (index and int(index[1]) < len(value)):
      allowed = ''.join(f', --{place}[{i}]' for i in range(len(value)))
      raise errors.UserError(
        f'--config.{key} is no key: {place} is a tuple; allowed: --{place}{allowed}'
      )
    if not is_tuple and not hasattr(value, 'keys'):
      raise errors.UserError(
        f'--config.{key} is no key: {place} is a value; allowed: --{place}=...'
      )
    if not is_tuple and name not in value:
      hint = errors.nearest(name, value)
      allowed = ', '.join(sorted(value))
      raise errors.UserError(
        f'unknown config key {name!r}; {hint}allowed in {place}: {allowed}'
      )
    value = value[int(index[1])] if index else value[name]
    place += name if index else f'.{name}'
  return value


def describe_config_error(e: BaseException) -> str:
  """Returns in one line why a config cannot be loaded.

  Args:
    e: what importing or executing its file raised; ml_collections wraps it.
  """
  message = _message(e)
  if 'allowed: ' in message:  # The config itself has said what it wants.
    return message
  return (
    f'--config cannot be loaded: {message}; allowed: a file of configs/, '
    'FILE.py:argument, or the config.json of a run'
  )


def describe_flag_error(e: BaseException, keys: Iterable[str] = ()) -> str:
  """Returns in one line what is wrong with a flag.

  Args:
    e: what parsing the flags raised.
    keys: of the config, 'attack.epsilon'; one of them may stand for the flag.
  """
  flag = getattr(e, 'flagname', '')
  if meant := [key for key in keys if flag and f'.{key}'.endswith(f'.{flag}')]:
    allowed = ', '.join(f'--config.{key}' for key in sorted(meant))
    return f'unknown flag --{flag}, which is part of the config; allowed: {allowed}'
  message = _message(e)
  for pattern, instead in _REWORDED:
    if match := re.fullmatch(pattern, message):
      return ' '.join(match.expand(instead).split())
  return message


def _message(e: BaseException) -> str:
  """Returns the one line that says what is wrong."""
  while e.args and isinstance(e.args[0], Exception):
    e = e.args[0]
  name = type(e).__name__
  message = f'no key {e}' if isinstance(e, KeyError) else str(e)
  # Of a traceback in the message, the last line says it.
  message = (message.strip() or name).splitlines()[-1].strip()
  prefix = 'Configuration is not available because of an earlier failure to load: '
  return message.removeprefix(prefix).removeprefix('ValueError: ')
