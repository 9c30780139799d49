"""Tests that a broken evaluation is noticed: for each sign a model that is broken."""

import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors
from advprop_jax.attacks import (
  autoattack,
  checks,
  ensembles,
  standalone,
  table,
  worst_case,
)
from advprop_jax.attacks.ensembles import Stage
from advprop_jax.attacks.worst_case import State

pytestmark = pytest.mark.usefixtures('fast_compilation')

EPSILON, SHAPE, NUM_CLASSES, COUNT = 0.05, (4, 4, 3), 5, 24
IMAGE = np.random.RandomState(1).uniform(size=(COUNT, *SHAPE)).astype(np.float32)
HIDDEN = np.random.RandomState(0).standard_normal((48, 12)).astype(np.float32) / 4
OUT = np.random.RandomState(2).standard_normal((12, NUM_CLASSES)).astype(np.float32)
NUMBERS = itertools.count()


def sound(image):
  return jnp.tanh((image.reshape(len(image), -1) - 0.5) @ HIDDEN) @ OUT


def quantised(image):
  return sound(jnp.round(image * 8) / 8)


def saturated(image):
  return 1e4 * sound(image)


def with_dropout(image):
  # As a layer whose generator is not part of the function's arguments.
  kept = np.random.RandomState(next(NUMBERS)).uniform(size=48) < 0.8
  flat = image.reshape(len(image), -1) * jnp.asarray(kept, jnp.float32)
  return jnp.tanh(flat @ HIDDEN) @ OUT


def with_statistics_of_the_batch(image):
  return sound(image - image.mean(0) + 0.5)


def create_run(logits_fn, batch_size=COUNT):
  return worst_case.WorstCase(
    lambda variables, image: logits_fn(image),
    jnp.zeros(1),
    num_classes=NUM_CLASSES,
    norm='linf',
    batch_size=batch_size,
    rng=jax.random.key(0),
  )


def find(logits_fn, stage, label=None):
  """Returns {name: check} of a model."""
  label = np.asarray(logits_fn(IMAGE)).argmax(-1) if label is None else label
  positions = np.arange(COUNT, dtype=np.int32)
  examples = worst_case.Examples(IMAGE, label.astype(np.int32), positions)
  run = create_run(logits_fn)
  state = run.begin(examples)
  return {x.name: x for x in checks.before(run, examples, state, stage)}


APGD = Stage('apgd-ce', (('name', 'apgd'), ('loss', 'ce'), ('num_steps', 20)), EPSILON)


def failed(found):
  return {name for name, x in found.items() if not x.passed}


def test_a_sound_model_passes_all():
  found = find(sound, APGD)
  assert failed(found) == set()
  assert list(found) == [
    'randomised',
    'leaks',
    'gradient of the cross-entropy',
    'gradient of the DLR',
    'epsilon 0',
    'epsilon 1/2',
    'more steps',
    'larger epsilon',
  ]


@pytest.mark.parametrize(
  'broken, signs, reason',
  [
    (
      quantised,
      {'gradient of the cross-entropy', 'gradient of the DLR', 'epsilon 1/2'},
      'is 0 for 24 of 24 images: attacks by gradients are blind there',
    ),
    (
      saturated,
      {'gradient of the cross-entropy'},
      'images: attacks by gradients are blind there',
    ),
    (with_dropout, {'randomised'}, 'or dropout is left on'),
    (with_statistics_of_the_batch, {'leaks'}, 'batch norm uses the statistics'),
  ],
)
def test_a_broken_model_is_noticed(broken, signs, reason):
  label = np.asarray(sound(IMAGE)).argmax(-1) if broken is with_dropout else None
  found = find(broken, APGD, label)
  assert signs <= failed(found)
  assert any(reason in found[name].text for name in signs)
  # And another sign is not given for it; dropout may give any.
  allowed = {'epsilon 1/2', 'more steps', 'larger epsilon'}
  assert broken is with_dropout or failed(found) <= signs | allowed


