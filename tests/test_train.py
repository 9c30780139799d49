"""Tests runs: a resumed one ends bit for bit the same, bad input harms none."""

import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import compilation
import jax
import numpy as np
import pytest
import tensorflow as tf
import tiny_imagenet
from absl import logging as absl_logging
from PIL import Image
from tensorboard.backend.event_processing import (
  event_accumulator,
  plugin_event_accumulator,
)
from tiny_model import create_tiny_model

from advprop_jax import (
  errors,
  evaluate,
  experiment,
  hosts,
  model_config,
  parallel,
  preemption,
  replay,
  step_cost,
  train,
  train_state,
)
from advprop_jax.workdir import contents, directory, metric_writer, restore
from configs import (
  digits_adversarial_training,
  digits_advprop,
)

ROOT = pathlib.Path(__file__).parent.parent


# Two layers in EfficientNet's place; dropout stays, so that random numbers count.
TINY_MODEL = functools.partial(create_tiny_model, dropout_rate=0.5)


@pytest.fixture(scope='module')
def experiments():
  with compilation.experiments_once():
    yield


@pytest.fixture
def tiny_model(monkeypatch, fast_compilation, experiments):
  monkeypatch.setattr(model_config, 'create_model', TINY_MODEL)


def small_config(data_dir, module=digits_advprop):
  """Returns six steps of eight images with a checkpoint at every second step."""
  config = module.get_config('smoke')
  config.data.update(
    data_dir=str(data_dir),
    train_split='train[:48]',
    eval_split='test[:12]',
    batch_size=8,
    eval_batch_size=8,
    image_size=32,
  )
  config.log_every_steps = 1
  config.num_epochs = 1.0
  config.eval.every_epochs = 1 / 3
  config.checkpoint.every_epochs = 1 / 3
  config.checkpoint.keep_last = 10
  return config


