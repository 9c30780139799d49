"""Tests runs that begin with another one's weights: what is taken, and what is not."""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from test_train import small_config
from tiny_model import create_tiny_model

from advprop_jax import (
  command_line,
  errors,
  evaluations,
  experiment,
  initial_weights,
  model_config,
  train,
)
from advprop_jax.evaluation import runner
from advprop_jax.input.datasets import photographs
from advprop_jax.workdir import checkpoint, directory
from configs import default, digits_pilot

pytestmark = pytest.mark.usefixtures('fast_compilation')

OTHER_CLASSES = tuple('9876543210')


@pytest.fixture
def tiny_model(monkeypatch):
  monkeypatch.setattr(model_config, 'create_model', create_tiny_model)


@pytest.fixture(scope='module')
def source(tmp_path_factory, digits_dir):
  """Returns a workdir with a checkpoint, and the averages in it, all of them unlike."""
  workdir = tmp_path_factory.mktemp('source')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_config, 'create_model', create_tiny_model)
    exp = experiment.create_experiment(small_config(digits_dir))
  rng = np.random.default_rng(0)
  model, averages = (
    jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)
    for tree in (exp.abstract_state.model, exp.abstract_state.ema)
  )
  with checkpoint.Checkpointer(workdir / 'checkpoints') as checkpointer:
    checkpointer.save(
      7,
      {'model': model, 'ema': averages},
      config=exp.config,
      examples_seen=56,
      fingerprint={},
    )
  return str(workdir), averages


def read(config, workdir, branch_names=('clean', 'adv')):
  """Returns the experiment of a config, and what its run begins with."""
  exp = experiment.create_experiment(config)
  return exp, initial_weights.read(exp.config, workdir, branch_names=branch_names)


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_with_the_same_classes_all_averages_are_taken(
  source, digits_dir, tiny_model, caplog
):
  workdir, averages = source
  absl_logging.set_verbosity('info')
  exp, start = read(small_config(digits_dir), workdir)
  zeros = jax.tree.map(jnp.zeros_like, exp.abstract_state.replace(rng=None))
  state = zeros.start_from(start.variables)
  assert_trees_equal(state.model, averages)
  assert_trees_equal(state.ema, averages)
  assert start.has_classifier and state.opt_state == zeros.opt_state
  assert f'the averaged weights of step 7 of {workdir}' in caplog.text
  assert 'the classifier is kept: the same 10 classes' in caplog.text
  assert 'before and is' not in caplog.text and 'copies' not in caplog.text


def test_with_other_classes_the_classifier_is_drawn_and_the_rest_taken(
  source, digits_dir, tiny_model, caplog
):
  workdir, averages = source
  config = small_config(digits_dir)
  config.data.class_names = OTHER_CLASSES
  second = dict(default.ADV, name='adv_2', branch='adv_2')
  config.streams = (*default.ADVPROP, second)
  absl_logging.set_verbosity('info')
  exp, start = read(config, workdir, ('clean', 'adv', 'adv_2'))
  drawn = exp.create_state()
  state = drawn.start_from(start.variables)
  assert not start.has_classifier
  expected = {
    'params': {**averages['params'], 'classifier': drawn.params['classifier']},
    **{
      name: {**averages[name], 'adv_2': averages[name]['clean']}
      for name in ('norms', 'batch_stats')
    },
  }
  assert_trees_equal(state.model, expected)
  assert_trees_equal(state.ema, expected)
  assert (
    'the classifier is made anew: 10 classes before and 10 now; the first that differs '
    "is number 0, '0' before and '9' now" in caplog.text
  )
  assert "norms ['adv_2'] begin as copies of clean" in caplog.text


def test_another_number_of_classes_is_another_classifier(
  source, digits_dir, tiny_model, caplog
):
  config = small_config(digits_dir)
  config.data.class_names = (*'0123456789', 'ten')
  absl_logging.set_verbosity('info')
  _, start = read(config, source[0])
  assert not start.has_classifier and set(start.variables['params']) == {'conv'}
  assert '10 classes before and 11 now; the first that' in caplog.text
  assert "is number 10, none before and 'ten' now" in caplog.text


def test_what_gives_the_weights_another_meaning_is_told(
  source, digits_dir, tiny_model, caplog
):
  config = small_config(digits_dir)
  config.model.update(mean=(0.4, 0.5, 0.5), bn_epsilon=0.5, bn_momentum=0.5)
  config.model.update(dtype='bfloat16', bn_scope='all', activation='relu')
  config.data.update(resize_method='bilinear', crop_padding=3, flip=True)
  config.optim.schedule.learning_rate = 0.5
  read(config, source[0])
  lines = [x.getMessage() for x in caplog.records if 'before and is' in x.getMessage()]
  assert [line.split(' was ')[0] for line in lines] == [
    'config.data.crop_padding',
    'config.data.resize_method',
    'config.model.activation',
    'config.model.bn_epsilon',
    'config.model.mean',
  ]


def test_the_weights_of_another_model_are_refused_before_anything_is_written(
  source, digits_dir, tmp_path
):
  config = small_config(digits_dir)  # Of the real network.
  config.init_from = source[0]
  with pytest.raises(
    errors.UserError,
    match='checkpoints/7 is of another model: batch_stats/adv/blocks_0/.* is '
    'absent there and .*; allowed: .* or another --config.init_from$',
  ):
    train.train_and_evaluate(config, str(tmp_path / 'workdir'))
  assert not (tmp_path / 'workdir').exists()