def test_weak_attacks_are_noticed(monkeypatch):
  def make(*, epsilon, num_steps, how):
    def attack(logits_fn, image, label, rng):
      strength = {
        'no ball': 0.1 + 0 * epsilon,
        'fewer steps': jnp.where(num_steps < 10, epsilon, 0.0),
        'small epsilon': jnp.where(epsilon < 2 * EPSILON - 1e-4, epsilon, 0.0),
      }[how]

      def loss(x):
        return -jax.nn.log_softmax(logits_fn(x))[jnp.arange(COUNT), label].sum()

      return jnp.clip(image + strength * jnp.sign(jax.grad(loss)(image)), 0, 1)

    return attack

  monkeypatch.setitem(table.ATTACKS, 'weak', make)
  for how, sign, reason in (
    ('no ball', 'epsilon 0', 'is another one under attack'),
    ('fewer steps', 'more steps', 'fall to the weaker attack alone: the loss is not'),
    ('small epsilon', 'larger epsilon', 'fall to the weaker attack alone: the loss'),
  ):
    section = (('name', 'weak'), ('num_steps', 20), ('how', how))
    found = find(sound, Stage('weak', section, EPSILON))
    assert not found[sign].passed and reason in found[sign].text


def test_square_that_beats_gradients_is_noticed():
  stages = ensembles.stages(
    ensembles.VERSIONS['standard'], epsilon=0.1, norm='linf', num_classes=3
  )
  count = len(stages)
  for last, passed in ((500, True), (498, True), (497, False)):
    state = State(
      np.zeros(1),
      1000,
      robust=(900, *[500] * (count - 1), last),
      **dict.fromkeys(('rejected', 'not_finite', 'unsteady'), (0,) * count),
    )
    (check,) = checks.after(stages, state)
    assert check.passed == passed  # AutoAttack's limit: 0.2 % of all.
    assert ('gradients may be masked' in check.text) != passed
  state = state._replace(rejected=(3,) + (0,) * (count - 1))
  rules, _ = checks.after(stages, state)
  assert not rules.passed and '3 of apgd-ce' in rules.text
  assert len(checks.after(stages, state, is_transfer=True)) == 1
  # What falls at a larger radius is no gain over gradients.
  square = ensembles.SQUARE.section
  stages = ensembles.stages_of_one(square, epsilons=(0.1, 0.2), num_restarts=1)
  zeros = dict.fromkeys(('rejected', 'not_finite', 'unsteady'), (0, 0))
  state = State(np.zeros(1), 1000, robust=(900, 500, 100), **zeros)
  assert checks.after(stages, state) == []


def test_one_image_fails_no_check_that_needs_several():
  examples = worst_case.Examples(
    IMAGE[:1], np.zeros(1, np.int32), np.zeros(1, np.int32)
  )
  label = np.asarray(sound(IMAGE[:1])).argmax(-1).astype(np.int32)
  for size in (1, 2):
    run = create_run(sound, batch_size=size)
    state = run.begin(examples._replace(label=label))
    found = {
      x.name: x for x in checks.before(run, examples._replace(label=label), state, APGD)
    }
    assert failed(found) == set() and 'epsilon 1/2' not in found
    assert ('leaks' in found) == (size > 1)
  run = create_run(with_statistics_of_the_batch, batch_size=2)
  label = run.logits(IMAGE[:1]).argmax(-1).astype(np.int32)
  state = run.begin(examples._replace(label=label))
  found = checks.before(run, examples._replace(label=label), state, APGD)
  assert 'leaks' in failed({x.name: x for x in found})


def test_labels_that_are_all_wrong_are_a_sign():
  label = (np.asarray(sound(IMAGE)).argmax(-1) + 1) % NUM_CLASSES
  found = find(sound, APGD, label)
  assert failed(found) == {'clean'} and 'labels, their order' in found['clean'].text


def test_one_image_is_no_sign():
  stages = ensembles.stages(
    {'apgd-ce': ensembles.APGD_CE, 'square': ensembles.SQUARE},
    epsilon=0.1,
    norm='linf',
    num_classes=5,
  )
  zeros = dict.fromkeys(('rejected', 'not_finite', 'unsteady'), (0, 0))
  state = State(np.zeros(1), 20, robust=(20, 10, 9), **zeros)
  assert all(x.passed for x in checks.after(stages, state))
  state = state._replace(robust=(20, 10, 8), unsteady=(0, 5))
  assert [x.passed for x in checks.after(stages, state)] == [False, False]


