"""Tests every file of configs/: its values, and that it trains.

Every kind of step is made here, every one of the forms `:smoke` with `-m large`.
"""

import importlib
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
from config_sections import SECTIONS, leaves
from tiny_model import create_tiny_model

from advprop_jax import (
  experiment,
  methods,
  model_config,
  parallel,
  phases,
  schema,
  train,
)
from advprop_jax.models import efficientnet
from configs import arguments, default, effnet_sizes, resnet_sat, resnets, saved

HELPERS = {'default', 'arguments', 'effnet_sizes', 'lite0', 'resnets', 'saved'}
FILES = (pathlib.Path(__file__).parent.parent / 'configs').glob('[a-z]*.py')
NAMES = sorted({path.stem for path in FILES} - HELPERS)
SIZES = tuple(f'b{i}' for i in range(9))
ARGUMENTS = {
  'effnet_vanilla': SIZES + tuple(f'{x},randaugment' for x in ('b5', 'b7', 'b8')),
  'effnet_adversarial_training': SIZES,
  'effnet_ablation': (
    'b0',
    'b3,attack=ifgsm,epsilon=4',
    'b7,attack=gd,epsilon=2',
  ),
  'effnet_fine_grained': ('b0', 'b0,strengths'),
  'effnet_pilot': ('b3',),
  'effnet_sat': ('b0', 'l1'),
  'resnet_advprop': ('200', '50,vanilla'),
  'resnet_fast_advprop': ('50',),
  'resnet_sat': ('50,relu', 'x152_32x8d,smooth_relu'),
  'resnet_sat_gradient_study': ('attack', 'update', 'both'),
  'digits_sat': ('silu', 'smooth_relu', 'relu', 'relu,update', 'relu,both'),
  'fashion_advprop': ('', 'full'),
  'fashion_sat': ('silu', 'relu', 'relu,full'),
}
ALL = [(name, argument) for name in NAMES for argument in ARGUMENTS.get(name, [''])]
ADVPROP = [f'effnet_{size}_advprop' for size in SIZES]
EFFNETS = [  # With the official recipe.
  (name, argument)
  for name, argument in ALL
  if name in (*ADVPROP, 'effnet_vanilla', 'effnet_adversarial_training')
]


def get_config(name, argument=None):
  return importlib.import_module(f'configs.{name}').get_config(argument)


def get_smoke(name, argument):
  return get_config(name, f'{argument},smoke')


def check_same_keys(config, schema, place):
  """Checks that a config has the keys and types of another, or of a named section."""
  assert config.is_locked, place
  for section in SECTIONS.get(place.removesuffix('.'), []):
    if section.keys() == dict(config).keys():
      schema = section
  assert dict(config).keys() == dict(schema).keys(), place
  for key, value in config.items():
    if hasattr(value, 'items'):
      check_same_keys(value, schema[key], f'{place}{key}.')
    else:
      assert type(value) is type(schema[key]), f'{place}{key}'


@pytest.mark.parametrize('get', [get_config, get_smoke])
@pytest.mark.parametrize('name, argument', ALL)
def test_has_exactly_the_default_keys_and_their_types(name, argument, get):
  check_same_keys(get(name, argument), default.get_config(), '')


@pytest.mark.parametrize('get', [get_config, get_smoke])
@pytest.mark.parametrize('name, argument', ALL)
def test_a_round_trip_through_json_is_the_identity(name, argument, get):
  config = get(name, argument)
  text = json.dumps(config.to_dict())
  again = saved.get_config(text)
  assert again.to_dict() == config.to_dict() and again.is_locked
  assert json.dumps(again.to_dict()) == text
  assert schema.read(json.loads(text)) == schema.read(config) == config.to_dict()


def test_every_size_has_its_advprop_config():
  assert set(ADVPROP) <= set(NAMES)
  assert tuple(effnet_sizes.SIZES) == SIZES


@pytest.mark.parametrize(
  'name, argument', [x for x in ALL if x[0].startswith('effnet')]
)
def test_images_have_the_size_of_the_model(name, argument):
  config = get_config(name, argument)
  size = argument.split(',')[0] or name.split('_')[1]
  assert config.model.name == f'efficientnet_{size}'
  assert config.data.image_size == efficientnet.VARIANTS[config.model.name].image_size


