"""Trains or evaluates an image classifier: `python main.py --config=configs/FILE.py`.

Flags in, one call out; everything else is in `advprop_jax/`.
"""

import os
import pathlib
import sys

from advprop_jax import startup

if __name__ == '__main__':
  startup.prepare()  # May start the program anew, so nothing heavy comes before it.

import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

from advprop_jax import (
  command_line,
  dry_run,
  errors,
  evaluate,
  hosts,
  preemption,
  replay,
  train,
)
from advprop_jax.workdir import directory, logs
from configs import default

CONFIGS = pathlib.Path(__file__).parent / 'configs'
DEFAULT_CONFIG = str(CONFIGS / 'digits_advprop.py')
SAVED_CONFIG = str(CONFIGS / 'saved.py')  # Takes the text of a config.json.


config_flags.register_flag_parser_for_type(float, command_line.FractionParser())
config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/, FILE.py:smoke, or the config.json of a run. Default: of '
  '--mode=evaluate and --replay_step that of the workdir, otherwise '
  'configs/digits_advprop.py.',
)
flags.DEFINE_string('workdir', None, 'For results; default: runs/<config name>.')
flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')
flags.DEFINE_string(
  'checkpoint', 'newest', 'Which one to evaluate: newest, best, or its step.'
)
flags.DEFINE_list(
  'suites',
  [],
  'What to evaluate on: names of evaluation/suites.py, or all. Default: eval.suites.',
)
flags.DEFINE_boolean(
  'dry_run', False, 'Say what would be trained: shapes, cost, memory, first images.'
)
flags.DEFINE_integer(
  'replay_step', None, 'Make this step of a run again, and keep its images.'
)
flags.DEFINE_boolean(
  'multi_host',
  None,
  'Whether to join other hosts. Default: if the environment is that of one of several '
  'processes, on a TPU pod, GKE, under Slurm or Open MPI.',
)
FLAGS = flags.FLAGS


def parse_flags(argv):
  """Parses the command line; what is wrong with it is reported in one line."""
  try:
    argv, source = command_line.choose_config(
      command_line.write_out_fractions(argv),
      default_config=DEFAULT_CONFIG,
      saved_config=SAVED_CONFIG,
    )
    FLAGS.set_default('workdir', directory.default_workdir(source))
    # The config first, to check the keys. Not as the flag's default: that is executed
    # on import, errors and all.
    _load_config(argv[:2])
    command_line.check_keys(argv[2:], FLAGS.config)
    sys.argv = argv  # Where ml_collections looks for `--config.key=value`.
    return FLAGS(argv)
  except errors.UserError as e:
    message = str(e)
  except Exception as e:
    keys = directory.flatten(default.get_config().to_dict())
    message = command_line.describe_flag_error(e, keys)
  given = [x for x in argv if x.lstrip('-').startswith(('multi_host', 'nomulti_host'))]
  wanted = given[-1].endswith(('-multi_host', '=true', '=True')) if given else None
  hosts.end_before_joining(f'error: {message}', wanted=wanted)


def _load_config(argv):
  """Parses `--config=...` alone."""
  sys.argv = argv
  try:
    FLAGS(argv)
    if not hasattr(FLAGS.config, 'lock'):  # A missing file is reported on first use.
      raise TypeError(f'get_config() returns {FLAGS.config!r}, and no ConfigDict')
    FLAGS.config.lock()
  except Exception as e:
    raise errors.UserError(command_line.describe_config_error(e)) from e


def main(argv):
  if argv[1:]:
    sys.exit(f'error: unknown arguments {argv[1:]}; allowed: those of --help')
  logs.log_for_people(__file__, os.path.dirname(train.__file__))
  tf.config.set_visible_devices([], 'GPU')  # TensorFlow would take their memory.
  config_file = config_flags.get_config_filename(FLAGS['config'])
  if config_file.startswith(SAVED_CONFIG):
    config_file = 'the config of a run'
  hosts.run_to_end(lambda: work(config_file))


def work(config_file: str):
  """Does what the flags say."""
  workdir = FLAGS.workdir
  hosts.join_hosts(FLAGS.multi_host)
  logging.info('%s, workdir %s', config_file, workdir)
  module = evaluate if FLAGS.mode == 'evaluate' else directory
  if not FLAGS.dry_run:  # It leaves nothing to go on with.
    preemption.end_with(lambda: module.describe_interruption(workdir))
  if FLAGS.dry_run and FLAGS.mode == 'evaluate':
    raise errors.UserError('--dry_run is of a training; allowed: --mode=train')
  if FLAGS.mode == 'evaluate':
    run = directory.last_run(workdir)
    if run != workdir:
      logging.info(
        'of the phases in %s, %s is the last with a checkpoint', workdir, run
      )
    evaluate.evaluate_checkpoint(
      FLAGS.config, run, which=FLAGS.checkpoint, suite_names=tuple(FLAGS.suites)
    )
  elif given := [x for x in ('checkpoint', 'suites') if FLAGS[x].present]:
    raise errors.UserError(
      f'{FLAGS[given[0]].serialize()} is for --mode=evaluate; training goes '
      'on from the newest checkpoint, and evaluates on config.eval.suites; allowed: '
      'one of the two'
    )
  else:
    command_line.check_effects(sys.argv[2:], FLAGS.config)
    if FLAGS.replay_step is not None:
      replay.replay_step(FLAGS.config, workdir, FLAGS.replay_step)
      return
    start = dry_run.dry_run if FLAGS.dry_run else train.train_and_evaluate
    start(FLAGS.config, workdir)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