# Of the library, with few steps: the same attacks take most of a minute.
@pytest.fixture
def short(monkeypatch):
  section = {'num_steps': 10}
  members = {
    'apgd-ce': ensembles.APGD_CE._replace(
      section={**ensembles.APGD_CE.section, **section}
    ),
    'square': ensembles.SQUARE._replace(
      section={**ensembles.SQUARE.section, 'num_queries': 100}
    ),
  }
  monkeypatch.setitem(ensembles.VERSIONS, 'standard', members)
  rand = {
    'apgd-ce': members['apgd-ce']._replace(
      section={**members['apgd-ce'].section, 'num_samples': 3}
    )
  }
  monkeypatch.setitem(ensembles.VERSIONS, 'rand', rand)


def attack(logits_fn, **changes):
  label = np.asarray(sound(IMAGE)).argmax(-1)
  arguments = {'image': IMAGE, 'label': label, 'epsilon': EPSILON, 'batch_size': 10}
  return autoattack(logits_fn, **{'rng': jax.random.key(0), **arguments, **changes})


def test_function_returns_images_that_prove_the_accuracy(short):
  found = attack(sound)
  label = np.asarray(sound(IMAGE)).argmax(-1)
  assert found.clean_accuracy == 1 and 0 < found.robust_accuracy < 1
  is_right = np.asarray(sound(found.image)).argmax(-1) == label
  assert (is_right == found.is_robust).all()
  assert np.abs(found.image - IMAGE).max() <= EPSILON + 1e-6
  assert (found.image[found.is_robust] == IMAGE[found.is_robust]).all()
  assert found.accuracies['square'] == found.robust_accuracy == is_right.mean()
  assert all(x.passed for x in found.checks)
  assert repr(found).startswith('<of 24: clean 100.0%, apgd-ce ')


def test_the_example_of_the_docstring():
  found = doctest.testmod(standalone, optionflags=doctest.ELLIPSIS)
  assert found.attempted >= 6 and not found.failed


def test_the_longest_version_from_end_to_end(monkeypatch):
  sizes = {'num_steps': 5, 'num_queries': 20}
  short = {}
  for name, member in ensembles.VERSIONS['plus'].items():
    section = {k: sizes.get(k, x) for k, x in member.section.items()}
    num_restarts = min(member.num_restarts, 2)
    short[name] = member._replace(section=section, num_restarts=num_restarts)
  monkeypatch.setitem(ensembles.VERSIONS, 'plus', short)
  lines = []
  found = attack(
    sound, version='plus', progress=lines.append, rng=jax.random.PRNGKey(0)
  )
  assert list(found.accuracies) == [
    *('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t')
  ]
  shares = list(found.accuracies.values())
  assert 0 < shares[-1] < 1 and shares == sorted(shares, reverse=True)
  # Three attacks are made twice; five classes have four targets.
  assert len(lines) == 2 + 2 + 2 + 1 + 4 + 4
  assert lines[1].startswith('apgd-ce, restart 1: ') and ' go if no other' in lines[-1]
  assert ' s, and about 0 s to go' in lines[-1]


def test_function_takes_bytes(short):
  image = np.round(IMAGE * 255).astype(np.uint8)
  floats = attack(sound, image=image / np.float32(255))
  assert (attack(sound, image=image).is_robust == floats.is_robust).all()


def test_masked_gradients_are_a_warning(short):
  with pytest.warns(UserWarning) as found:
    result = attack(quantised)
  texts = [str(x.message) for x in found]
  assert any('Square lowered the robust accuracy by' in x for x in texts)
  assert any('gradient of the DLR is 0 for' in x for x in texts)
  assert '; failed checks: gradient of the cross-entropy, gradient' in repr(result)
  assert result.accuracies['square'] < result.accuracies['apgd-ce']