@pytest.mark.parametrize('size', SIZES[::4])
@pytest.mark.parametrize('name', ['effnet_fine_grained', 'effnet_pilot'])
def test_a_variant_differs_from_advprop_in_its_streams_alone(name, size):
  left, right = (
    dict(leaves(x))
    for x in (get_config(f'effnet_{size}_advprop'), get_config(name, size))
  )
  different = {key for key in left if left[key] != right[key]}
  assert different == {'effnet_pilot': {'phases'}}.get(name, {'streams'})


@pytest.mark.parametrize('name', ADVPROP)
def test_epsilon_and_steps_follow_the_rule_of_the_paper(name):
  attack = get_config(name).attack
  epsilon = round(attack.epsilon * 255)
  assert attack.epsilon == epsilon / 255 and attack.step_size == 1 / 255
  assert attack.num_steps == (1 if epsilon == 1 else epsilon + 1)


def test_epsilon_is_the_best_published_one_of_each_size():
  """AdvProp's table of attack strength: top-1 of epsilon 1, 2, 3 and 4, in %."""
  table = {
    'b0': [77.6, 77.4, 77.3, 77.1],
    'b1': [79.6, 79.4, 79.4, 79.2],
    'b2': [80.5, 80.4, 80.4, 80.3],
    'b3': [81.8, 81.9, 81.9, 81.8],
    'b4': [83.1, 83.1, 83.3, 83.3],
    'b5': [84.3, 84.3, 84.3, 84.3],
    'b6': [84.6, 84.7, 84.7, 84.8],
    'b7': [85.0, 85.0, 85.1, 85.2],
  }
  for size, top1 in table.items():
    config = get_config(f'effnet_{size}_advprop')
    assert top1[round(config.attack.epsilon * 255) - 1] == max(top1), size


@pytest.mark.parametrize('size', SIZES)
def test_a_control_differs_from_advprop_in_nothing_else(size):
  def difference(left, right):
    left, right = dict(leaves(left)), dict(leaves(right))
    return {key for key in left if left[key] != right[key]}

  advprop = get_config(f'effnet_{size}_advprop')
  vanilla = get_config('effnet_vanilla', size)
  shared = get_config('effnet_adversarial_training', size)
  assert difference(advprop, vanilla) == {'streams', 'model.mean', 'model.std'}
  assert difference(advprop, shared) == {'streams'}


@pytest.mark.parametrize(
  'name, argument',
  [
    ('digits_alpha_weighted', 'alpha=0.8'),
    ('effnet_adversarial_training', 'b0,alpha=0.8'),
  ],
)
def test_alpha_weights_the_clean_loss(name, argument):
  """Source: AdvProp's slides: alpha * J(clean) + (1 - alpha) * J(adversarial)."""
  clean, adv = get_config(name, argument).streams
  assert (clean['attack'], adv['attack']) == (None, {})
  assert (clean['weight'], adv['weight']) == pytest.approx((0.8, 0.2))
  assert clean['branch'] == adv['branch'] == 'clean'


def test_the_recipe_is_the_official_one():
  """Its numbers, and those that follow: `main.py` of the official code."""
  config = get_config('effnet_b7_advprop')
  steps_per_epoch = 1281167 / config.data.batch_size
  assert (config.data.batch_size, config.model.dtype) == (2048, 'bfloat16')
  assert round(config.num_epochs * steps_per_epoch) == 218949
  schedule, tx = experiment.create_optimizer(
    config, steps_per_epoch=steps_per_epoch, total_steps=218949
  )
  np.testing.assert_allclose(schedule(3126), 0.128 * 3126 / 3127, rtol=1e-6)
  np.testing.assert_allclose(schedule(3127), 0.12044, rtol=1e-4)
  np.testing.assert_allclose(schedule(218948), 0.00155, rtol=3e-3)
  # One step of it: gradient 2, weight 3, decay 1e-5, the mean square starts at 1.
  weights = {'params': np.float32(3), 'norms': np.float32(3)}
  state = tx.init(weights)
  grads = {'params': np.float32(2), 'norms': np.float32(2)}
  _, state = tx.update(grads, state, weights)  # The first step's rate is 0.
  updates, _ = tx.update(grads, state, weights)
  rate = 0.128 / 3127
  for key, g in {'params': 2 + 3e-5, 'norms': 2}.items():
    mean_square = 0.9 * (0.9 + 0.1 * g**2) + 0.1 * g**2
    expected = -rate * g / np.sqrt(mean_square + 1e-3)
    np.testing.assert_allclose(updates[key], expected, rtol=1e-6)
  assert config.optim.label_smoothing == 0.1 and config.optim.ema_decay == 0.9999
  # Scaled to [-1, 1]: x * 2 / 255 - 1.
  assert config.model.mean == config.model.std == (0.5, 0.5, 0.5)


