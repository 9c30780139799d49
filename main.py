"""Trains or evaluates an image classifier: `python main.py --config=configs/FILE.py`.

Flags in, one call out; everything else is in `advprop_jax/`.
"""

import json
import os
import pathlib
import re
import sys

from advprop_jax import startup

if __name__ == '__main__':
  startup.prepare()  # May start the program anew, so nothing heavy comes before it.

import jax
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

from advprop_jax import errors, evaluate, parallel, train
from advprop_jax.workdir import directory, logs
from configs import default

CONFIGS = pathlib.Path(__file__).parent / 'configs'
DEFAULT_CONFIG = str(CONFIGS / 'digits_advprop.py')
SAVED_CONFIG = str(CONFIGS / 'saved.py')  # Takes the text of a config.json.


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


config_flags.register_flag_parser_for_type(float, FractionParser())
config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/, FILE.py:smoke, or the config.json of a run. Default: of '
  '--mode=evaluate that of the workdir, otherwise configs/digits_advprop.py.',
)
flags.DEFINE_string('workdir', None, 'For results; default: runs/<config name>.')
flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')
flags.DEFINE_string(
  'checkpoint', 'newest', 'Which one to evaluate: newest, best, or its step.'
)
flags.DEFINE_boolean(
  'multi_host', False, 'Join the other hosts first, as on a TPU pod or under Slurm.'
)
FLAGS = flags.FLAGS


def find_flag(argv, name: str, default):
  """Returns the last value of a flag, and its place, before the flags are parsed."""
  value, place = default, None
  for i, word in enumerate(argv):
    if match := re.fullmatch(f'--?{name}(=(.*))?', word, re.DOTALL):
      value, place = match[2] if match[1] else ''.join(argv[i + 1 : i + 2]), i
  return value, place


def choose_config(argv) -> tuple[list[str], str]:
  """Returns the command line with a config in it, and where that comes from."""
  config, place = find_flag(argv, 'config', None)
  workdir, _ = find_flag(argv, 'workdir', None)
  mode, _ = find_flag(argv, 'mode', 'train')
  if place is None:
    config = DEFAULT_CONFIG
    if mode == 'evaluate':
      workdir = workdir or directory.default_workdir(DEFAULT_CONFIG)
      config = f'{workdir}/config.json'
  source = config
  if config.endswith('.json'):
    # ml_collections executes Python; a config.json becomes the argument of a file.
    config = f'{SAVED_CONFIG}:{json.dumps(directory.read_config(config))}'
  if place is None:
    return [argv[0], f'--config={config}', *argv[1:]], source
  rest = argv[place + 1 if '=' in argv[place] else place + 2 :]
  return [*argv[:place], f'--config={config}', *rest], source


def parse_flags(argv):
  """Parses the command line; what is wrong with it is reported in one line."""
  try:
    # Not as the flag's default: that is executed on import, errors and all. And into
    # sys.argv, where ml_collections looks for `--config.key=value`.
    argv, source = choose_config(argv)
    sys.argv = argv
    FLAGS.set_default('workdir', directory.default_workdir(source))
    args = FLAGS(argv)
    FLAGS.config.lock()  # A file that does not exist is reported on first use only.
    return args
  except Exception as e:
    keys = directory.flatten(default.get_config().to_dict())
    sys.exit(f'error: {errors.describe_flag_error(e, keys)}')


def describe_interruption(workdir: str) -> str:
  """Returns the line that says after Ctrl-C what is left of the run."""
  steps = directory.saved_steps(workdir)
  saved = f'resumes from step {steps[-1]}' if steps else 'begins anew'
  return f'interrupted; the same command {saved}, see {workdir}'


def main(argv):
  if argv[1:]:
    sys.exit(f'error: unknown arguments {argv[1:]}; allowed: those of --help')
  logs.log_for_people(__file__, os.path.dirname(train.__file__))
  tf.config.set_visible_devices([], 'GPU')  # TensorFlow would take their memory.
  workdir = FLAGS.workdir
  config_file = config_flags.get_config_filename(FLAGS['config'])
  if config_file.startswith(SAVED_CONFIG):
    config_file = 'the config of a run'
  try:
    if FLAGS.multi_host:
      parallel.join_hosts()
    logging.info('%s, workdir %s', config_file, workdir)
    startup.end_on_ctrl_c(lambda: describe_interruption(workdir))
    if FLAGS.mode == 'evaluate':
      evaluate.evaluate_checkpoint(FLAGS.config, workdir, which=FLAGS.checkpoint)
    elif FLAGS['checkpoint'].present:
      raise errors.UserError(
        f'--checkpoint={FLAGS.checkpoint} is for --mode=evaluate; training goes on '
        'from the newest; allowed: one of the two'
      )
    else:
      train.train_and_evaluate(FLAGS.config, workdir)
  except errors.UserError as e:
    parallel.exit_with(f'error: {e}')
  except jax.errors.JaxRuntimeError as e:
    if (message := errors.describe_device_error(e)) is None:
      raise
    sys.exit(f'error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