def results(workdir):
  lines = (pathlib.Path(workdir) / 'results.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def training_losses(workdir):
  return [(x['step'], x['train/loss']) for x in results(workdir) if 'train/loss' in x]


def load(config, workdir, step):
  exp = experiment.create_experiment(config)
  with restore.Reader(pathlib.Path(workdir) / 'checkpoints') as checkpointer:
    parts, *_ = checkpointer.restore(step, exp.abstract_state.parts)
    return train_state.TrainState.from_parts(parts)


def assert_bit_identical(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


class Killed(BaseException):
  """Stands for a death that no handler sees."""


def dying_prefetch(step):
  """Returns a `parallel.prefetch` that a run from step 1 dies of at a step's batch."""
  prefetch = parallel.prefetch

  def dying(batches):
    for i, batch in enumerate(prefetch(batches), start=1):
      if i == step:
        raise Killed
      yield batch

  return dying


def metrics_of_checkpoints(workdir):
  return {
    path.parent.parent.name: json.loads(path.read_text())
    for path in pathlib.Path(workdir).glob('checkpoints/*/metrics/metrics')
  }


@pytest.fixture(scope='module')
def runs(tmp_path_factory, digits_dir, experiments):
  """Returns the workdirs 'finished', and 'killed' at step 4, after the save of step 2;

  and the 'values' that the finished run has returned. Tests copy what they change.
  """
  finished, killed = (tmp_path_factory.mktemp(name) for name in ('finished', 'killed'))
  with pytest.MonkeyPatch.context() as patch, compilation.without_optimizations():
    patch.setattr(model_config, 'create_model', TINY_MODEL)
    values = train.train_and_evaluate(small_config(digits_dir), str(finished))
    patch.setattr(parallel, 'prefetch', dying_prefetch(step=4))
    with pytest.raises(Killed):
      train.train_and_evaluate(small_config(digits_dir), str(killed))
  return {'finished': finished, 'killed': killed, 'values': values}


def write_as_an_older_version(file, position):
  """Writes the data item of a checkpoint, which is then without checksums."""
  file.write_text(json.dumps(position))
  (file.parent.parent / 'SHA256SUMS').unlink()


def copy(workdir, target):
  """Returns the path of a copy, as a string."""
  return str(shutil.copytree(workdir, target, dirs_exist_ok=True))


def test_stopped_and_resumed_is_bit_identical_to_uninterrupted(
  tmp_path, digits_dir, tiny_model, runs, caplog, monkeypatch
):
  config = small_config(digits_dir)
  straight, broken = runs['finished'], copy(runs['killed'], tmp_path)
  lost_line = results(broken)[-1]
  assert [step for step, _ in training_losses(broken)] == [1, 2, 3]
  with monkeypatch.context() as patch:  # Once more, before anything is saved.
    patch.setattr(parallel, 'prefetch', dying_prefetch(step=2))
    with pytest.raises(Killed):
      train.train_and_evaluate(config, broken)
  second_lost_line = results(broken)[-1]
  absl_logging.set_verbosity('info')
  resumed_values = train.train_and_evaluate(config, broken)

  assert 'resuming from step 2 of 6' in caplog.text
  assert_bit_identical(load(config, straight, 6), load(config, broken, 6))
  assert resumed_values == runs['values']
  # The lost step 3 is told once, as it came again; every line is as it would have been.
  assert training_losses(broken) == training_losses(straight)
  # It is counted twice, and what has been spent since the save of step 2.
  saved = json.loads((tmp_path / 'checkpoints/2/data/metadata').read_text())['spent']
  lost = second_lost_line['device_hours'] - saved['device_hours']
  last, undisturbed = results(broken)[-1], results(straight)[-1]
  assert second_lost_line['device_hours'] > lost_line['device_hours']
  assert lost > 0 and last['lost_device_hours'] == pytest.approx(lost)
  assert (last['lost_steps'], undisturbed['lost_steps']) == (2, 0)
  hours = [x['device_hours'] for x in results(broken) if 'device_hours' in x]
  assert hours == sorted(hours) and hours[-2] > second_lost_line['device_hours']
  # TensorBoard has each point once, too.
  events = plugin_event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  points = [x.step for x in events.Tensors('train/adv_loss')]
  assert points == [step for step, _ in training_losses(straight)]


# Each step has a call, and after steps 2, 4 and 6 each of two batches to evaluate.
@pytest.mark.parametrize(
  'call, step, is_due', [(1, 1, False), (8, 4, True), (12, 6, True)]
)
def test_stopped_by_a_signal_and_resumed_nothing_is_lost(
  tmp_path, digits_dir, tiny_model, runs, monkeypatch, call, step, is_due
):
  calls = itertools.count(1)
  config = small_config(digits_dir)
  with monkeypatch.context() as patch:
    patch.setattr(hosts, 'reached_preemption', lambda: next(calls) == call)
    with pytest.raises(preemption.Preempted, match=f'step {step} of 6 is saved'):
      train.train_and_evaluate(config, str(tmp_path))
  position = (tmp_path / f'checkpoints/{step}/data/metadata').read_text()
  assert json.loads(position)['evaluation_due'] == is_due
  assert training_losses(tmp_path)[-1][0] == step
  values = train.train_and_evaluate(config, str(tmp_path))
  assert values == runs['values']
  assert_bit_identical(load(config, tmp_path, 6), load(config, runs['finished'], 6))
  assert training_losses(tmp_path) == training_losses(runs['finished'])

  def evaluations(workdir):
    return [x for x in results(workdir) if 'val/clean_top1' in x]

  assert evaluations(tmp_path) == evaluations(runs['finished'])
  saved = metrics_of_checkpoints(tmp_path)
  if step not in (2, 4, 6):
    assert saved.pop(str(step)) == {}
  assert saved == metrics_of_checkpoints(runs['finished'])
  assert results(tmp_path)[-1]['lost_steps'] == 0


def test_work_that_is_lost_before_the_first_checkpoint_is_counted(
  tmp_path, digits_dir, tiny_model, runs, monkeypatch
):
  config = small_config(digits_dir)
  for step in (2, 1, 1):  # The last two before there is a line.
    with monkeypatch.context() as patch:
      patch.setattr(parallel, 'prefetch', dying_prefetch(step))
      with pytest.raises(Killed):
        train.train_and_evaluate(config, str(tmp_path))
  assert train.train_and_evaluate(config, str(tmp_path)) == runs['values']
  last = results(tmp_path)[-1]
  assert last['lost_steps'] == 1 and last['lost_device_hours'] > 0
  assert training_losses(tmp_path) == training_losses(runs['finished'])


def test_a_signal_does_not_cut_off_the_closing_of_files(
  tmp_path, digits_dir, tiny_model, runs, monkeypatch
):
  workdir = copy(runs['killed'], tmp_path)
  close, closed_in = metric_writer.MetricWriter.__exit__, []

  def record_and_close(*args):
    closed_in.append((preemption._Watch.num_finishing, preemption._Watch.is_done))
    return close(*args)

  monkeypatch.setattr(metric_writer.MetricWriter, '__exit__', record_and_close)
  for _ in range(2):  # There is nothing left to train in the second.
    monkeypatch.setattr(preemption._Watch, 'is_done', False)
    train.train_and_evaluate(small_config(digits_dir), workdir)
    assert preemption._Watch.num_finishing == 0 and preemption._Watch.is_done
  assert closed_in == [(1, False)]


def test_what_earlier_starts_have_spent_is_added(
  tmp_path, digits_dir, tiny_model, runs
):
  workdir = copy(runs['killed'], tmp_path)
  file = tmp_path / 'checkpoints' / '2' / 'data' / 'metadata'
  content = json.loads(file.read_text())
  spent = {'train': 1000.0, 'eval': 2000.0, 'compile': 3000.0, 'device_hours': 4000.0}
  assert content['spent'].keys() >= {'compile', 'device_hours', 'set-up', 'train'}
  assert all(x >= 0 for x in content['spent'].values())
  write_as_an_older_version(file, {**content, 'spent': spent})
  train.train_and_evaluate(small_config(digits_dir), workdir)
  last = results(workdir)[-1]
  for phase in ('train', 'eval', 'compile'):
    assert spent[phase] < last[f'secs/{phase}'] < spent[phase] + 500
  assert 4000 < last['device_hours'] < 4001
  rates = [x.get('train/images_per_sec', 10.0) for x in results(workdir)]
  assert min(rates) > 0.1  # Not over the thousand seconds of before.


def test_a_checkpoint_that_does_not_say_what_was_spent_is_resumed(
  tmp_path, digits_dir, tiny_model, runs
):
  workdir = copy(runs['killed'], tmp_path)
  file = tmp_path / 'checkpoints' / '2' / 'data' / 'metadata'
  content = json.loads(file.read_text())
  del content['spent']
  write_as_an_older_version(file, content)
  values = train.train_and_evaluate(small_config(digits_dir), workdir)
  assert values == runs['values']


def test_a_step_reports_norms_and_known_chips_their_use(
  tmp_path, digits_dir, tiny_model, runs, monkeypatch
):
  steps = [x for x in results(runs['finished']) if 'train/loss' in x]
  assert all(x['train/grad_norm'] > 0 for x in steps)
  assert [x['train/update_norm'] > 0 for x in steps] == [False] + 5 * [True]  # Warm-up.
  assert not any('train/mfu' in x for x in steps)  # Of a CPU no peak is known.
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(step_cost.PEAK_FLOPS, kind, 1e6)
  config = small_config(digits_dir)
  config.num_epochs, config.eval.suites = 2 / 6, ()
  train.train_and_evaluate(config, str(tmp_path))
  (line,) = [x for x in results(tmp_path) if 'train/mfu' in x]
  exp = experiment.create_experiment(config)
  flops = step_cost.train_flops(exp.method, exp.model, image_size=32)
  expected = flops * line['train/images_per_sec'] / (1e6 * jax.device_count())
  assert line['train/mfu'] == pytest.approx(expected)


def test_the_same_command_twice_is_bit_identical(
  tmp_path, digits_dir, tiny_model, runs
):
  config = small_config(digits_dir)
  a, b = runs['finished'], tmp_path / 'b'
  train.train_and_evaluate(config, str(b))
  assert_bit_identical(load(config, a, 6), load(config, b, 6))
  config.seed = 1
  c = tmp_path / 'c'
  train.train_and_evaluate(config, str(c))
  assert training_losses(c) != training_losses(a)


def test_a_fine_tuned_run_is_resumed_bit_for_bit(
  tmp_path, digits_dir, tiny_model, runs, caplog
):
  """From another run's averages, with a frozen norm, and rates by layer."""
  config, straight = small_config(digits_dir), tmp_path / 'straight'
  config.init_from = str(runs['finished'])
  config.optim.freeze, config.optim.layer_decay = ('bn/*',), 0.5
  config.optim.schedule.learning_rate, config.eval.every_epochs = 2.0, 1.0
  absl_logging.set_verbosity('info')
  values = train.train_and_evaluate(config, str(straight))
  assert 'frozen by optim.freeze: 32 of ' in caplog.text
  assert 'multiplied by 0.5 in the lowest layer' in caplog.text

  # What the weights were worth is told first; there is no checkpoint of it.
  assert results(straight)[0] == {'step': 0, **runs['values']}
  assert directory.saved_steps(str(straight)) == [2, 4, 6]
  before = load(small_config(digits_dir), runs['finished'], 6)
  after = load(config, straight, 6)
  assert_bit_identical(after.norms, before.ema['norms'])
  assert_bit_identical(after.ema['norms'], before.ema['norms'])
  for name in ('clean', 'adv'):  # Statistics follow the data.
    old, new = before.ema['batch_stats'][name], after.batch_stats[name]
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), old, new)))
  kernel = before.ema['params']['conv']['kernel']
  assert (after.params['conv']['kernel'] != kernel).any()

  # Stopped after its first save; the weights that it began with are no longer there.
  broken = pathlib.Path(copy(straight, tmp_path / 'broken'))
  for step in ('4', '6'):
    shutil.rmtree(broken / 'checkpoints' / step)
  config.init_from = str(tmp_path / 'gone')
  assert train.train_and_evaluate(config, str(broken)) == values
  assert 'resuming from step 2 of 6' in caplog.text
  assert 'config.init_from is changed, and has no effect here' in caplog.text
  assert_bit_identical(load(config, broken, 6), after)
  assert training_losses(broken) == training_losses(straight)
  assert [x['step'] for x in results(broken)].count(0) == 1


