"""Tests the attacks against closed forms and against foolbox."""

import functools

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets

from advprop_jax import errors, losses
from advprop_jax.attacks import ATTACKS, balls, gradient

pytestmark = pytest.mark.usefixtures('fast_compilation')

EPSILON = 8 / 255
PGD = {
  'num_classes': 3,
  'epsilon': EPSILON,
  'step_size': EPSILON / 4,
  'num_steps': 8,
  'targeted': False,
  'prob_start_from_clean': 0.0,
}


@pytest.fixture
def images():
  # Away from 0 and 1, so that only the ball binds.
  return jax.random.uniform(jax.random.key(0), (4, 5, 6, 3), minval=0.2, maxval=0.8)


@pytest.fixture
def labels():
  return jnp.array([0, 1, 2, 0])


def linear_logits(weights):
  """Logits [B, K] of a linear model with weights [H, W, 3, K]."""
  return lambda x: jnp.einsum('bhwc,hwck->bk', x, weights)


WEIGHTS = jax.random.normal(jax.random.key(7), (5, 6, 3, 3))


BALL = {'epsilon': EPSILON, 'step_size': EPSILON / 4, 'num_steps': 8}
L2 = {'epsilon_l2': 0.5, 'step_size_l2': 0.2, 'num_steps': 8}
# Name, arguments and what the attack makes of an image where climbing means to follow
# `w`: the optimum of a linear loss.
OPTIMA = [
  ('pgd', {**BALL, 'prob_start_from_clean': 0.0}, 'corner'),
  ('ifgsm', BALL, 'corner'),
  ('fgsm', {'epsilon': EPSILON}, 'corner'),
  ('pgd_l2', {**L2, 'prob_start_from_clean': 1.0}, 'sphere'),
  ('pgd_l2', {**L2, 'num_steps': 40, 'prob_start_from_clean': 0.0}, 'sphere'),
  ('gd', {'learning_rate': 1e5, 'num_steps': 3}, 'range'),
]


@pytest.mark.parametrize('targeted', [False, True])
@pytest.mark.parametrize('name, arguments, optimum', OPTIMA)
def test_every_attack_reaches_the_optimum_of_a_linear_model(
  images, name, arguments, optimum, targeted
):
  # Two classes: the loss is monotone in the margin w.x, and the target is known.
  w = jax.random.normal(jax.random.key(1), images.shape[1:]) / 10
  logits_fn = linear_logits(jnp.stack([w, jnp.zeros_like(w)], -1))
  attack = ATTACKS[name](num_classes=2, targeted=targeted, **arguments)
  adversarial = attack(logits_fn, images, jnp.zeros(4, jnp.int32), jax.random.key(0))
  expected = {
    'corner': images - EPSILON * jnp.sign(w),
    'sphere': images - 0.5 * w / jnp.linalg.norm(w),
    'range': jnp.broadcast_to(w < 0, images.shape),
  }[optimum]
  np.testing.assert_allclose(adversarial, expected, atol=2e-4)


def test_untargeted_attack_reaches_the_smallest_margin_of_a_linear_model(images):
  # Two classes: the margin f(x) = w.x falls by exactly epsilon * |w|_1.
  w = jax.random.normal(jax.random.key(1), images.shape[1:])
  logits_fn = linear_logits(jnp.stack([w, jnp.zeros_like(w)], -1))
  attack = gradient.make_pgd(**{**PGD, 'num_classes': 2})
  adversarial = attack(logits_fn, images, jnp.zeros(4, jnp.int32), jax.random.key(0))
  before, after = (logits_fn(x)[:, 0] for x in (images, adversarial))
  np.testing.assert_allclose(before - after, EPSILON * jnp.abs(w).sum(), rtol=1e-4)


@pytest.mark.parametrize('num_steps', [0, 1, 3])
@pytest.mark.parametrize('targeted', [True, False])
@pytest.mark.parametrize('name', ['pgd', 'pgd_l2', 'gd'])
def test_stays_in_the_ball_and_in_the_range_of_pixels(
  labels, name, num_steps, targeted
):
  images = jnp.round(jax.random.uniform(jax.random.key(0), (4, 5, 6, 3)))  # 0 and 1.
  arguments = {
    'pgd': {'epsilon': EPSILON, 'step_size': EPSILON, 'prob_start_from_clean': 0.0},
    'pgd_l2': {'epsilon_l2': 2.0, 'step_size_l2': 2.0, 'prob_start_from_clean': 0.0},
    'gd': {'learning_rate': 100.0},
  }[name]
  attack = ATTACKS[name](
    num_classes=3, num_steps=num_steps, targeted=targeted, **arguments
  )
  adversarial = attack(linear_logits(WEIGHTS), images, labels, jax.random.key(3))
  assert 0.0 <= float(adversarial.min()) and float(adversarial.max()) <= 1.0
  delta = np.asarray(adversarial - images, np.float64)
  if name == 'pgd':
    assert np.abs(delta).max() <= EPSILON + 1e-6
  if name == 'pgd_l2':
    assert np.sqrt((delta**2).sum((1, 2, 3))).max() <= 2.0 + 1e-5


