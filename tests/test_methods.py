"""Tests methods: what a config describes; impossible ones are refused early."""

import jax
import jax.numpy as jnp
import pytest

from advprop_jax import (
  errors,
  experiment,
  methods,
  model_config,
  phases,
  schema,
  stream_config,
)
from configs import default, digits_advprop, digits_fast_advprop, digits_pilot

STREAM = dict(digits_advprop.get_config().streams[0])
ADV = {**STREAM, 'name': 'adv', 'attack': {}, 'branch': 'adv'}


def check(**changes):
  """Checks digits_advprop's config with other values, {'data__batch_size': 8}."""
  config = changes.pop('base', digits_advprop).get_config()
  config.unlock()
  for key, value in changes.items():
    *place, name = key.split('__')
    section = config
    for word in place:
      section = section[word]
    section[name] = value
  config = schema.read(config)
  for phase in phases.split(config):
    experiment.check(phase)


WRONG_STREAMS = [
  (
    ({**STREAM, 'attack': {'epsilom': 1}},),
    "'epsilom' in attack, .*did you mean 'epsilon'.* allowed: epsilon, .*statistics",
  ),
  (({**STREAM, 'weight': 'x'},), "streams.weight is 'x'; .* finite"),
  (({**STREAM, 'weight': float('nan')},), 'streams.weight is nan; .* finite'),
  (({**STREAM, 'weight': -1.0},), 'streams.weight is -1.0; allowed: 0 or more'),
  (({**STREAM, 'weight': 0.0}, ADV), "all streams of branch 'clean' have the weight 0"),
  (
    (STREAM, {**STREAM, 'name': 'x', 'branch': 'augmented'}),
    "'augmented', but none the images without .* image_key 'plain_image'",
  ),
  (('VANILLA',), "holds 'VANILLA'.*as in configs/default.py"),
  (({1: 2, 'a': 3},), "keys .'1', 'a'.*as in configs/default.py"),
  (({**STREAM, 'image_key': 'video'},), "'video'; allowed: image, plain_image"),
  (
    ({**STREAM, 'label_key': 'labels'},),
    "'labels'; did you mean 'label'. allowed: label",
  ),
  (({**ADV, 'label_key': None},), 'streams.label_key is None; allowed: text'),
  (
    ({**STREAM, 'image_key': 'plain_image'},),
    "'none': both views .* would be the same",
  ),
  (({**STREAM, 'branch': 'adv'},), "norms .*'adv'.*'clean'"),
  (({**STREAM, 'branch': 'claen'},), "branch 'claen' .*did you mean 'clean'.*'adv_2'"),
  (
    (STREAM, {**ADV, 'branch': 'adv_pgd'}),
    "'adv_pgd' .*one with an ending, 'adv_2', bu",
  ),
  ((STREAM, {**ADV, 'branch': 'adv_'}), "unknown branch 'adv_' of a stream"),
  ((STREAM, {**ADV, 'branch': 'adv_a/b'}), "unknown branch 'adv_a/b' of a stream"),
  (({**STREAM, 'name': ''},), "a stream is named ''.*allowed: a-z, 0-9 and '_'"),
  (({**STREAM, 'name': 'a/b'},), "named 'a/b', as its metrics are"),
  (({**STREAM, 'branch': 'third'},), "'third' of a stream; allowed: clean, adv, augm"),
  ((STREAM, STREAM), 'every name once'),
  ((), "norms \\[\\]; allowed: any that include 'clean'"),
  (({'weigth': 1.0},), "keys .*'weigth'.*'weight'"),
]
AUTOAUGMENT = {'data__augmentation': default.AUTOAUGMENT}
PLAIN = {**STREAM, 'image_key': 'plain_image'}
SIGMOID = {'model__activation': 'silu', 'model__smooth_backward': 'both'}
FAST = {'base': digits_fast_advprop}
OTHER_PHASE = {'streams': default.VANILLA}
WRONG = [
  *(({'streams': streams}, message) for streams, message in WRONG_STREAMS),
  (
    {**AUTOAUGMENT, 'streams': (PLAIN, {**PLAIN, 'name': 'a', 'branch': 'augmented'})},
    "image_key of all streams is 'plain_image': no augmented image is used",
  ),
  ({**AUTOAUGMENT, 'streams': (PLAIN,)}, 'no augmented image is used'),
  (
    {
      **AUTOAUGMENT,
      'streams': (STREAM, {**PLAIN, 'name': 'a', 'branch': 'augmented'}),
    },
    "stream 'a' trains the branch 'augmented' on 'plain_image', which is not augm",
  ),
  (
    {'model__activation': 'gellu', 'model__smooth_backward': 'both'},
    "activation 'gellu'",
  ),
  (SIGMOID, "smooth_backward is 'both' and .*'silu'.* allowed: .*'relu', or 'none'"),
  ({'model__activation': 'relu_smooth_backward'}, "allowed: 'relu', with model.sm"),
  (
    {
      'model__activation': 'relu',
      'model__smooth_backward': 'attack',
      'streams': default.VANILLA,
    },
    "no stream has an attack; allowed: 'update' or 'none'",
  ),
  ({'model__smooth_backward': 'everywhere'}, "'everywhere'; allowed: attack, both, no"),
  ({'method': {'name': 'fast'}}, "unknown method.name 'fast'; allowed: fast_advprop"),
  (
    {**FAST, 'method__adversarial_share': 0.01},
    'of the 20 images .* 0 are attacked; allowed: .* at least 1 attacked and 1 clean',
  ),
  ({**FAST, 'method__adversarial_share': 1.0}, 'of the 20 images .* 20 are attacked'),
  ({**FAST, 'method__adversarial_share': 1.5}, 'share is 1.5; allowed: 0 to 1'),
  ({**FAST, 'method__adversarial_weight': 0.0}, 'weight is 0: nothing is learnt'),
  (
    {**FAST, 'method__reuse_gradient': False},
    'noise_weight is 0.5 and .*reuse_gradient is False: .*noise_weight 0.0, or',
  ),
  ({**FAST, 'method__epsilon': 8.0}, 'method.epsilon is 8.0; .*8 is 8/255'),
  (
    {**FAST, 'method__statistics': 'all'},
    "method.statistics 'all'; allowed: batch, ru",
  ),
  (
    {**FAST, 'model__activation': 'relu', 'model__smooth_backward': 'update'},
    "smooth_backward is for methods of streams, .*: 'none'",
  ),
  ({'phases': ('x',)}, "phases is \\('x',\\); allowed: dicts"),
  (
    {'phases': ({'num_epoch': 1.0},)},
    "'num_epoch' in phases\\[0\\]; did you mean 'num_",
  ),
  (
    {'phases': (OTHER_PHASE, {'optim': {'lr': 1}})},
    "'lr' in phases\\[1\\]\\['optim'\\]",
  ),
  ({'phases': ({'optim': 1},)}, "'optim' in phases\\[0\\] is 1; allowed: a dict"),
  ({'phases': ({'num_epochs': -1.0},)}, 'num_epochs is -1.0'),
  ({'phases': ({'streams': WRONG_STREAMS[-1][0]},)}, "keys .*'weigth'"),
  (
    {'phases': ({}, {'optim': {'schedule': dict(default.COSINE, name='cosin')}})},
    "unknown optim.schedule.name 'cosin'",
  ),
  (
    {'phases': ({}, {'eval': {'attack': {'name': 'pgd'}}})},
    "eval.attack, which is 'pgd', has no value for 'epsilon'",
  ),
  ({'phases': ({}, {'data': {'batch_size': 7}})}, 'data.batch_size is 7, to be split'),
  (
    {'phases': ({}, {'model': {'activation': 'relu'}})},
    'phases\\[1\\] changes the network: .* all keys but',
  ),
  ({'phases': ({'phases': ()},)}, "unknown key 'phases' in phases"),
  (
    {'phases': ({}, {'init_from': 'runs/x'})},
    'phases.1. sets init_from, and begins with .*; allowed: config.init_from, with wh',
  ),
  ({'phases': ({1: 2},)}, 'unknown key 1 in phases.0.; allowed'),
  (
    {'phases': ({'data': {'name': 'digits', 'augmentatoin': 1}},)},
    "'augmentatoin' in phases.0...data'.; did you mean 'augmentation'",
  ),
]