def test_a_finished_run_is_left_as_it_is(
  tmp_path, digits_dir, tiny_model, runs, caplog
):
  workdir = copy(runs['finished'], tmp_path)
  before = results(tmp_path)
  absl_logging.set_verbosity('info')
  assert train.train_and_evaluate(small_config(digits_dir), workdir) == {}
  assert 'nothing to train' in caplog.text and results(tmp_path) == before


def test_evaluate_repeats_the_numbers_of_training(
  tmp_path, digits_dir, tiny_model, runs
):
  config, values = small_config(digits_dir), runs['values']
  copy(runs['finished'], tmp_path)
  saved = sorted((tmp_path / 'checkpoints').rglob('*'))
  pictures = {p: p.read_bytes() for p in (tmp_path / 'pictures').iterdir()}
  found = evaluate.evaluate_checkpoint(config, str(tmp_path))
  assert found == {k.replace('val/', 'digits:test[:12]/'): values[k] for k in values}
  assert sorted((tmp_path / 'checkpoints').rglob('*')) == saved
  clean, attacked = results(tmp_path)[-2:]
  attack = config.eval.attack.to_dict()
  for line, about in (
    (clean, {'suite': 'val', 'attack': None}),
    (attacked, {'suite': 'pgd', 'attack': attack}),
  ):
    about |= {
      'step': 6,
      'checkpoint': str(tmp_path / 'checkpoints' / '6'),
      'averaged': True,
      'dataset': 'digits',
      'split': 'test[:12]',
    }
    assert line | about == line
    assert found | {k: x for k, x in line.items() if k not in about} == found
  assert clean | attacked | found == clean | attacked
  assert pictures == {p: p.read_bytes() for p in pictures}
  new = {p.name for p in (tmp_path / 'pictures').iterdir()} - {p.name for p in pictures}
  assert new == {'digits_test_12_step_0000006.png'}