RECIPE = {
  # Source, unless another is named: `main.py`, `preprocessing.py` and
  # `efficientnet_builder.py` of tensorflow/tpu.
  'num_epochs': 350.0,
  'data.name': 'imagenet2012',
  'data.batch_size': 2048,
  'data.crop_area': (0.08, 1.0),
  'data.crop_padding': 32,
  'data.flip': True,
  'data.augmentation.name': 'autoaugment',
  'data.resize_method': 'bicubic_tf1',
  'model.activation': 'swish',
  'model.drop_connect_rate': 0.2,
  'model.dtype': 'bfloat16',
  'model.bn_momentum': 0.99,
  'model.bn_scope': 'tpu_group',
  'optim.optimizer.name': 'rmsprop',
  'optim.optimizer.decay': 0.9,
  'optim.optimizer.epsilon': 1e-3,
  'optim.optimizer.momentum': 0.9,
  'optim.schedule.learning_rate': 0.016,
  'optim.schedule.warmup_epochs': 5.0,
  'optim.schedule.name': 'staircase',
  'optim.schedule.decay_epochs': 2.4,
  'optim.schedule.decay_rate': 0.97,
  'optim.optimizer.weight_decay': 1e-5,
  'optim.label_smoothing': 0.1,
  'optim.ema_decay': 0.9999,
  # Source: Fast AdvProp, section 3.2.2; the first author's released attack code.
  'attack.targeted': True,
  'attack.prob_start_from_clean': 0.2,
  'attack.statistics': 'running',
}


@pytest.mark.parametrize('name, argument', EFFNETS)
def test_every_size_and_control_has_the_recipe(name, argument):
  values = dict(leaves(get_config(name, argument)))
  recipe = dict(RECIPE)
  if 'randaugment' in argument:
    recipe['data.augmentation.name'] = 'randaugment'
  assert {key: values[key] for key in recipe} == recipe
  if name == 'effnet_vanilla':
    assert values['model.mean'] == (0.485, 0.456, 0.406)
    assert values['model.std'] == (0.229, 0.224, 0.225)
  else:
    assert values['model.mean'] == values['model.std'] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize('name', [ADVPROP[0], ADVPROP[5], ADVPROP[8]])
def test_a_size_can_be_built_as_it_is(name, imagenet_dir):
  """With its real network, attack and batch; nothing is computed."""
  config = get_config(name)
  config.data.data_dir = str(imagenet_dir)
  exp = experiment.create_experiment(config)
  assert exp.total_steps == round(350 * 288 / 2048)
  kernel = exp.abstract_state.params['classifier']['kernel']
  width = {'b0': 1280, 'b5': 2048, 'b8': 2816}
  assert kernel.shape == (width[name.split('_')[1]], 1000)
  assert set(exp.abstract_state.norms) == {'clean', 'adv'}


@pytest.mark.parametrize('size, magnitude', [('b5', 17), ('b7', 28), ('b8', 28)])
def test_randaugment_has_the_published_magnitudes(size, magnitude):
  config = get_config('effnet_vanilla', f'{size},randaugment')
  assert config.data.augmentation.to_dict() == {
    'name': 'randaugment',
    'num_layers': 2,
    'magnitude': magnitude,
  }