@pytest.mark.parametrize('changes, message', WRONG, ids=[x[1] for x in WRONG])
def test_what_cannot_be_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as e:
    check(**changes)
  assert '\n' not in str(e.value)


def test_a_wrong_method_is_refused_before_data_are_opened():
  config = digits_advprop.get_config()
  config.data.name = 'no_such_data'
  config.streams = (STREAM, STREAM)
  with pytest.raises(errors.UserError, match='every name once'):
    experiment.create_experiment(config)


def test_a_smooth_backward_pass_is_where_it_is_asked_for(monkeypatch):
  model = model_config.create_model(digits_advprop.get_config(), num_classes=10).clone(
    activation='relu'
  )
  for choice, expected in {
    'none': ('relu', 'relu'),
    'attack': ('relu_smooth_backward', 'relu'),
    'update': ('relu', 'relu_smooth_backward'),
    'both': ('relu_smooth_backward', 'relu_smooth_backward'),
  }.items():
    config = digits_advprop.get_config()
    config.model.update(activation='relu', smooth_backward=choice)
    seen = []
    monkeypatch.setattr(
      methods.train_step,
      'make_train_step',
      lambda model, *_, attacked_model, seen=seen: seen.extend(
        [attacked_model.activation, model.activation]
      ),
    )
    method = methods.create_method(schema.read(config), num_classes=10)
    method.make_step(model, None)
    assert tuple(seen) == expected