@pytest.mark.parametrize(
  'name, message',
  [
    (
      'none',
      "init_from is '.*none', no --workdir with .*: there is no .*none; allowed",
    ),
    (
      'empty',
      "init_from is '.*empty', no --workdir .*: .*empty has no checkpoint; foun",
    ),
  ],
)
def test_a_directory_without_a_checkpoint_is_one_line(
  name, message, digits_dir, tiny_model, tmp_path
):
  (tmp_path / 'empty').mkdir()
  config = small_config(digits_dir)
  config.init_from = str(tmp_path / name)
  with pytest.raises(errors.UserError, match=message) as e:
    train.train_and_evaluate(config, str(tmp_path / 'workdir'))
  assert '\n' not in str(e.value) and not (tmp_path / 'workdir').exists()


def test_of_phases_the_last_with_a_checkpoint_is_meant(tmp_path):
  for name in ('phase_0/checkpoints/5', 'phase_1/checkpoints/2', 'phase_2'):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name.partition('/')[0] / 'config.json').write_text('{}')
  assert directory.last_run(str(tmp_path)) == str(tmp_path / 'phase_1')


class Batches:
  """Stands for the stream of batches, which takes long to open."""

  num_bad = 0

  def __iter__(self):
    return itertools.repeat({'label': np.zeros(8, np.int32)})


def run(config, workdir, monkeypatch, *, dies=False):
  """Trains with steps that only count; returns the steps of its lines of metrics."""
  create = experiment.create_experiment

  def train_step(state, _):
    if dies:
      raise KeyboardInterrupt
    metrics = {'all_finite': np.bool_(True), 'nonfinite': np.int32(-1), 'loss': 0.0}
    return state.replace(step=state.step + 1), metrics

  def evaluate(variables):
    top1 = float(variables['params']['classifier']['bias'][0])
    return {'val': runner.Result({'clean_top1': top1}, None, {})}

  with monkeypatch.context() as patch:
    patch.setattr(experiment, 'create_train_batches', lambda *_, **__: Batches())
    patch.setattr(
      experiment,
      'create_experiment',
      lambda config: create(config)._replace(
        train_step=train_step, evaluation=evaluations.Evaluation({}, evaluate)
      ),
    )
    if dies:
      with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, str(workdir))
    else:
      train.train_and_evaluate(config, str(workdir))
  results = pathlib.Path(workdir) / 'results.jsonl'
  lines = results.read_text().splitlines() if results.exists() else []
  return [x for x in map(json.loads, lines) if 'val/clean_top1' in x]


def test_a_kept_classifier_is_evaluated_once_before_the_first_step(
  source, digits_dir, tiny_model, tmp_path, monkeypatch
):
  config = small_config(digits_dir)
  config.init_from = source[0]
  config.eval.every_epochs = config.checkpoint.every_epochs = 1.0
  first = {
    'step': 0,
    'val/clean_top1': float(source[1]['params']['classifier']['bias'][0]),
  }
  assert run(config, tmp_path, monkeypatch, dies=True) == [first]
  lines = run(config, tmp_path, monkeypatch)
  assert lines[0] == first and [x['step'] for x in lines] == [0, 6]
  assert directory.saved_steps(str(tmp_path)) == [6]

  config.data.class_names = OTHER_CLASSES
  assert run(config, tmp_path / 'other', monkeypatch, dies=True) == []


def test_with_phases_the_first_begins_so_and_no_other_is_said_to_lack_it(caplog):
  config = digits_pilot.get_config()
  config.init_from = 'runs/other'
  command_line.check_effects(['--config.init_from=runs/other'], config)
  assert 'no effect' not in caplog.text


@pytest.mark.large
@pytest.mark.parametrize('name', ['photographs', 'lite0_finetune'])
def test_a_network_trained_on_imagenet_is_fine_tuned(name, tmp_path):
  """In a process with one device, with weights and photographs that packages hold."""
  run = tmp_path / 'run'
  words = [f'--config=configs/{name}.py', f'--workdir={run}', '--config.num_epochs=1']
  if name == 'photographs':
    words += [f'--config.data.data_dir={tmp_path}/data', '--config.eval.every_epochs=1']
  else:
    images = tmp_path / 'images'
    for split, (file, label) in itertools.product(
      ('train', 'test'), photographs.find_files('train')
    ):
      folder = images / split / ('low' if label < 500 else 'high')
      folder.mkdir(parents=True, exist_ok=True)
      shutil.copy(file, folder)
    words += [f'--config.data.name=folder:{images}', '--config.data.batch_size=10']
    words += ['--config.data.eval_batch_size=10']
  env = {k: x for k, x in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run(
    [sys.executable, 'main.py', *words],
    check=True,
    cwd=pathlib.Path(__file__).parent.parent,
    env=env,
  )
  text = (run / 'results.jsonl').read_text()
  lines = [x for x in map(json.loads, text.splitlines()) if 'val/clean_top1' in x]
  if name == 'photographs':  # The classifier is kept; 9 of 10 are right at the start.
    assert [x['step'] for x in lines] == [0, 1]
    assert lines[0]['val/clean_top1'] == pytest.approx(0.9)
  assert lines[-1]['step'] == 1 and 0 <= lines[-1]['val/clean_pgd_top1'] <= 1