def test_the_averaged_weights_are_evaluated(digits_dir, tiny_model, runs):
  config, values = small_config(digits_dir), runs['values']
  state, exp = load(config, runs['finished'], 6), experiment.create_experiment(config)
  averaged = exp.evaluation.run(state.ema)['val'].metrics
  plain = exp.evaluation.run(state.model)['val'].metrics
  assert values == {f'val/{k}': x for k, x in averaged.items()} and averaged != plain


def test_evaluating_an_older_checkpoint_keeps_every_line(
  tmp_path, digits_dir, tiny_model, runs
):
  workdir = copy(runs['killed'], tmp_path)  # One step after the last save.
  before = results(tmp_path)
  evaluate.evaluate_checkpoint(small_config(digits_dir), workdir)
  assert results(tmp_path)[:-2] == before and before[-1]['step'] == 3


def test_tensorboard_has_scalars_hparams_and_pictures(runs):
  workdir, values = runs['finished'], runs['values']
  events = event_accumulator.EventAccumulator(str(workdir / 'tensorboard'))
  events.Reload()
  tags = events.Tags()
  assert 'val/clean_pgd' in tags['tensors']
  assert '_hparams_/session_start_info' in tags['tensors']
  scalar = events.Tensors('val/clean_top1')[-1]
  assert scalar.step == 6
  top1 = tf.make_ndarray(scalar.tensor_proto)
  assert float(top1) == pytest.approx(values['val/clean_top1'])
  picture = np.asarray(Image.open(workdir / 'pictures' / 'val_step_0000006.png'))
  assert picture.ndim == 3 and picture.std() > 10


