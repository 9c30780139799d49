"""Tests that a dry run says what would be trained, and trains nothing."""

import jax
import numpy as np
import pytest
from absl import logging as absl_logging
from PIL import Image
from tiny_model import create_tiny_model

from advprop_jax import dry_run, errors, model_config
from advprop_jax.evaluation import pictures
from advprop_jax.models import arithmetic
from configs import digits_fine_grained


@pytest.fixture
def config(digits_dir, monkeypatch, fast_compilation):
  monkeypatch.setattr(model_config, 'create_model', create_tiny_model)
  config = digits_fine_grained.get_config()
  config.data.data_dir = str(digits_dir)
  config.data.batch_size = 32
  return config


def test_what_would_be_trained_is_said(config, tmp_path, caplog):
  absl_logging.set_verbosity('info')
  workdir = tmp_path / 'run'
  dry_run.dry_run(config, str(workdir))
  assert [x.name for x in workdir.iterdir()] == ['dry_run.png']
  text = caplog.text
  # Conv 3 * 3 * 3 * 8, dense 8 * 10 + 10; three norms of 8 channels.
  assert (
    'efficientnet_tiny: 306 shared weights; norms clean, augmented, adv: 16' in text
  )
  # Two streams of images as they are, one with an attack of two steps.
  count = arithmetic.count_model(create_tiny_model(config, num_classes=10), 32)
  flops = arithmetic.train(count, clean=2, attacked=1, num_steps=2)
  assert f'{dry_run._short(flops)} to train on one' in text
  assert f'{dry_run._short(32 * flops)} a step' in text
  assert 'digits: 1437 images, 10 classes; ' in text and '8 images per device' in text
  rate = config.optim.schedule.learning_rate * 32 / 256
  assert f'{rate:.4g} at most' in text
  assert 'of temporaries; compiled in' in text and 'nothing was trained' in text
  picture = np.asarray(Image.open(workdir / 'dry_run.png'))
  side = pictures.CELL + pictures.MARGIN
  assert picture.shape[1] == 8 * side + pictures.MARGIN
  assert picture.shape[0] == 4 * (side + pictures.CAPTION) + pictures.MARGIN
  assert picture.std() > 10


def test_memory_is_that_of_a_program_by_hand(config, monkeypatch, caplog):
  """Of a step that doubles its input: the argument's bytes, whatever it is."""
  absl_logging.set_verbosity('info')
  monkeypatch.setattr(dry_run, '_draw_first_batch', lambda *_: None)
  found = []
  monkeypatch.setattr(dry_run, '_short', lambda x: found.append(x) or '')
  exp = dry_run.experiment.create_experiment(config)
  step = jax.pmap(lambda state, batch: batch['image'] * 2, in_axes=(None, 0))
  dry_run._describe_memory(exp._replace(train_step=step))
  # Eight images a device; of the state nothing is used and nothing passed.
  assert found[1] == 8 * 32 * 32 * 3 and found[0] == found[1] + found[2]


def test_weights_that_a_training_could_not_begin_with_are_one_line(
  config, tmp_path, monkeypatch
):
  config.init_from = str(tmp_path / 'nothing')
  with pytest.raises(errors.UserError, match='init_from.*nothing'):
    dry_run.dry_run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
  monkeypatch.setattr(dry_run, '_describe_memory', lambda *_: None)
  (tmp_path / 'run' / 'checkpoints' / '7').mkdir(parents=True)
  dry_run.dry_run(config, str(tmp_path / 'run'))  # It would go on from step 7.


def test_a_workdir_that_is_no_local_one_is_one_line(config):
  with pytest.raises(errors.UserError, match='gs://x is no local directory; allowed'):
    dry_run.dry_run(config, 'gs://x')


@pytest.mark.parametrize(
  'x, text',
  [(7, '7'), (999, '999'), (1000, '1 k'), (12_345_678, '12.3 M'), (5e15, '5 P')],
)
def test_numbers_are_short(x, text):
  assert dry_run._short(x) == text
