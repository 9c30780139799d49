"""Tests Auto-PGD against the authors' code, closed forms and its published schedule."""

import functools
import json
import pathlib

import golden_apgd
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors, losses
from advprop_jax.attacks import apgd, balls

pytestmark = pytest.mark.usefixtures('fast_compilation')
GOLDEN = json.loads(pathlib.Path(golden_apgd.__file__).with_suffix('.json').read_text())


def test_checkpoints_are_the_published_ones():
  # Source: the paper, section 3: p_1 = 0.22, then intervals that are shorter by 0.03,
  # but 0.06 at least.
  assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
  assert checkpoints(50) == [11, 21, 30, 38, 45]  # int(0.03 * 50) is 1.
  assert checkpoints(1) == [1] and checkpoints(0) == []


def test_intervals_are_those_of_the_authors_floats():
  num_steps = np.arange(1, 2001, dtype=np.int32)

  def share(x):
    return np.array([max(int(x * n), 1) for n in num_steps.tolist()])

  assert (apgd.first_interval(num_steps) == share(0.22)).all()
  assert (apgd.next_interval(np.int32(0), num_steps) == share(0.06)).all()
  assert (apgd.next_interval(np.int32(9999), num_steps) == 9999 - share(0.03)).all()


def checkpoints(num_steps):
  """Returns the steps at which a loss that never rises lets the steps be halved."""
  interval, found = int(apgd.first_interval(num_steps)), []
  while sum(found[-1:]) + interval <= num_steps:
    found.append(sum(found[-1:]) + interval)
    interval = int(apgd.next_interval(interval, num_steps))
  return found


def network():
  image, noise, hidden, out = map(jnp.asarray, golden_apgd.draw())

  def logits_fn(x):
    return jnp.tanh(x.reshape(len(x), -1) @ hidden) @ out

  label = logits_fn(image).argmax(-1).astype(jnp.int32)
  return logits_fn, image, label, noise


@pytest.mark.parametrize('name', golden_apgd.CASES)
def test_equals_the_authors_code_from_the_same_start(name):
  norm, loss, epsilon, num_steps = golden_apgd.CASES[name]
  expected = GOLDEN['results'][name]
  logits_fn, image, label, noise = network()
  target = apgd.target_of_rank(logits_fn(image), label, golden_apgd.RANK)
  loss_of = {
    'ce': functools.partial(losses.cross_entropy, label=label),
    'dlr': functools.partial(losses.dlr, label=label),
    'targeted_dlr': functools.partial(losses.targeted_dlr, label=label, target=target),
  }[loss]
  start = image + epsilon * noise / balls.BALLS[norm].norm(noise)
  evaluate = apgd.make_evaluate(
    logits_fn, label, loss_of, jax.random.key(0), num_samples=1
  )
  found = jax.jit(
    lambda start: apgd.ascend(
      evaluate,
      image,
      start,
      norm=norm,
      epsilon=epsilon,
      num_steps=num_steps,
      stop_early=False,
    )
  )(jnp.clip(start, 0, 1))
  withstands = ~np.asarray(found.has_fallen)
  assert withstands.tolist() == expected['withstands']
  assert True in expected['withstands'] and False in expected['withstands']
  # Where a loss has converged, rounding says whether it rose, and so halves steps.
  difference = np.abs(loss_of(logits_fn(found.best)) - np.array(expected['best_loss']))
  assert (difference < 2e-5).sum() >= 7 and difference.max() < 5e-3
  # Where none is misclassified, ours returns the point of the largest loss.
  best = np.reshape(expected['best'], image.shape)
  is_same = np.abs(found.image - best)[withstands & (difference < 2e-5)] < 2e-5
  assert is_same.mean() > 0.99  # The sign of a gradient of 0 is a matter of rounding.


def attack_once(image, label, rng, **arguments):
  logits_fn, *_ = network()
  attack = apgd.make_apgd(num_classes=golden_apgd.NUM_CLASSES, **arguments)
  return jax.jit(lambda *x: attack(logits_fn, *x))(image, label, rng)


@pytest.mark.parametrize('norm, epsilon', [('linf', 0.05), ('l2', 0.4)])
def test_result_is_in_the_ball_and_does_not_depend_on_the_batch(norm, epsilon):
  logits_fn, image, label, _ = network()

  def keys(part=slice(None)):  # JAX wants a key to be used once.
    return jax.random.split(jax.random.key(0), len(image))[part]

  run = functools.partial(attack_once, norm=norm, epsilon=epsilon, num_steps=40)
  found = np.asarray(run(image, label, keys()))
  distance = balls.BALLS[norm].norm(found - image)
  assert (
    (distance <= epsilon + 1e-6).all() and (0 <= found).all() and (found <= 1).all()
  )
  is_robust = np.asarray(logits_fn(found).argmax(-1) == label)
  assert 0 < is_robust.sum() < len(label)
  for part in (slice(0, 1), slice(2, 5)):  # The fallen alone end early.
    np.testing.assert_allclose(
      run(image[part], label[part], keys(part)), found[part], atol=1e-6
    )