def test_a_changed_config_is_told_on_resume(
  tmp_path, digits_dir, tiny_model, runs, caplog
):
  config = small_config(digits_dir)
  config.optim.schedule.learning_rate = 0.01
  train.train_and_evaluate(config, copy(runs['killed'], tmp_path))
  assert (
    'config.optim.schedule.learning_rate was 0.25 before and is 0.01 now' in caplog.text
  )


def test_another_number_of_hosts_is_told_on_resume(
  tmp_path, digits_dir, tiny_model, runs, caplog
):
  copy(runs['killed'], tmp_path)
  (path,) = tmp_path.glob('checkpoints/2/data/metadata')
  saved = json.loads(path.read_text())
  assert saved.pop('fingerprint')['num_files'] == 1
  assert saved.pop('spent')['train'] > 0
  assert saved == {'examples_seen': 16, 'process_count': 1, 'since': [0, 0]} | {
    'evaluation_due': False
  }
  write_as_an_older_version(path, saved | {'process_count': 2})
  train.train_and_evaluate(small_config(digits_dir), str(tmp_path))
  assert 'saved by 2 hosts and resumed by 1' in caplog.text


def test_a_checkpoint_of_another_method_stays_untouched(
  tmp_path, digits_dir, tiny_model, runs
):
  copy(runs['finished'], tmp_path)

  def times():
    files = (p for p in tmp_path.rglob('*') if p.is_file() and p.name != 'lock')
    return {p: p.stat().st_mtime_ns for p in files}

  before = times()
  other = small_config(digits_dir, digits_adversarial_training)
  with pytest.raises(errors.UserError, match='of another model: .*adv'):
    train.train_and_evaluate(other, str(tmp_path))
  assert times() == before


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(
  tmp_path, digits_dir, tiny_model, runs
):
  config = small_config(digits_dir)
  config.checkpoint.keep_last = 1
  copy(runs['killed'], tmp_path)
  good = load(config, tmp_path, 2)
  config.optim.schedule.learning_rate = 1e30
  with pytest.raises(errors.UserError, match='diverged.*last checkpoint is of step 2'):
    train.train_and_evaluate(config, str(tmp_path))
  assert_bit_identical(load(config, tmp_path, 2), good)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['2']


