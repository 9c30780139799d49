"""Tests every file of configs/: values only, and each one runs end to end."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from advprop_jax import models, train
from configs import arguments, default

HELPERS = {'default', 'arguments'}
FILES = (pathlib.Path(__file__).parent.parent / 'configs').glob('[a-z]*.py')
NAMES = sorted({path.stem for path in FILES} - HELPERS)


def get_config(name, argument=None):
  return importlib.import_module(f'configs.{name}').get_config(argument)


def leaves(config, prefix=''):
  for key, value in config.items():
    if hasattr(value, 'items'):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


@pytest.mark.parametrize('argument', [None, 'smoke'])
@pytest.mark.parametrize('name', NAMES)
def test_has_exactly_the_default_keys_and_their_types(name, argument):
  config, schema = get_config(name, argument), default.get_config()
  assert config.is_locked
  assert dict(leaves(config)).keys() == dict(leaves(schema)).keys()
  for key, value in leaves(schema):
    if value is not None:
      assert type(dict(leaves(config))[key]) is type(value), key


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('effnet_b')])
def test_images_have_the_size_of_the_model(name):
  config = get_config(name)
  assert config.data.image_size == models.MODELS[config.model.name].image_size
  assert f'effnet_{config.model.name.removeprefix("efficientnet_")}_' in name


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith('effnet_b')])
def test_epsilon_and_steps_follow_the_rule_of_the_paper(name):
  attack = get_config(name).attack
  epsilon = round(attack.epsilon * 255)
  assert attack.epsilon == epsilon / 255 and attack.step_size == 1 / 255
  assert attack.num_steps == (1 if epsilon == 1 else epsilon + 1)


def test_an_unknown_argument_lists_the_known_ones():
  with pytest.raises(ValueError, match="'smok'; allowed: smoke"):
    get_config('effnet_b0_advprop', 'smok')
  assert arguments.parse('smoke,') == {'smoke'}


def test_a_misspelt_key_or_a_wrong_type_is_refused():
  config = default.get_config()
  with pytest.raises(AttributeError, match='epsilon'):
    config.attack.epsilom = 1.0
  with pytest.raises(TypeError):
    config.attack.num_steps = 'many'


def shrink(config, data_dir):
  """Leaves the code path whole and makes it as short as it can be: two steps."""
  config.data.update(
    data_dir=str(data_dir),
    train_split='train[:64]',
    eval_split='test[:12]',
    batch_size=32,  # Eight a device; the statistics of fewer make gradients explode.
    eval_batch_size=8,
  )
  config.log_every_steps = 1
  config.eval.attack.num_steps = 1
  return config


@pytest.mark.parametrize('name', NAMES)
def test_runs_end_to_end(name, tmp_path, digits_dir):
  config = shrink(get_config(name, 'smoke'), digits_dir)
  values = train.train_and_evaluate(config, str(tmp_path))

  norms = {stream['norm'] for stream in config.streams}
  for norm in norms:
    assert 0 <= values[f'val/{norm}_pgd_top1'] <= 1
    assert np.isfinite(values[f'val/{norm}_loss'])
  assert values['val/num_examples'] == 12
  text = (tmp_path / 'results.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [x['step'] for x in lines if 'train/loss' in x] == [1, 2]
  assert [x['step'] for x in lines if 'val/clean_top1' in x] == [1, 2]
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == config.seed
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 1
  assert len(list((tmp_path / 'pictures').iterdir())) == 2
  assert (tmp_path / 'checkpoints' / '2').is_dir()
  assert jax.device_count() == 4
