"""The command line before its flags are parsed: numbers, and which config it means."""

import json
import re

from absl import flags

from advprop_jax.workdir import directory


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


def choose_config(
  argv: list[str], *, default_config: str, saved_config: str
) -> tuple[list[str], str]:
  """Returns the command line with a config file in it, and which config was meant.

  Args:
    argv: the command line, with or without `--config`.
    default_config: the file of the config if none is given; to evaluate, that is the
      config.json of the workdir.
    saved_config: the file that takes the text of a config.json as its argument: of a
      config, ml_collections reads Python only.

  Raises:
    UserError: the config.json cannot be read.
  """
  config, rest = _take_flag(argv[1:], 'config')
  workdir, _ = _take_flag(argv, 'workdir')
  mode, _ = _take_flag(argv, 'mode')
  if config is None:
    config = default_config
    if mode == 'evaluate':
      workdir = workdir or directory.default_workdir(default_config)
      config = f'{workdir}/config.json'
  source = config
  if config.endswith('.json'):
    config = f'{saved_config}:{json.dumps(directory.read_config(config))}'
  # It comes first: ml_collections wants it before `--config.key=value`.
  return [argv[0], f'--config={config}', *rest], source


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