def test_the_floor_of_the_step_size_reaches_the_border(images, labels):
  logits_fn = linear_logits(WEIGHTS)
  short = {**PGD, 'step_size': EPSILON / 100, 'prob_start_from_clean': 1.0}
  moved = {
    floor: gradient.make_pgd(**short, step_size_floor=floor)(
      logits_fn, images, labels, jax.random.key(0)
    )
    - images
    for floor in (False, True)
  }
  np.testing.assert_allclose(jnp.abs(moved[False]).max(), 8 * EPSILON / 100, rtol=1e-3)
  np.testing.assert_allclose(jnp.abs(moved[True]).max(), EPSILON, rtol=1e-3)


def test_epsilon_zero_returns_the_images(images, labels):
  attack = gradient.make_pgd(**{**PGD, 'epsilon': 0.0})
  np.testing.assert_array_equal(
    attack(linear_logits(WEIGHTS), images, labels, jax.random.key(0)), images
  )


def test_no_gradient_flows_through_the_attack(images, labels):
  attack = gradient.make_pgd(**PGD)

  def loss(scale):
    logits_fn = linear_logits(WEIGHTS * scale)
    return attack(logits_fn, images * scale, labels, jax.random.key(0)).sum()

  assert float(jax.grad(loss)(1.0)) == 0.0


def test_examples_do_not_influence_each_other(images, labels):
  logits_fn = lambda x: jnp.tanh(linear_logits(WEIGHTS)(x))  # noqa: E731
  attack = gradient.make_pgd(**{**PGD, 'prob_start_from_clean': 1.0})
  together = attack(logits_fn, images, labels, jax.random.key(0))
  for i in range(4):
    alone = attack(logits_fn, images[i : i + 1], labels[i : i + 1], jax.random.key(0))
    np.testing.assert_allclose(alone[0], together[i], atol=1e-6)


def test_targeted_attack_descends_towards_a_wrong_class(images, labels):
  attack = gradient.make_pgd(**{**PGD, 'targeted': True, 'num_classes': 2})
  w = WEIGHTS[..., :2]
  labels = labels % 2
  adversarial = attack(linear_logits(w), images, labels, jax.random.key(0))
  # With two classes the target is known, and the loss is monotone in the margin.
  direction = jnp.where(
    (labels == 0)[:, None, None, None], w[..., 1] - w[..., 0], w[..., 0] - w[..., 1]
  )
  np.testing.assert_allclose(
    adversarial, images + EPSILON * jnp.sign(direction), atol=1e-6
  )


def test_random_targets_are_even_over_the_wrong_classes_and_never_true():
  label = jnp.tile(jnp.arange(5, dtype=jnp.int32), 20_000)
  target = gradient.random_wrong_class(jax.random.key(0), label, 5)
  counts = np.zeros((5, 5))
  np.add.at(counts, (np.asarray(label), np.asarray(target)), 1)
  np.testing.assert_array_equal(np.diag(counts), 0)
  # 5,000 expected in each other cell; the standard deviation is 61.
  np.testing.assert_allclose(counts[~np.eye(5, dtype=bool)], 5000, atol=300)


@pytest.mark.parametrize('probability', [0.0, 0.2, 1.0])
def test_starts_at_the_image_as_often_as_asked(images, labels, probability):
  attack = gradient.make_pgd(
    **{**PGD, 'num_steps': 0, 'prob_start_from_clean': probability}
  )

  def is_clean(rng):
    return (attack(linear_logits(WEIGHTS), images, labels, rng) == images).all()

  share = jax.vmap(is_clean)(jax.random.split(jax.random.key(0), 2000)).mean()
  assert abs(float(share) - probability) <= 0.04


def test_random_start_fills_the_ball_evenly(images, labels):
  attack = gradient.make_pgd(**{**PGD, 'num_steps': 0})
  start = attack(linear_logits(WEIGHTS), images, labels, jax.random.key(0))
  noise = np.asarray(start - images) / EPSILON
  assert noise.min() < -0.95 and noise.max() > 0.95
  np.testing.assert_allclose(noise.std(), 1 / np.sqrt(3), rtol=0.1)