def test_a_number_broken_between_two_lines_of_the_log_is_not_saved(
  tmp_path, digits_dir, tiny_model, monkeypatch
):
  """Only in the averages: the loss and the weights are as good as ever."""
  config = small_config(digits_dir)
  config.num_epochs, config.log_every_steps = 4.0, 2  # 24 steps.
  config.checkpoint.every_epochs, config.eval.every_epochs = 0.5, 4.0
  create_experiment = experiment.create_experiment

  def create(config):
    exp = create_experiment(config)

    def train_step(state, batch):
      if int(state.step) == 8:
        ema = {**state.ema, 'params': jax.tree.map(lambda x: x * np.nan, state.params)}
        state = state.replace(ema=ema)
      state, metrics = exp.train_step(state, batch)
      assert np.isfinite(metrics['loss'])
      return state, metrics

    return exp._replace(train_step=train_step)

  monkeypatch.setattr(experiment, 'create_experiment', create)
  with pytest.raises(errors.UserError, match='diverged.*last checkpoint is of step 6'):
    train.train_and_evaluate(config, str(tmp_path))
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'3', '6'}
  assert [step for step, _ in training_losses(tmp_path)] == [2, 4, 6, 8]


def break_step(monkeypatch, step):
  """Gives a step of the next runs images with NaN, once in each run."""
  create_experiment = experiment.create_experiment

  def create(config):
    exp, is_broken = create_experiment(config), []

    def train_step(state, batch):
      if int(state.step) == step - 1 and not is_broken:
        is_broken.append(True)
        image = batch['image'].astype(np.float32) / 255
        batch = {**batch, 'image': image.at[0, 0, 0, 0].set(np.nan)}
      return exp.train_step(state, batch)

    return exp._replace(train_step=train_step)

  monkeypatch.setattr(experiment, 'create_experiment', create)


def test_a_bad_step_is_skipped_and_counted_or_made_again(
  tmp_path, digits_dir, tiny_model, runs, monkeypatch, caplog
):
  config = small_config(digits_dir)
  break_step(monkeypatch, 4)
  config.eval.every_epochs = 1.0
  absl_logging.set_verbosity('info')
  config.on_nonfinite = 'skip'
  train.train_and_evaluate(config, str(tmp_path / 'skip'))
  counts = [x.get('train/skipped_steps') for x in results(tmp_path / 'skip')]
  assert [x for x in counts if x is not None] == [0, 0, 0, 1, 1, 1]
  assert np.isfinite([x for _, x in training_losses(tmp_path / 'skip')[-2:]]).all()
  state = load(config, tmp_path / 'skip', 6)
  assert state.step == 5
  rates = [
    x['train/learning_rate'] for x in results(tmp_path / 'skip') if 'train/loss' in x
  ]
  others = [
    x['train/learning_rate'] for x in results(runs['finished']) if 'train/loss' in x
  ]
  assert rates == [*others[:3], *others[2:5]]  # The rate goes by the updates.

  config.on_nonfinite = 'stop'
  with pytest.raises(
    errors.UserError,
    match='diverged: statistics/.* at step 4; its images are number 24 to 31 of the ',
  ):
    train.train_and_evaluate(config, str(tmp_path / 'stop'))
  before = sorted(tmp_path.glob('stop/**/*'))
  caplog.clear()
  config.optim.schedule.learning_rate *= 2
  replay.replay_step(config, str(tmp_path / 'stop'), 4)
  assert 'config.optim.schedule.learning_rate was ' in caplog.text
  assert 'step 4: the first that is not finite is statistics/' in caplog.text
  assert 'making steps 3 to 4 again' in caplog.text
  new = {x.name for x in {*tmp_path.glob('stop/**/*')} - {*before}}
  assert new == {'replay_4.npz', 'replay_4.png'}
  exp = experiment.create_experiment(config)
  batches = experiment.create_train_batches(exp.config, exp, examples_seen=24)
  with np.load(tmp_path / 'stop/replay_4.npz') as file:
    for key, expected in next(batches).items():
      np.testing.assert_array_equal(file[key], expected)
  for step in (0, 7):
    with pytest.raises(
      errors.UserError, match=f'{step}; allowed: 1 to 6, the steps of'
    ):
      replay.replay_step(config, str(tmp_path / 'stop'), step)
  with pytest.raises(errors.UserError, match='there is no .*/other/config.json'):
    replay.replay_step(config, str(tmp_path / 'other'), 4)
  assert not (tmp_path / 'other').exists()


