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
    if not stroke:
      return super().convert(argument)
    try:
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
  config, place = _find_flag(argv, 'config', None)
  workdir, _ = _find_flag(argv, 'workdir', None)
  mode, _ = _find_flag(argv, 'mode', 'train')
  if place is None:
    config = default_config
    if mode == 'evaluate':
      workdir = workdir or directory.default_workdir(default_config)
      config = f'{workdir}/config.json'
  source = config
  if config.endswith('.json'):
    config = f'{saved_config}:{json.dumps(directory.read_config(config))}'
  if place is None:
    return [argv[0], f'--config={config}', *argv[1:]], source
  rest = argv[place + 1 if '=' in argv[place] else place + 2 :]
  return [*argv[:place], f'--config={config}', *rest], source


def _find_flag(argv, name: str, default):
  """Returns the last value of a flag, and its place; None if it is not there."""
  value, place = default, None
  for i, word in enumerate(argv):
    if match := re.fullmatch(f'--?{name}(=(.*))?', word, re.DOTALL):
      value, place = match[2] if match[1] else ''.join(argv[i + 1 : i + 2]), i
  return value, place