@pytest.mark.parametrize('norm, epsilon', [('linf', 0.05), ('l2', 0.4)])
def test_examples_are_climbed_clear_of_the_boundary(norm, epsilon, monkeypatch):
  # What other programs may round to the other side is no end.
  logits_fn, image, label, _ = network()
  margins = {}
  for clear in (0.0, 0.02):
    monkeypatch.setattr(apgd, 'CLEAR', clear)
    found = attack_once(
      image, label, jax.random.key(0), norm=norm, epsilon=epsilon, num_steps=40
    )
    logits = logits_fn(found)
    margins[clear] = losses.margin(logits, label) / jnp.ptp(logits, -1)
  has_fallen = margins[0.0] < 0
  assert 1 < has_fallen.sum() < len(label)
  assert ((margins[0.02] < 0) == has_fallen).all()
  assert (margins[0.02][has_fallen] < -0.02).all()
  np.testing.assert_array_less(margins[0.02], margins[0.0] + 1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_linear_model_gets_its_worst_case(norm):
  # Of z = w x, and no image near 0 or 1: margins fall by epsilon times the dual norm.
  w = jax.random.normal(jax.random.key(1), (48, 2))
  image = jax.random.uniform(jax.random.key(2), (5, 4, 4, 3), minval=0.4, maxval=0.6)

  def logits_fn(x):
    return x.reshape(len(x), -1) @ w

  label = logits_fn(image).argmax(-1).astype(jnp.int32)
  attack = apgd.make_apgd(num_classes=2, epsilon=0.01, norm=norm, num_steps=20)
  found = jax.jit(lambda *x: attack(logits_fn, *x))(image, label, jax.random.key(3))
  difference = w[:, 0] - w[:, 1]
  dual = jnp.abs(difference).sum() if norm == 'linf' else jnp.linalg.norm(difference)
  expected = losses.margin(logits_fn(image), label) - 0.01 * dual
  fell = expected < 0  # These keep the first point beyond the boundary.
  margin = losses.margin(logits_fn(found), label)
  np.testing.assert_allclose(margin[~fell], expected[~fell], atol=1e-4)
  assert (margin[fell] < 0).all() and not fell.all()


def test_gradients_of_a_randomised_network_are_averaged():
  # Its noise is 100 times what matters: one gradient is noise, the mean of many not.
  logits_fn, image, label, _ = network()

  def noisy(x, rng):
    noise = 30 * jax.random.normal(rng, (48,))
    return logits_fn(x) + (x.reshape(len(x), -1) @ noise)[:, None] * jnp.eye(6)[0]

  def gradient_of(num_samples):
    evaluate = apgd.make_evaluate(
      noisy,
      label,
      lambda z: z[:, 0],
      jax.random.key(5),
      num_samples=num_samples,
    )
    return np.asarray(jax.jit(evaluate)(image, 0)[1])

  evaluate = apgd.make_evaluate(
    noisy, label, lambda z: z[:, 0], jax.random.key(5), num_samples=2
  )
  first, second, again = (jax.jit(evaluate)(image, step)[1] for step in (0, 1, 0))
  assert (first == again).all() and (first != second).all()  # New noise in every step.
  exact = jax.grad(lambda x: logits_fn(x)[:, 0].sum())(image)
  errors_of = {n: np.abs(gradient_of(n) - exact).mean() for n in (4, 400)}
  assert errors_of[400] == pytest.approx(errors_of[4] / 10, rel=0.3)  # As 1 / sqrt(n).


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'num_classes': 3, 'loss': 'targeted_dlr'}, 'needs 4 classes; given: 3; allowed:'),
    ({'num_classes': 2, 'loss': 'dlr'}, 'needs 3 classes; given: 2; allowed: ce'),
    ({'num_classes': 9, 'loss': 'cw'}, "'cw'; allowed: ce, dlr"),
    ({'num_classes': 9, 'epsilon': 8.0}, 'epsilon is 8.0; allowed: 0 to 1, in'),
    ({'num_classes': 9, 'epsilon': -1, 'norm': 'l2'}, 'epsilon is -1; allowed: 0 to'),
    (
      {'num_classes': 9, 'num_steps': -1},
      'num_steps is -1; allowed: a whole',
    ),
    ({'num_classes': 9, 'norm': 'l1'}, "'l1'; allowed: l2, linf"),
  ],
)
def test_bad_arguments_are_one_line(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    apgd.make_apgd(**{'epsilon': 0.1} | arguments)