def test_if_all_checkpoints_are_damaged_none_is_moved(
  tmp_path, digits_dir, tiny_model, runs, monkeypatch
):
  workdir = copy(runs['finished'], tmp_path)
  before = sorted(tmp_path.rglob('*'))
  monkeypatch.setattr(contents, 'find_nonfinite', lambda arrays: 'x')
  with pytest.raises(errors.UserError, match='step 2: x is not finite; step 4: x'):
    train.train_and_evaluate(small_config(digits_dir), workdir)
  assert sorted(tmp_path.rglob('*')) == before


def test_bad_images_are_counted_in_the_metrics_and_passed_over(
  tmp_path, tiny_model, caplog
):
  files = {
    f'train/{name}/{i}.JPEG': tiny_imagenet.jpeg(40, 40, seed=i)
    for name in 'ab'
    for i in range(12)
  }
  files['train/a/12.JPEG'] = tiny_imagenet.corrupt_jpeg()
  files['train/b/12.JPEG'] = b''
  files['train/b/13.JPEG'] = tiny_imagenet.png()
  for i in range(8):
    files[f'val/{"ab"[i % 2]}/{i}.JPEG'] = tiny_imagenet.jpeg(40, 40, seed=i)
  files['val/a/9.JPEG'] = tiny_imagenet.truncated_jpeg()
  for path, encoded in files.items():
    path = tmp_path / 'images' / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)

  config = small_config('')
  config.data.update(
    name=f'folder:{tmp_path}/images',
    train_split='train',
    eval_split='val',
    max_bad_share=0.01,
    exif_orientation='none',
  )
  config.num_epochs = 32 / 27 * 2  # Eight steps: two epochs of 27, and a part.
  config.eval.every_epochs = config.checkpoint.every_epochs = 10.0
  values = train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert values['val/num_examples'] == 8
  counts = [
    x['data/bad_examples'] for x in results(tmp_path / 'run') if 'train/loss' in x
  ]
  assert counts == sorted(counts) and 4 <= counts[-1] <= 6
  for path in ('train/a/12.JPEG', 'train/b/12.JPEG', 'val/a/9.JPEG'):
    assert f'{path} cannot be decoded' in caplog.text

  config.data.max_bad_share = 0.001
  with pytest.raises(
    errors.UserError, match='^2 of .* at most 1, .*max_bad_share=0.001'
  ):
    exp = experiment.create_experiment(config)
    stream = experiment.create_train_batches(config, exp, examples_seen=0)
    list(itertools.islice(stream, 8))


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(errors.UserError, match='cannot write to --workdir .*file/run'):
    directory.open_workdir(str(tmp_path / 'file' / 'run'))
  path = directory.open_workdir(str(tmp_path))
  (tmp_path / 'checkpoints').symlink_to('/proc')  # In which not even root makes files.
  with pytest.raises(errors.UserError, match=f'--workdir {tmp_path}/checkpoints: '):
    directory.check_writable(path)


def test_default_workdirs_are_told_apart():
  assert directory.default_workdir('configs/a.py') == 'runs/a'
  assert directory.default_workdir('/x/configs/a.py:b0,smoke') == 'runs/a_b0_smoke'


def test_ctrl_c_ends_the_run_in_one_line(tmp_path, digits_dir):
  command = [
    sys.executable,
    ROOT / 'main.py',
    '--config=configs/digits_vanilla.py:smoke',
  ]
  command += [f'--workdir={tmp_path}', f'--config.data.data_dir={digits_dir}']
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  with subprocess.Popen(
    command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
  ) as process:
    seen = next(line for line in process.stderr if 'compiling the step' in line)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().strip().splitlines()
  assert seen and process.returncode == 130
  assert 'Traceback' not in ''.join(rest)
  assert rest[-1].startswith('SIGINT: interrupted; the same command begins it anew ')
  assert rest[-1].endswith(f' (see {tmp_path})')