def test_random_start_fills_the_l2_ball_evenly():
  image = jnp.full((2000, 1, 1, 2), 0.5)  # Two dimensions: a disk.
  noise = balls.noise_l2(jax.random.key(0), image, 0.4)
  radius = np.asarray(balls.l2_norm(noise)).ravel()
  assert radius.max() <= 0.4 + 1e-6
  # Of a disk a quarter of the area is within half the radius.
  assert abs((radius < 0.2).mean() - 0.25) < 0.03
  np.testing.assert_allclose(noise.mean((0, 1, 2)), 0.0, atol=0.02)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'epsilon': -1 / 255}, r'epsilon is -0.0039.*allowed: 0 to 1'),
    ({'epsilon': 8}, r'epsilon is 8.*8 is 8 / 255'),
    ({'epsilon': float('nan')}, 'epsilon is nan'),
    ({'step_size': -0.1}, 'step_size is -0.1'),
    ({'num_steps': -1}, 'num_steps is -1'),
    ({'prob_start_from_clean': 1.5}, 'prob_start_from_clean is 1.5.*0 to 1'),
    ({'targeted': True, 'num_classes': 1}, 'needs a wrong class'),
  ],
)
def test_impossible_values_are_refused(change, message):
  with pytest.raises(errors.UserError, match=message):
    gradient.make_pgd(**{**PGD, **change})


FOOLBOX = [
  (
    'pgd',
    {**BALL, 'prob_start_from_clean': 1.0},
    foolbox.attacks.LinfPGD(abs_stepsize=EPSILON / 4, steps=8, random_start=False),
    EPSILON,
  ),
  (
    'ifgsm',
    BALL,
    foolbox.attacks.LinfBasicIterativeAttack(
      abs_stepsize=EPSILON / 4, steps=8, random_start=False
    ),
    EPSILON,
  ),
  (
    'fgsm',
    {'epsilon': EPSILON},
    foolbox.attacks.LinfFastGradientAttack(random_start=False),
    EPSILON,
  ),
  (
    'pgd_l2',
    {**L2, 'prob_start_from_clean': 1.0},
    foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=8, random_start=False),
    0.5,
  ),
]


@pytest.mark.parametrize('name, arguments, theirs, epsilon', FOOLBOX)
def test_equals_the_attack_of_foolbox(labels, name, arguments, theirs, epsilon):
  images = jax.random.uniform(jax.random.key(0), (4, 5, 6, 3))  # The box binds too.

  def logits_fn(x):
    return jnp.tanh(linear_logits(WEIGHTS)(x)) * 3

  attack = ATTACKS[name](num_classes=3, targeted=False, **arguments)
  ours = attack(logits_fn, images, labels, jax.random.key(0))
  model = foolbox.JAXModel(logits_fn, bounds=(0, 1))
  expected, _, _ = theirs(model, images, labels, epsilons=epsilon)
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  assert float(jnp.abs(ours - images).max()) > EPSILON / 2


@pytest.fixture(scope='module')
def digits_network():
  """Returns a small network that knows the digits, and 360 of them."""
  data = sklearn.datasets.load_digits()
  image = jnp.asarray(data.images[..., np.newaxis] / 16, jnp.float32)
  label = jnp.asarray(data.target, jnp.int32)
  keys = jax.random.split(jax.random.key(0))
  params = {
    'hidden': jax.random.normal(keys[0], (64, 64)) / 8,
    'out': jax.random.normal(keys[1], (64, 10)) / 8,
  }

  def logits_fn(params, image):
    hidden = jax.nn.silu(image.reshape(len(image), -1) @ params['hidden'])
    return hidden @ params['out']

  tx = optax.sgd(0.5, momentum=0.9)

  def step(carry, _):
    params, state = carry
    grads = jax.grad(
      lambda p: losses.cross_entropy(logits_fn(p, image[360:]), label[360:]).mean()
    )(params)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def train(params):
    return jax.lax.scan(step, (params, tx.init(params)), length=100)[0][0]

  params = train(params)
  return functools.partial(logits_fn, params), image[:360], label[:360]


# From a random start, as they are used: no draw is the same, the accuracy is.
RANDOM_STARTS = [
  (
    'pgd',
    {**BALL, 'prob_start_from_clean': 0.0},
    foolbox.attacks.LinfPGD(abs_stepsize=EPSILON / 4, steps=8, random_start=True),
    EPSILON,
  ),
  (
    'pgd_l2',
    {**L2, 'prob_start_from_clean': 0.0},
    foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=8, random_start=True),
    0.5,
  ),
]


@pytest.mark.parametrize(
  'name, arguments, theirs, epsilon', [*FOOLBOX[1:3], *RANDOM_STARTS]
)
def test_robust_accuracy_of_a_trained_network_is_foolboxs(
  digits_network, name, arguments, theirs, epsilon
):
  logits_fn, image, label = digits_network
  attack = jax.jit(
    functools.partial(
      ATTACKS[name](num_classes=10, targeted=False, **arguments), logits_fn
    )
  )
  adversarial = attack(image, label, jax.random.key(0))
  ours = float((logits_fn(adversarial).argmax(-1) == label).mean())
  model = foolbox.JAXModel(logits_fn, bounds=(0, 1))
  _, _, is_adversarial = theirs(model, image, label, epsilons=epsilon)
  clean = float((logits_fn(image).argmax(-1) == label).mean())
  assert clean > 0.9 and ours < clean - 0.02
  assert abs(ours - (1 - float(is_adversarial.mean()))) <= 0.01
