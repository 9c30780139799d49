"""Tests runs of phases: weights go from one to the next, and each can be resumed."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import logging as absl_logging
from tiny_model import create_tiny_model

from advprop_jax import (
  errors,
  evaluate,
  experiment,
  model_config,
  phases,
  train,
  train_state,
)
from advprop_jax.workdir import checkpoint, directory, restore
from configs import default, digits_pilot, saved

pytestmark = pytest.mark.usefixtures('fast_compilation')


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
  monkeypatch.setattr(model_config, 'create_model', create_tiny_model)


def create_config(data_dir):
  """Returns a pilot of three steps and two, the second with a norm more."""
  config = digits_pilot.get_config('smoke')
  config.data.update(
    data_dir=str(data_dir),
    train_split='train[:48]',
    eval_split='test[:8]',
    batch_size=16,
    eval_batch_size=8,
  )
  config.eval.attack.num_steps = 1
  config.eval.every_epochs, config.checkpoint.every_epochs = 1.0, 1 / 3
  second = {**config.phases[1], 'streams': default.ADVPROP, 'num_epochs': 2 / 3}
  config.phases = (config.phases[0], second)
  return config


class Killed(BaseException):
  """Stands for a death that no handler sees."""


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_phases_start_from_the_last_weights_and_are_resumed(
  tmp_path, digits_dir, monkeypatch, caplog
):
  config = create_config(digits_dir)
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  starts = []
  start_from = train_state.TrainState.start_from

  def spy(state, variables):
    new = start_from(state, variables)
    # Copies: the step gives their memory away.
    copied = new.replace(rng=None, opt_state=None)
    starts.append(jax.tree.map(np.array, (variables, copied)))
    return new

  monkeypatch.setattr(train_state.TrainState, 'start_from', spy)
  values = train.train_and_evaluate(config, str(whole))
  configs = [json.loads((whole / f'phase_{i}/config.json').read_text()) for i in (0, 1)]
  assert [len(x['streams']) for x in configs] == [1, 2]

  # The second begins with the averages of the first, in both of its norms.
  first = experiment.create_experiment(phases.split(experiment.schema.read(config))[0])
  with restore.Reader(whole / 'phase_0/checkpoints') as saver:
    parts, *_ = saver.restore(3, first.abstract_state.parts)
  ((variables, state),) = starts
  assert_trees_equal(variables, parts['ema'])
  assert_trees_equal(state.params, parts['ema']['params'])
  for branch in ('clean', 'adv'):
    assert_trees_equal(state.norms[branch], parts['ema']['norms']['clean'])
    assert_trees_equal(state.batch_stats[branch], parts['ema']['batch_stats']['clean'])
  assert_trees_equal(state.ema, state.model)
  assert state.step == 0

  # Killed in the second phase, after its first save; then the same command.
  save = checkpoint.Checkpointer.save

  def dying(self, step, parts, **kwargs):
    if len(parts['model']['norms']) == 2 and step == 2:
      raise Killed
    save(self, step, parts, **kwargs)

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(checkpoint.Checkpointer, 'save', dying)
    train.train_and_evaluate(config, str(broken))
  absl_logging.set_verbosity('info')
  assert train.train_and_evaluate(config, str(broken)) == values
  assert 'phase 0 of 2' in caplog.text and 'nothing to train' in caplog.text
  assert 'resuming from step 1 of 2' in caplog.text

  # A phase is an ordinary run.
  path = whole / 'phase_1'
  assert directory.last_run(str(whole)) == str(path)
  assert 'resumes phase_1 from step 2 (' in directory.describe_interruption(str(whole))
  assert directory.last_run(str(path)) == str(path)
  again = evaluate.evaluate_checkpoint(
    saved.get_config((path / 'config.json').read_text()), str(path)
  )
  assert again['digits:test[:8]/clean_top1'] == values['val/clean_top1']

  # Killed before its first save, it has nothing to evaluate: the phase before has.
  shutil.rmtree(path / 'checkpoints')
  assert directory.last_run(str(whole)) == str(whole / 'phase_0')
  assert 'the same command begins phase_1 anew' in directory.describe_interruption(
    str(whole)
  )


@pytest.mark.parametrize(
  'second, message',
  [
    ({'streams': ()}, "allowed: any that include 'clean'"),
    ({'data': {'train_split': 'trian'}}, "'trian'"),
    ({'data': {'resize_method': 'x'}}, "'x'; allowed: bicubic"),
    ({'eval': {'suites': ('nope',)}}, "'nope'"),
  ],
)
def test_a_wrong_second_phase_is_refused_before_the_first(
  tmp_path, digits_dir, second, message
):
  config = create_config(digits_dir)
  config.phases = (config.phases[0], second)
  with pytest.raises(errors.UserError, match=message):
    train.train_and_evaluate(config, str(tmp_path / 'workdir'))
  assert not (tmp_path / 'workdir').exists()
