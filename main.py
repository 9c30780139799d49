"""Trains or evaluates an image classifier: `python main.py --config=configs/FILE.py`.

Flags in, one call out; everything else is in `advprop_jax/`.
"""

import functools
import logging as std_logging
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

import clu
import jax
import tensorflow as tf
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from advprop_jax import errors, train

DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits_advprop.py'

config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, or FILE.py:smoke; default: digits_advprop.py.'
)
flags.DEFINE_string('workdir', None, 'For results; default: runs/<config name>.')
flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate'], 'Train, or evaluate the newest checkpoint.'
)
flags.DEFINE_boolean(
  'multi_host', False, 'Join the other hosts first, as on a TPU pod or under Slurm.'
)
FLAGS = flags.FLAGS

# A second start of the same config reads here what the first one compiled.
COMPILATIONS = '~/.cache/advprop_jax/compilations'

# What CLU logs beside the metrics: the whole config in one line, shapes of pictures;
# what Orbax says of a directory that is opened to be read.
NOISE = (
  '[Hyperparameters]',
  '[%d]%s Got',
  'CheckpointManagerOptions.read_only=True',
  'Given directory is read only',
)


def parse_flags(argv):
  """Parses the command line; what is wrong with it is told in one line.

  Source of the exceptions: ml_collections raises whatever the lookup of a misspelt key
  or the execution of a config file raised.
  """
  if not any(re.match('--?config(=|$)', word) for word in argv):
    # Not as the flag's default: that is executed on import, errors and all. And into
    # sys.argv, where ml_collections looks for `--config.key=value` that follow it.
    argv = sys.argv = [argv[0], f'--config={DEFAULT_CONFIG}', *argv[1:]]
  try:
    args = FLAGS(argv)
    FLAGS.config.lock()  # A file that does not exist is reported on first use only.
    return args
  except Exception as e:
    while e.args and isinstance(e.args[0], Exception):
      e = e.args[0]
    message = str(e.args[0] if isinstance(e, KeyError) and e.args else e).strip()
    # Of a traceback in the message, the last line says what is wrong.
    message = (message or type(e).__name__).splitlines()[-1].strip()
    if re.fullmatch(r"'\w*'", message):  # A key that resembles no other.
      message = f'unknown config key {message}; allowed: those of configs/default.py'
    sys.exit(f'error: {message.removeprefix("ValueError: ")}')


def log_for_people():
  """Logs what this project and CLU say, and everybody's warnings, with the time.

  Orbax alone would say fifty lines about each checkpoint.
  """
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  shown = (__file__, os.path.dirname(train.__file__), os.path.dirname(clu.__file__))
  handler.addFilter(
    lambda record: (
      (record.levelno > std_logging.INFO or record.pathname.startswith(shown))
      and not str(record.msg).startswith(NOISE)
    )
  )


def default_workdir(config_flag: str) -> str:
  """Returns 'runs/b0_smoke' for 'configs/b0.py:smoke': no two configs share one."""
  file, _, argument = config_flag.partition(':')
  words = [pathlib.Path(file).stem, *argument.split(',')]
  return str(pathlib.Path('runs', '_'.join(word for word in words if word)))


def main(argv):
  if argv[1:]:
    sys.exit(f'error: unknown arguments {argv[1:]}; allowed: those of --help')
  log_for_people()
  compilations = os.path.expanduser(COMPILATIONS)  # As it is, if there is no home.
  if jax.config.jax_compilation_cache_dir is None and compilations != COMPILATIONS:
    jax.config.update('jax_compilation_cache_dir', compilations)
  if FLAGS.multi_host:
    try:
      jax.distributed.initialize()
    except (ValueError, RuntimeError) as e:
      reason = str(e).splitlines()[0].rstrip('.')
      sys.exit(
        f'error: --multi_host cannot join other hosts ({reason}); allowed: on a TPU '
        'pod, under Slurm or Open MPI'
      )
  tf.config.set_visible_devices([], 'GPU')  # TensorFlow would take their memory.
  workdir = FLAGS.workdir or default_workdir(FLAGS['config'].config_filename)
  logging.info('%s, workdir %s', FLAGS['config'].config_filename, workdir)
  signal.signal(signal.SIGINT, functools.partial(interrupted, workdir))
  run = {'train': train.train_and_evaluate, 'evaluate': train.evaluate_checkpoint}
  try:
    run[FLAGS.mode](FLAGS.config, workdir)
  except errors.UserError as e:
    if jax.process_count() > 1:
      # An ordinary exit waits for the other hosts, which wait for this one's batches.
      print(f'error: {e}', file=sys.stderr, flush=True)
      os._exit(1)
    sys.exit(f'error: {e}')
  except jax.errors.JaxRuntimeError as e:
    message = str(e).strip().splitlines()[0].rstrip('.')
    if 'RESOURCE_EXHAUSTED' not in message:
      raise
    sys.exit(
      f'error: the device has too little memory: {message}; allowed: a smaller '
      'data.batch_size, eval_batch_size or image_size, a smaller model, or more devices'
    )


def interrupted(workdir: str, *_):
  """Ends the process on Ctrl-C, and says what is left of the run."""
  checkpoints = epath.Path(workdir).expanduser() / 'checkpoints'
  steps = [int(path.name) for path in checkpoints.glob('*') if path.name.isdigit()]
  saved = f'resumes from step {max(steps)}' if steps else 'begins anew'
  print(f'interrupted; the same command {saved}, see {workdir}', file=sys.stderr)
  os._exit(130)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