SAT_RECIPE = {
  # Source: `ResNet/` of cihangxie/SmoothAdversarialTraining.
  'num_epochs': 100.0,
  'data.augmentation.name': 'color_jitter',
  'data.resize_method': 'bicubic',
  'model.mean': (0.5, 0.5, 0.5),
  'model.bn_momentum': 0.9,
  'model.bn_epsilon': 1e-5,
  'attack.epsilon': 4 / 255,
  'attack.step_size': 4 / 255,
  'attack.num_steps': 1,
  'attack.targeted': False,
  'attack.prob_start_from_clean': 0.2,
  'attack.statistics': 'running',
  'streams': default.ADVERSARIAL_ONLY,
  'optim.optimizer.name': 'sgd',
  'optim.optimizer.momentum': 0.9,
  'optim.optimizer.weight_decay': 1e-4,
  'optim.optimizer.decay_biases': False,
  'optim.schedule.learning_rate': 0.1,
  'optim.schedule.warmup_learning_rate': 0.1,
  'optim.schedule.warmup_epochs': 5.0,
  'optim.schedule.milestones_epochs': (30.0, 60.0, 90.0),
  'optim.schedule.decay_rate': 0.1,
  'optim.label_smoothing': 0.1,
  'optim.ema_decay': 0.0,
}


@pytest.mark.parametrize('argument', ['50,silu', 'x152_32x8d,silu'])
def test_sat_has_the_released_recipe(argument):
  values = dict(leaves(get_config('resnet_sat', argument)))
  assert {key: values[key] for key in SAT_RECIPE} == SAT_RECIPE


def test_every_activation_and_size_of_sat_has_a_config():
  for activation in resnet_sat.ACTIVATIONS:
    assert get_config('resnet_sat', f'50,{activation}').model.activation == activation
  for size, name in resnets.SIZES.items():
    assert get_config('resnet_sat', f'{size},silu').model.name == name


def test_the_norms_of_sats_efficientnets_are_those_of_the_released_weights():
  values = dict(leaves(get_config('effnet_sat', 'l1')))
  assert (values['model.bn_momentum'], values['model.bn_epsilon']) == (0.9, 1e-5)
  assert values['model.name'] == 'efficientnet_l1' and values['data.image_size'] == 600


def test_the_rate_of_sats_efficientnets_goes_down_as_far_as_the_official_one():
  config = get_config('effnet_sat', 'b0')
  schedule, _ = experiment.create_optimizer(
    config, steps_per_epoch=100.0, total_steps=10_000
  )
  official = get_config('effnet_b0_advprop')
  assert official.num_epochs == 350.0
  expected, _ = experiment.create_optimizer(
    official, steps_per_epoch=100.0, total_steps=35_000
  )
  assert float(schedule(9_999)) == pytest.approx(float(expected(34_999)), rel=0.04)


def test_fast_advprop_on_digits_is_advprop_with_a_quarter_more_images():
  fast, advprop = (get_config(f'digits_{x}') for x in ('fast_advprop', 'advprop'))
  clean = fast.data.batch_size * (1 - fast.method.adversarial_share)
  assert clean == advprop.data.batch_size
  rates = [
    float(experiment.create_optimizer(x, steps_per_epoch=10.0, total_steps=200)[0](60))
    for x in (advprop,)
  ]
  rates += [
    float(
      experiment.create_optimizer(fast, steps_per_epoch=12.0, total_steps=200)[0](60)
    )
  ]
  # After 60 of 200 steps, at the same place of the schedule, the rate is the same.
  assert rates[0] == pytest.approx(rates[1], rel=1e-5)


def test_fast_advprop_has_the_published_values():
  config = get_config('resnet_fast_advprop', '50')
  # 105 epochs and their steps down, divided by 1.2: as many passes as vanilla.
  assert round(config.num_epochs) in (87, 88)
  np.testing.assert_allclose(
    np.array(config.optim.schedule.milestones_epochs) * 1.2, [30, 60, 90, 100]
  )
  assert config.method.to_dict() == {
    'name': 'fast_advprop',
    'adversarial_share': 0.2,
    'epsilon': 1 / 255,
    'step_size': 1 / 255,
    'statistics': 'batch',
    'reuse_gradient': True,
    'shuffle_over_devices': True,
    'noise_weight': 0.5,
    'adversarial_weight': 0.5,
    'own_counts': True,
  }
  # The rate is 0.1 for 256 clean images.
  clean = config.data.batch_size * 0.8
  assert clean == 256
  np.testing.assert_allclose(
    config.optim.schedule.learning_rate * config.data.batch_size / 256, 0.1
  )