def test_a_randomised_model_takes_a_key(short):
  def randomised(image, rng):
    return sound(image + 0.01 * jax.random.normal(rng, image.shape))

  found = attack(randomised, version='rand')
  assert 0 < found.robust_accuracy < 1
  assert 'randomised' not in [x.name for x in found.checks]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'epsilon': 0.0}, 'epsilon is 0.0; allowed: a number above 0'),
    ({'epsilon': -0.1}, 'epsilon is -0.1; allowed: a number above 0'),
    ({'epsilon': 8.0}, 'epsilon is 8.0; allowed: a number above 0, below 1, in uni'),
    ({'epsilon': float('nan')}, 'epsilon is nan; allowed'),
    ({'label': np.full(COUNT, 5)}, 'labels are 5 to 5; allowed: 0 to 4'),
    ({'label': np.full(COUNT, -1)}, 'labels are -1 to -1; allowed: 0 to 4'),
    ({'label': np.zeros(3, int)}, r'labels \[3\]; allowed: \[N, H, W, C\] and \[N\]'),
    ({'image': IMAGE * 255}, 'values from .* allowed: 0 to 1, before any normal'),
    ({'image': IMAGE[:0], 'label': np.zeros(0, int)}, 'no images; allowed: 1 or more'),
    ({'image': IMAGE * np.nan}, '24 of 24 images have values that are not finite; all'),
    ({'epsilon': '8/255'}, "epsilon is '8/255'; allowed: a number"),
    ({'norm': 'l2', 'epsilon': None}, 'epsilon is None; allowed: a number above 0'),
    ({'label': np.zeros((COUNT, 5), int)}, r'labels \[24, 5\]; allowed: \[N, H,'),
    ({'label': np.zeros(COUNT)}, 'labels are float64; allowed: whole numbers'),
    ({'image': IMAGE[0], 'label': 0}, r'images are \[4, 4, 3\] and labels \[\]'),
    ({'batch_size': 0}, 'batch_size is 0; allowed: 1 or more'),
    (
      {
        'image': IMAGE[:, :3],
        'logits_fn': lambda x: sound(jnp.concatenate([x, x[:, :1]], 1)),
      },
      'square: .* has images of 3 x 4 pixels; allowed: ',
    ),
    ({'version': 'strong'}, "unknown version 'strong'; allowed: plus, rand, standard"),
    ({'norm': 'l1'}, "unknown norm 'l1'; allowed: l2, linf"),
    (
      {'norm': 'l2', 'epsilon': 7.0},
      'epsilon is 7.0; allowed: .* above 0, below 6.928',
    ),
    (
      {'image': IMAGE.transpose(0, 3, 1, 2)},
      r'\[24, 3, 4, 4\], as of PyTorch; allowed',
    ),
    ({'rng': 0}, r'rng is 0; allowed: one key, as jax.random.key\(0\)'),
    ({'rng': jax.random.split(jax.random.key(0))}, r'rng is of shape \[2\]; allowed'),
    ({'version': 'rand'}, r'called as logits_fn\(image, rng\): too many'),
    ({'logits_fn': lambda x, y: x}, r'as logits_fn\(image\): missing a required'),
    (
      {'logits_fn': lambda x: np.tanh(x)},
      'cannot be traced by jax.jit: .* NumPy on wh',
    ),
    (
      {'logits_fn': lambda x: x},
      r'returns shape \[1, 4, 4, 3\] for one image; allowed: log',
    ),
    ({'logits_fn': lambda x: jax.nn.softmax(sound(x))}, 'returns probabilities'),
    ({'logits_fn': lambda x: sound(x) * jnp.nan}, 'values that are not finite'),
  ],
)
def test_bad_input_is_one_line(changes, message):
  logits_fn = changes.pop('logits_fn', sound)
  with pytest.raises(errors.UserError, match=message) as found:
    attack(logits_fn, **changes)
  assert '\n' not in str(found.value)


def test_targets_need_classes():
  with pytest.raises(errors.UserError, match='apgd-t: .* needs 4 classes; given: 3'):
    attack(lambda x: sound(x)[:, :3], label=np.zeros(COUNT, int))
