"""Tests the small files of a run, whatever an earlier one left of them."""

import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from absl import logging as absl_logging
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator

from advprop_jax import errors
from advprop_jax.workdir import directory, logs, metric_writer, spent

GOOD = b'{"step": 1, "a": 0.5}\n{"step": 2, "a": 0.25}\n'
TAILS = {
  'half a line': b'{"step": 3, "a": 0.',
  'half a character': b'{"step": 3, "a": "\xe3\x81',
  'zeros': bytes(512),
  'noise': np.random.default_rng(0).bytes(999),
  'brackets': b'[' * 100_000,
  'no object': b'3\nnull\n[]\n{"a": 1}\n',
}


def lines(path):
  return (path / 'results.jsonl').read_bytes().splitlines()


@pytest.mark.parametrize('tail', TAILS)
def test_a_torn_tail_is_dropped_on_resume(tail, tmp_path):
  (tmp_path / 'results.jsonl').write_bytes(GOOD + TAILS[tail])
  with metric_writer.MetricWriter(epath.Path(tmp_path), resume_step=2) as writer:
    writer.write_scalars(3, {'a': 0.125})
  assert b'\n'.join(lines(tmp_path)) + b'\n' == GOOD + b'{"step": 3, "a": 0.125}\n'


@pytest.mark.parametrize('tail', TAILS)
def test_every_line_stays_in_evaluation_and_the_next_one_is_whole(tail, tmp_path):
  (tmp_path / 'results.jsonl').write_bytes(GOOD + TAILS[tail])
  with metric_writer.MetricWriter(epath.Path(tmp_path)) as writer:
    writer.write_scalars(2, {'a': 0.125}, about={'split': 'test'})
  content = (tmp_path / 'results.jsonl').read_bytes()
  assert content.startswith(GOOD + TAILS[tail])
  last = json.loads(content.split(b'\n')[-2])
  assert last == {'step': 2, 'split': 'test', 'a': 0.125}


def test_lines_after_the_step_of_the_resume_are_dropped(tmp_path):
  (tmp_path / 'results.jsonl').write_bytes(GOOD)
  with metric_writer.MetricWriter(epath.Path(tmp_path), resume_step=1):
    pass
  assert lines(tmp_path) == [b'{"step": 1, "a": 0.5}']


def test_what_is_not_finite_is_null(tmp_path):
  with metric_writer.MetricWriter(epath.Path(tmp_path)) as writer:
    writer.write_scalars(1, {'a': math.nan, 'b': math.inf, 'c': 1.0})
  assert lines(tmp_path) == [b'{"step": 1, "a": null, "b": null, "c": 1.0}']


def test_pictures_of_different_data_do_not_overwrite_each_other(tmp_path):
  names = ['val/x', 'digits:test/x', 'folder:/a/b:test[:80%]/x', 'folder:/a/c:test/x']
  with metric_writer.MetricWriter(epath.Path(tmp_path)) as writer:
    for i, name in enumerate(names):
      writer.write_image(7, name, np.full((2, 2, 3), i, np.uint8))
  found = {
    path.name: np.asarray(Image.open(path))[0, 0, 0]
    for path in (tmp_path / 'pictures').iterdir()
  }
  assert found == {
    'val_step_0000007.png': 0,
    'digits_test_step_0000007.png': 1,
    'folder_a_b_test_80_step_0000007.png': 2,
    'folder_a_c_test_step_0000007.png': 3,
  }


def test_the_config_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
  path = epath.Path(tmp_path)
  directory.write_config(path, {'seed': 0})

  write_bytes = type(path).write_bytes

  def write_half(self, content):
    write_bytes(self, content[:5])
    raise OSError('disk full')

  monkeypatch.setattr(type(path), 'write_bytes', write_half)
  with pytest.raises(errors.UserError, match='config.json: disk full; allowed: '):
    directory.write_config(path, {'seed': 1})
  assert directory.read_config(path / 'config.json') == {'seed': 0}


@pytest.mark.parametrize('num_steps, recorded', [(2, '6 to 7'), (100, '6 to 8')])
def test_a_profile_of_a_short_run_is_of_what_is_left(
  num_steps, recorded, tmp_path, caplog
):
  absl_logging.set_verbosity('info')
  steps = {'first_step': 5, 'last_step': 8}
  profile = logs.create_profiler(epath.Path(tmp_path), num_steps=num_steps, **steps)
  for step in range(5, 9):
    profile(step, jnp.zeros(3) + step)
  (file,) = tmp_path.glob('tensorboard/plugins/profile/*/*.xplane.pb')
  assert file.stat().st_size > 0
  assert f'steps {recorded} are profiled' in caplog.text
  assert f'--logdir={tmp_path}/tensorboard' in caplog.text


def test_there_is_no_profile_of_nothing(tmp_path, caplog):
  path, steps = epath.Path(tmp_path), {'first_step': 5, 'last_step': 5}
  assert logs.create_profiler(path, num_steps=0, **steps) is None
  assert not caplog.text
  assert logs.create_profiler(path, num_steps=3, **steps) is None
  assert 'step 5 is the only one left' in caplog.text


def test_what_was_lost_is_spent_all_the_same():
  timer = spent.PhaseTimer()
  timer.add({'train': 1.5, 'device_hours': 5.0})
  timer.add_lost({'step': 9, 'device_hours': 7.0}, resume_step=6)
  with timer('train'):
    pass
  second = spent.PhaseTimer()  # After another stop, at step 12 of 10 saved ones.
  second.add(json.loads(json.dumps(timer.spent)))
  second.add_lost({'step': 12, 'device_hours': 7.5}, resume_step=10)
  expected = {
    'secs/train': 1.5,
    'device_hours': 7.5,
    'lost_device_hours': 2.5,
    'lost_steps': 5,
  }
  assert second.scalars() == pytest.approx(expected, abs=0.01)


def test_what_was_lost_before_a_checkpoint_that_is_damaged_now_counts_once():
  timer = spent.PhaseTimer()
  timer.add({'device_hours': 5.0})  # Of step 200; the start at step 300 had lost 50.
  timer.add_start(
    {'step': 300, 'device_hours': 9.0, 'lost_device_hours': 1.0, 'lost_steps': 50},
    resume_step=200,
  )
  timer.add_lost({'step': 320, 'device_hours': 10.0}, resume_step=200)
  expected = {'device_hours': 10.0, 'lost_device_hours': 5.0, 'lost_steps': 170}
  assert timer.scalars() == pytest.approx(expected, abs=0.01)


def test_tensorboard_has_each_point_once_however_often_a_run_is_resumed(tmp_path):
  path = epath.Path(tmp_path)
  for resume_step in (-1, 2, 4):
    with metric_writer.MetricWriter(path, resume_step=resume_step) as writer:
      for step in range(max(0, resume_step) + 1, 7):
        writer.write_scalars(step, {'loss': 10.0 * resume_step + step})
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    points = events.Tensors('loss')
    found = [(x.step, float(tf.make_ndarray(x.tensor_proto))) for x in points]
    assert found == [(x['step'], x['loss']) for x in map(json.loads, lines(tmp_path))]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    time.sleep(1)  # Names of event files have the second; starts are further apart.


def test_an_evaluation_does_not_replace_what_a_training_writes(tmp_path):
  path = epath.Path(tmp_path)
  (tmp_path / 'results.jsonl').write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
  with (tmp_path / 'results.jsonl').open('a') as training:
    with metric_writer.MetricWriter(path):
      training.write('{"step": 3, "a": 3}\n')
      training.flush()
  assert lines(tmp_path)[-1] == b'{"step": 3, "a": 3}'