def test_a_phase_may_have_other_data():
  config = digits_pilot.get_config()
  config.phases = ({'data': {'name': 'fashion_mnist', 'flip': True}},)
  (phase,) = phases.split(schema.read(config))
  assert phase.data == {
    **schema.read(config).data,
    'name': 'fashion_mnist',
    'flip': True,
  }


def test_phases_are_the_config_with_other_values():
  config = schema.read(digits_pilot.get_config())
  first, second = phases.split(config)
  assert first.phases == second.phases == ()
  assert first.streams == default.ADVERSARIAL_ONLY
  assert second.streams == default.VANILLA and second.num_epochs == 5.0
  # A section with a name is replaced, any other is changed in places.
  assert second.optim.schedule.learning_rate == 0.025
  assert second.optim.ema_decay == first.optim.ema_decay == config.optim.ema_decay
  assert second.data == first.data == config.data
  assert phases.split(first) == [first]
  config = schema.Section(config | {'init_from': 'runs/x'})  # Of the first alone.
  assert [x.init_from for x in phases.split(config)] == ['runs/x', '']


def test_a_stream_may_have_an_attack_of_its_own():
  config = digits_advprop.get_config()
  strong = dict(
    default.ADV,
    name='strong',
    branch='adv_strong',
    attack={'epsilon': 0.2, 'num_steps': 9},
  )
  config.streams = (default.CLEAN, default.ADV, strong)
  streams = stream_config.create_streams(config, num_classes=3)
  weights = jax.random.normal(jax.random.key(0), (8, 8, 3, 3))
  image, label = jnp.full((2, 8, 8, 3), 0.5), jnp.array([0, 1])
  radii = [
    float(
      jnp.abs(
        stream.attack(
          lambda x: jnp.einsum('bhwc,hwck->bk', x, weights),
          image,
          label,
          jax.random.key(1),
        )
        - image
      ).max()
    )
    for stream in streams[1:]
  ]
  assert radii[0] <= config.attack.epsilon + 1e-6 < 0.1 < radii[1] <= 0.2 + 1e-6
  assert [stream.branch for stream in streams] == ['clean', 'adv', 'adv_strong']
