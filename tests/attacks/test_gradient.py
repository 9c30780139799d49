"""Tests the attacks against closed forms and against foolbox."""

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors
from advprop_jax.attacks import gradient

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


@pytest.mark.parametrize('start', ['image', 'noise'])
def test_finds_the_worst_case_of_a_linear_loss(images, start):
  weights = jax.random.normal(jax.random.key(1), images.shape[1:])
  noise = jax.random.uniform(jax.random.key(2), images.shape, minval=-1) * EPSILON
  adversarial = gradient.pgd_linf(
    lambda x: (x * weights).sum((1, 2, 3)),
    images,
    images + noise if start == 'noise' else images,
    epsilon=EPSILON,
    step_size=EPSILON / 4,
    num_steps=8,
  )
  np.testing.assert_allclose(
    adversarial, images + EPSILON * jnp.sign(weights), atol=1e-6
  )


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
def test_stays_in_the_ball_and_in_the_range_of_pixels(labels, num_steps, targeted):
  images = jnp.round(jax.random.uniform(jax.random.key(0), (4, 5, 6, 3)))  # 0 and 1.
  attack = gradient.make_pgd(
    **{**PGD, 'num_steps': num_steps, 'targeted': targeted, 'step_size': EPSILON}
  )
  adversarial = attack(linear_logits(WEIGHTS), images, labels, jax.random.key(3))
  assert float(jnp.abs(adversarial - images).max()) <= EPSILON + 1e-6
  assert 0.0 <= float(adversarial.min()) and float(adversarial.max()) <= 1.0


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


def test_equals_the_pgd_of_foolbox(labels):
  images = jax.random.uniform(jax.random.key(0), (4, 5, 6, 3))  # The box binds too.

  def logits_fn(x):
    return jnp.tanh(linear_logits(WEIGHTS)(x)) * 3

  attack = gradient.make_pgd(**{**PGD, 'prob_start_from_clean': 1.0})
  ours = attack(logits_fn, images, labels, jax.random.key(0))
  model = foolbox.JAXModel(logits_fn, bounds=(0, 1))
  theirs, _, _ = foolbox.attacks.LinfPGD(
    abs_stepsize=PGD['step_size'], steps=PGD['num_steps'], random_start=False
  )(model, images, labels, epsilons=EPSILON)
  np.testing.assert_allclose(ours, theirs, atol=1e-6)
  assert float(jnp.abs(ours - images).max()) > EPSILON / 2
