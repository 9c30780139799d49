"""Trains or evaluates an image classifier: `python main.py --config=configs/FILE.py`.

Flags in, one call out; everything else is in `advprop_jax/`.
"""

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

DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits_advprop.py'
MODES = {'train': train.train_and_evaluate, 'evaluate': evaluate.evaluate_checkpoint}

config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, or FILE.py:smoke; default: digits_advprop.py.'
)
flags.DEFINE_string('workdir', None, 'For results; default: runs/<config name>.')
flags.DEFINE_enum('mode', 'train', MODES, 'Train, or evaluate the newest checkpoint.')
flags.DEFINE_boolean(
  'multi_host', False, 'Join the other hosts first, as on a TPU pod or under Slurm.'
)
FLAGS = flags.FLAGS


def parse_flags(argv):
  """Parses the command line; what is wrong with it is reported in one line."""
  if not any(re.match('--?config(=|$)', word) for word in argv):
    # Not as the flag's default: that is executed on import, errors and all. And into
    # sys.argv, where ml_collections looks for `--config.key=value` that follow it.
    argv = sys.argv = [argv[0], f'--config={DEFAULT_CONFIG}', *argv[1:]]
  try:
    args = FLAGS(argv)
    FLAGS.config.lock()  # A file that does not exist is reported on first use only.
    return args
  except Exception as e:
    sys.exit(f'error: {errors.describe_flag_error(e)}')


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
  config_file = config_flags.get_config_filename(FLAGS['config'])
  workdir = FLAGS.workdir or directory.default_workdir(config_file)
  try:
    if FLAGS.multi_host:
      parallel.join_hosts()
    logging.info('%s, workdir %s', config_file, workdir)
    startup.end_on_ctrl_c(lambda: describe_interruption(workdir))
    MODES[FLAGS.mode](FLAGS.config, workdir)
  except errors.UserError as e:
    parallel.exit_with(f'error: {e}')
  except jax.errors.JaxRuntimeError as e:
    if (message := errors.describe_device_error(e)) is None:
      raise
    sys.exit(f'error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