@pytest.mark.parametrize(
  'name, argument, message',
  [
    ('resnet_sat', '50', 'needs one activation, but was given none; allowed: relu, '),
    ('resnet_sat', 'silu', 'needs one size, but was given none; allowed: 50, 101, '),
    ('resnet_sat', '50,gellu', "unknown config argument 'gellu'; .*allowed: 50"),
    ('resnet_sat_gradient_study', '', 'one place, .* allowed: attack, update, both'),
    ('effnet_ablation', 'b0,epsilon=5', "'epsilon=5'; .*allowed: b0.*epsilon=1"),
    ('effnet_b0_advprop', 'smok', "'smok'; .*allowed: smoke"),
    ('effnet_vanilla', None, 'needs one size, but was given none; .*allowed: b0, b1'),
    ('effnet_vanilla', 'b1,b2', 'given b1, b2; allowed'),
    ('effnet_vanilla', 'b9', "unknown config argument 'b9'; .*allowed: b0, b1"),
    ('effnet_vanilla', 'b0,randaugment', 'setting for b0; .*allowed: b5, b7, b8'),
    ('effnet_adversarial_training', 'b5,randaugment', "'randaugment'; .*allowed: b0"),
    ('digits_alpha_weighted', 'alpha=2', "'alpha=2'; .*allowed: alpha=0.1"),
  ],
)
def test_a_wrong_argument_lists_the_right_ones(name, argument, message):
  with pytest.raises(ValueError, match=message):
    get_config(name, argument)


def test_a_trailing_comma_is_no_argument():
  assert arguments.parse('smoke,') == {'smoke'}


def test_a_misspelt_key_or_a_wrong_type_is_refused():
  config = default.get_config()
  with pytest.raises(AttributeError, match='epsilon'):
    config.attack.epsilom = 1.0
  with pytest.raises(TypeError):
    config.attack.num_steps = 'many'


def shrink(config):
  """Leaves the code path whole and makes it as short as it can be: two steps."""
  config.data.update(
    train_split='train[:64]',
    batch_size=32,  # Eight a device; the statistics of fewer make gradients explode.
    eval_batch_size=8,
  )
  config.log_every_steps = 1
  config.eval.attack.num_steps = 1
  return config


