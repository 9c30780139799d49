"""Tests that whatever lies in a workdir is handled or one line, and not executed."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import stat

import compilation
import hostile
import numpy as np
import pytest
from etils import epath
from hostile_items import ITEMS
from tiny_model import create_tiny_model

import advprop_jax
from advprop_jax import (
  command_line,
  errors,
  evaluate,
  experiment,
  json_files,
  model_config,
  robust_run,
  train,
)
from advprop_jax.evaluation import report, shapes
from advprop_jax.weights import card
from advprop_jax.workdir import directory, integrity, restore, results
from configs import digits_vanilla, saved

SECS = 20  # A reader that takes longer waits for what does not come.


def create_config(data_dir, *, num_steps):
  config = digits_vanilla.get_config('smoke')
  config.data.update(
    data_dir=str(data_dir),
    train_split='train[:24]',
    eval_split='test[:8]',
    batch_size=8,
    eval_batch_size=8,
    image_size=16,
    flip=False,
  )
  config.log_every_steps, config.checkpoint.keep_last = 1, 10
  config.num_epochs = num_steps / 3
  config.eval.every_epochs = config.checkpoint.every_epochs = 1 / 3
  config.eval.suites = ('val',)
  return config


def read_config(workdir):
  """Returns the config of a workdir as main.py reads it."""
  try:
    argv, _ = command_line.choose_config(
      ['main.py', f'--config={workdir}/config.json'], default_config='', saved_config=''
    )
    return saved.get_config(argv[1].partition(':')[2])
  except errors.UserError:
    raise
  except Exception as e:
    raise errors.UserError(command_line.describe_config_error(e)) from e


def read_examples(workdir, data_dir):
  file = results.ExamplesFile(epath.Path(workdir), 'val', {})
  assert robust_run._read(file, np.array([0])) is None


def read_suite(workdir, data_dir):
  about = {'suite': 'val', 'checkpoint': {'step': 2}, 'branch_names': ['clean']}
  results.SuiteFile(epath.Path(workdir), 'val', about, shapes.problem_to_go_on)


def find_best(workdir, data_dir):
  path = workdir / 'checkpoints'
  with restore.Reader(path) as checkpointer:
    checkpointer.find('best')


READERS = {
  'best': find_best,
  'load': lambda workdir, data_dir: advprop_jax.load(workdir),
  'report': lambda workdir, data_dir: report.create_report([str(workdir)], 'md'),
  'page': lambda workdir, data_dir: report.create_report([str(workdir)]),
  'integrity': lambda workdir, data_dir: integrity.main([str(workdir)]),
  'examples': read_examples,
  'suite': read_suite,
  'phases': lambda workdir, data_dir: directory.describe_interruption(str(workdir)),
}
# These change the workdir.
WRITERS = {
  'card': lambda workdir, data_dir: card.write_card(workdir, workdir=workdir),
  'evaluate': lambda workdir, data_dir: evaluate.evaluate_checkpoint(
    read_config(workdir), str(workdir)
  ),
  'train': lambda workdir, data_dir: train.train_and_evaluate(
    create_config(data_dir, num_steps=2), str(workdir)
  ),
  'go_on': lambda workdir, data_dir: train.train_and_evaluate(
    create_config(data_dir, num_steps=3), str(workdir)
  ),
}


class Batches:
  """Stands in for the training images."""

  num_bad = 0

  def __iter__(self):
    image = np.zeros((8, 16, 16, 3), np.uint8)
    yield from itertools.repeat({'image': image, 'label': np.arange(8, dtype=np.int32)})


@pytest.fixture(scope='module')
def opened():
  """Puts a tiny network and no images into all runs."""
  with (
    pytest.MonkeyPatch.context() as patch,
    compilation.without_optimizations(),
    compilation.experiments_once(),
  ):
    patch.setattr(model_config, 'create_module', create_tiny_model)
    patch.setattr(experiment, 'create_train_batches', lambda *_, **__: Batches())
    yield


@pytest.fixture(scope='module')
def prepared(opened, tmp_path_factory, digits_dir):
  """Returns a workdir that has everything a run leaves, and checkpoints 1 and 2."""
  workdir = tmp_path_factory.mktemp('prepared') / 'run'
  config = create_config(digits_dir, num_steps=2)
  train.train_and_evaluate(config, str(workdir))
  evaluate.evaluate_checkpoint(config, str(workdir))
  return workdir


class NotEndingError(BaseException):
  """Ends what waits for a pipe."""


@contextlib.contextmanager
def time_limit(workdir):
  """Raises NotEndingError in the `with` block when it is too late."""

  def stop(*_):
    for path in workdir.rglob('*'):  # Other threads wait, too.
      with contextlib.suppress(OSError):
        if stat.S_ISFIFO(path.lstat().st_mode):
          os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    raise NotEndingError

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(SECS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def copy_file(source, target):
  """Links what is never changed in place: the files of checkpoints."""
  return (os.link if '/checkpoints/' in source else shutil.copy2)(source, target)


@pytest.fixture
def workdir(prepared, tmp_path):
  return shutil.copytree(prepared, tmp_path / 'run', copy_function=copy_file)


@pytest.mark.parametrize('name', ITEMS)
def test_a_hostile_item_is_handled_or_one_line(
  name, prepared, workdir, tmp_path, digits_dir
):
  readers, plant = ITEMS[name]
  plant(workdir)
  is_changed = False
  for reader in sorted(readers, key=[*READERS, *WRITERS].index):
    if is_changed:
      path = tmp_path / reader / 'run'
      workdir = shutil.copytree(prepared, path, copy_function=copy_file)
      plant(workdir)
    is_changed = reader in WRITERS
    with time_limit(workdir):
      try:
        (READERS | WRITERS)[reader](workdir, digits_dir)
      except errors.UserError as e:
        assert '\n' not in str(e) and '; allowed: ' in str(e), reader
    assert not hostile.mark(workdir).exists(), reader


def test_the_readers_read_what_is_whole(workdir, digits_dir):
  for name, read in (READERS | WRITERS).items():
    assert read(workdir, digits_dir) != 1, name
  last = json.loads((workdir / 'results.jsonl').read_text().splitlines()[-1])
  assert last['step'] == 3


def test_an_archive_that_inflates_is_not_read(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(json_files, 'MAX_BYTES', 2**20)
  content = hostile.array_of((2**21,), bytes(2**21))
  hostile.archive(position=content)(tmp_path)
  read_examples(tmp_path, None)
  assert 'is damaged and is not used' in caplog.text


def test_what_a_link_in_a_workdir_points_to_stays(workdir, tmp_path, digits_dir):
  victim = tmp_path / 'victim'
  victim.write_text('mine')
  for name in ('.write_test_0', 'config.json.new', 'results.jsonl.new'):
    (workdir / name).symlink_to(victim)
  WRITERS['go_on'](workdir, digits_dir)
  assert victim.read_text() == 'mine'
