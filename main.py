"""Trains or evaluates an image classifier: `python main.py --config=configs/FILE.py`.

Flags in, one call out; everything else is in `advprop_jax/`.
"""

import functools
import os
import pathlib
import re
import signal
import sys

if __name__ == '__main__':
  # Ctrl-C ends the process here and now: as an exception it would be swallowed where it
  # meets an import or a callback of JAX, and threads do not survive a normal exit.
  signal.signal(signal.SIGINT, lambda *_: os._exit(130))

# Before TensorFlow loads: it only reads data here, its start-up lines are noise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

from advprop_jax import errors, evaluate, parallel, train
from advprop_jax.workdir import directory, logs

DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits_advprop.py'
MODES = {'train': train.train_and_evaluate, 'evaluate': evaluate.evaluate_checkpoint}
# A second start of the same config reads here what the first one compiled.
COMPILATIONS = '~/.cache/advprop_jax/compilations'

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


def interrupted(workdir: str, *_):
  """Ends the process on Ctrl-C, and says what is left of the run."""
  steps = directory.saved_steps(workdir)
  saved = f'resumes from step {steps[-1]}' if steps else 'begins anew'
  print(f'interrupted; the same command {saved}, see {workdir}', file=sys.stderr)
  os._exit(130)


def main(argv):
  if argv[1:]:
    sys.exit(f'error: unknown arguments {argv[1:]}; allowed: those of --help')
  logs.log_for_people(__file__, os.path.dirname(train.__file__))
  compilations = os.path.expanduser(COMPILATIONS)  # As it is, if there is no home.
  if jax.config.jax_compilation_cache_dir is None and compilations != COMPILATIONS:
    jax.config.update('jax_compilation_cache_dir', compilations)
  tf.config.set_visible_devices([], 'GPU')  # TensorFlow would take their memory.
  workdir = FLAGS.workdir or directory.default_workdir(FLAGS['config'].config_filename)
  try:
    if FLAGS.multi_host:
      parallel.join_hosts()
    logging.info('%s, workdir %s', FLAGS['config'].config_filename, workdir)
    signal.signal(signal.SIGINT, functools.partial(interrupted, workdir))
    MODES[FLAGS.mode](FLAGS.config, workdir)
  except errors.UserError as e:
    parallel.exit_with(f'error: {e}')
  except jax.errors.JaxRuntimeError as e:
    if (message := errors.describe_device_error(e)) is None:
      raise
    sys.exit(f'error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