def check_run(config, workdir):
  """Trains, and looks at what a run leaves behind."""
  values = train.train_and_evaluate(config, str(workdir))
  method = methods.create_method(schema.read(config), num_classes=10)
  for branch in method.branch_names:
    for kind in (branch, f'{branch}_pgd'):
      assert 0 <= values[f'val/{kind}_top1'] <= values[f'val/{kind}_top5'] <= 1
    assert 0 < values[f'val/{branch}_loss'] < values[f'val/{branch}_pgd_loss'] < 100
  assert values['val/num_examples'] == 12
  text = (workdir / 'results.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert [x['step'] for x in lines if 'train/loss' in x] == [1, 2]
  assert all(x['data/bad_examples'] == 0 for x in lines if 'train/loss' in x)
  num_classes = 10 if config.data.name == 'digits' else 1000
  for name in method.names:  # The first network knows nothing.
    chance = pytest.approx(np.log(num_classes), rel=0.25)
    assert lines[0][f'train/{name}_loss'] == chance
  assert json.loads((workdir / 'config.json').read_text())['seed'] == config.seed
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  assert (workdir / 'checkpoints' / '2').is_dir()
  assert jax.device_count() == 4
  return lines


DIGITS = (
  *('digits_advprop', 'digits_vanilla', 'digits_adversarial_training'),
  'digits_fast_advprop',
)


@pytest.mark.long
@pytest.mark.parametrize('name', DIGITS)
def test_digits_run_end_to_end(
  name, tmp_path, digits_dir, fast_compilation, monkeypatch
):
  """One with the smoke form's network, which is the same for all; others with less."""
  if name != 'digits_advprop':
    monkeypatch.setattr(model_config, 'create_model', create_tiny_model)
  config = shrink(get_config(name, 'smoke'))
  config.data.update(data_dir=str(digits_dir), eval_split='test[:12]')
  lines = check_run(config, tmp_path)
  assert [x['step'] for x in lines if 'val/clean_top1' in x] == [1, 2]
  assert len(list((tmp_path / 'pictures').iterdir())) == 2


def programs(configs):
  """Returns configs in smoke form, each of those that are the same program once.

  In smoke form all networks are one and the same, so that what is left of a size is the
  strength of the attack: numbers, and no other code.
  """
  parts = ('streams', 'phases')
  distinct = {}
  for name, argument in configs:
    values = dict(leaves(get_smoke(name, argument)))
    seen = [
      value
      for key, value in values.items()
      if key in parts or key.startswith('method.') or key.endswith('.name')
      if key not in ('model.name', 'data.name')
    ]
    seen.append(values['model.smooth_backward'])
    distinct.setdefault(repr(seen), []).append((name, argument))
  return list(distinct.values())


@pytest.mark.long
@pytest.mark.parametrize('same', programs(EFFNETS), ids=lambda x: '-'.join(x[0]))
def test_imagenet_runs_end_to_end(
  same, tmp_path, imagenet_dir, fast_compilation, monkeypatch
):
  config = shrink(get_smoke(*same[0]))
  # The smoke form's network is that of the digits, which one test trains.
  monkeypatch.setattr(model_config, 'create_model', create_tiny_model)
  config.data.update(
    name='imagenet2012', data_dir=str(imagenet_dir), eval_split='validation[:12]'
  )
  config.eval.every_epochs = config.checkpoint.every_epochs = 1.0
  check_run(config, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
  'network', ['two_layers', pytest.param('b0', marks=pytest.mark.large)]
)
def test_images_of_the_real_size_are_trained_on_with_the_real_recipe(
  network, tmp_path, imagenet_dir, fast_compilation, monkeypatch
):
  """All but the batch and the number of steps, of B0 only these, is as on a TPU."""
  if network == 'two_layers':
    monkeypatch.setattr(model_config, 'create_model', create_tiny_model)
  config = get_config('effnet_b0_advprop')
  config.data.update(
    data_dir=str(imagenet_dir),
    train_split='train[:16]',
    eval_split='validation[:12]',
    batch_size=8,
    eval_batch_size=4,
  )
  config.num_epochs = 1.0
  config.eval.attack.num_steps = 1
  check_run(config, tmp_path)


OTHERS = [x for x in ALL if x not in EFFNETS and x[0] not in DIGITS]
# What no other test makes a step of; the rest takes two minutes: `-m large`.
ALWAYS = (
  ('digits_fine_grained', ''),
  ('digits_sat', 'silu'),
  ('effnet_ablation', 'b7,attack=gd,epsilon=2'),
  ('resnet_advprop', '200'),
  ('resnet_sat_gradient_study', 'both'),
)


@pytest.mark.parametrize(
  'same',
  [
    pytest.param(same, marks=() if same[0] in ALWAYS else pytest.mark.large)
    for same in programs(OTHERS)
  ],
  ids=lambda x: '-'.join(x[0]),
)
def test_every_other_config_makes_steps(
  same, digits_dir, fast_compilation, monkeypatch
):
  config = shrink(get_smoke(*same[0]))
  config.data.update(data_dir=str(digits_dir), eval_split='test[:12]')
  # One with the smoke form's ResNet; others with less, without a smooth backward pass.
  if same[0] != ('resnet_sat_gradient_study', 'both'):
    monkeypatch.setattr(model_config, 'create_model', create_tiny_model)
    monkeypatch.setattr(methods, 'with_smooth_backward', lambda model: model)
  for phase in phases.split(schema.read(config)):
    exp = experiment.create_experiment(phase)
    batches = experiment.create_train_batches(phase, exp, examples_seen=0)
    state = parallel.replicate(exp.create_state())
    for batch in parallel.prefetch(itertools.islice(batches, 2)):
      state, metrics = exp.train_step(state, batch)
    assert metrics['all_finite'] and state.step == 2
    for name in exp.method.names:
      assert 0 < metrics[f'{name}_loss'] < 5
