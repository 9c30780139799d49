"""Tests FAB against closed forms, SciPy and AutoAttack's own: see golden_fab.py."""

import functools
import json
import pathlib

import golden_fab
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from advprop_jax import errors
from advprop_jax.attacks import ATTACKS, balls, fab, hyperplanes

pytestmark = pytest.mark.usefixtures('fast_compilation')

GOLDEN = json.loads((pathlib.Path(__file__).parent / 'golden_fab.json').read_text())
NORMS = list(balls.BALLS)
SHAPE = (3, 3, 3)
# Share of the way that can be closed within the box; beyond 1 is out of reach.
SHARES = [0.0, 0.05, -0.3, 0.7, -0.97, 1.2, -3.0, 0.5]


def norm_of(difference, norm):
  order = {'linf': np.inf, 'l2': 2}[norm]
  flat = np.asarray(difference, np.float64).reshape(len(difference), -1)
  return np.linalg.norm(flat, order, axis=-1)


@pytest.fixture
def planes():
  """Returns points, many at ends of the range, planes, and what of them to reach."""
  rng = np.random.RandomState(1)
  point = np.clip(rng.uniform(-0.3, 1.3, (len(SHARES), *SHAPE)), 0, 1)
  w = rng.standard_normal(point.shape) * np.exp(rng.standard_normal(point.shape))
  w[:, 0, 0] = 0.0
  point, w = np.float32(point), np.float32(w)
  share = np.array(SHARES)[:, None, None, None]
  farthest = np.where(w * share > 0, 1 - point, -point)
  gap = np.abs(share) * (w * farthest).sum((1, 2, 3), keepdims=True)
  b = np.float32((w * point).sum((1, 2, 3), keepdims=True) + gap)
  return point, w, b, farthest


def shortest_linf(point, w, b):
  """Returns the least t with |d| <= t, <w, point + d> = b, in the box: SciPy's."""
  ones = np.ones((point.size, 1))
  eye = np.eye(point.size)
  found = scipy.optimize.linprog(
    np.append(np.zeros(point.size), 1.0),
    A_ub=np.block([[eye, -ones], [-eye, -ones]]),
    b_ub=np.zeros(2 * point.size),
    A_eq=np.append(w, 0.0)[None],
    b_eq=[b - w @ point],
    bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
  )
  assert found.status == 0
  return found.x[-1]


def shortest_l2(point, w, b):
  """Returns the length of the way to the nearest point, from SciPy's root of the dual.

  The nearest point is clip(point + t w), for the t with which it is on the plane.
  """

  def way(t):
    return np.clip(point + t * w, 0, 1) - point

  t = scipy.optimize.brentq(lambda t: w @ (point + way(t)) - b, -1e5, 1e5, xtol=1e-12)
  return np.linalg.norm(way(t))


@pytest.mark.parametrize('norm', NORMS)
def test_the_way_to_a_plane_is_the_shortest(planes, norm):
  point, w, b, farthest = planes
  d = np.asarray(hyperplanes.project(point, w, b, norm=norm), np.float64)
  shortest = {'linf': shortest_linf, 'l2': shortest_l2}[norm]
  assert -1e-7 <= (point + d).min() and (point + d).max() <= 1 + 1e-7
  np.testing.assert_array_equal(d[w == 0], 0.0)
  for i, share in enumerate(SHARES):
    if abs(share) > 1:
      np.testing.assert_array_equal(d[i], np.where(w[i] == 0, 0.0, farthest[i]))
      continue
    args = [np.float64(x[i]).ravel() for x in (point, w)]
    scale = np.abs(args[1]).sum()
    np.testing.assert_allclose(
      args[1] @ (args[0] + d[i].ravel()), b[i].item(), atol=1e-6 * scale
    )
    np.testing.assert_allclose(
      norm_of(d[i : i + 1], norm), shortest(*args, b[i].item()), rtol=2e-5, atol=1e-7
    )


@pytest.mark.parametrize('norm', NORMS)
def test_the_way_to_a_plane_follows_the_closed_form_where_no_value_is_at_its_end(norm):
  rng = np.random.RandomState(2)
  point = np.full((1, *SHAPE), 0.5, np.float32)
  w = np.float32(rng.standard_normal(point.shape))
  gap = -0.2
  b = np.float32((w * point).sum() + gap)[None, None, None, None]
  d = hyperplanes.project(point, w, b, norm=norm)
  expected = {
    'linf': gap * np.sign(w) / np.abs(w).sum(),
    'l2': gap * w / (w**2).sum(),
  }[norm]
  np.testing.assert_allclose(d, expected, atol=1e-6)


@pytest.mark.parametrize('norm', NORMS)
def test_no_plane_is_no_way(norm):
  point = np.full((2, *SHAPE), 0.5, np.float32)
  b = np.float32([0.0, 1.0])[:, None, None, None]
  d = hyperplanes.project(point, np.zeros_like(point), b, norm=norm)
  np.testing.assert_array_equal(d, 0.0)


def run(logits_fn, image, label, rng=None, **arguments):
  rng = jax.random.key(0) if rng is None else rng
  attack = fab.make_fab(
    **{'epsilon': 0.0, 'num_steps': 20, 'keep_farther': True, **arguments}
  )
  return jax.jit(functools.partial(attack, logits_fn))(image, label, rng)


def linear_logits(w):
  """Logits [B, K] of a linear model with weights [K, H, W, 3]."""
  return lambda x: jnp.einsum('bhwc,khwc->bk', x - 0.5, w)


@pytest.mark.parametrize('target_rank', [2, 3, None])
@pytest.mark.parametrize('norm', NORMS)
def test_distance_of_a_linear_model_is_the_margin_over_the_dual_norm(norm, target_rank):
  rng = np.random.RandomState(3)
  # Sparse and dense gradients, so that what is nearest depends on the norm.
  density = np.reshape([1.0, 0.1, 0.3, 1.0], (4, 1, 1, 1))
  w = rng.standard_normal((4, *SHAPE)) * (rng.uniform(size=(4, *SHAPE)) < density)
  w = np.float32(w / np.sqrt(density))
  image = np.float32(rng.uniform(0.45, 0.55, (16, *SHAPE)))  # The box is far.
  logits = np.asarray(linear_logits(w)(image), np.float64)
  ranked = np.argsort(-logits, -1)
  label = ranked[:, 0]
  order = {'linf': 1, 'l2': 2}[norm]
  distances = []
  for other in ranked.T[1:]:
    dual = np.linalg.norm((w[label] - w[other]).reshape(16, -1), order, axis=-1)
    margin = logits[np.arange(16), label] - logits[np.arange(16), other]
    distances.append(margin / dual)
  nearest = np.min(distances, 0)
  expected = nearest if target_rank is None else distances[target_rank - 2]
  found = functools.partial(
    run,
    linear_logits(w),
    image,
    label.astype(np.int32),
    num_classes=4,
    norm=norm,
    targeted=target_rank is not None,
    target_rank=target_rank or 2,
  )
  one_step = norm_of(found(num_steps=1) - image, norm)
  np.testing.assert_allclose(one_step, 1.05 * expected, rtol=1e-4)
  if target_rank is None:
    # It ends a bit beyond the boundary, too, but by a twentieth of a shorter way.
    many_steps = norm_of(found(num_steps=20) - image, norm)
    assert (many_steps > nearest).all() and (many_steps < 1.006 * nearest).all()


def network():
  image, hidden, out = map(jnp.asarray, golden_fab.draw())

  def logits_fn(x):
    return jnp.tanh(x.reshape(len(x), -1) @ hidden) @ out

  return logits_fn, image, jnp.asarray(golden_fab.labels())


@pytest.mark.parametrize('name', golden_fab.CASES)
def test_equals_autoattacks_own(name):
  logits_fn, image, label = network()
  norm, target_rank = golden_fab.CASES[name]
  point = run(
    logits_fn,
    image,
    label,
    norm=norm,
    num_steps=golden_fab.NUM_STEPS,
    targeted=target_rank is not None,
    target_rank=target_rank or 2,
    num_classes=golden_fab.NUM_CLASSES,
  )
  expected = np.reshape(GOLDEN['points'][name], image.shape)
  np.testing.assert_allclose(point, expected, atol=1e-5)
  distance = norm_of(point - image, norm)
  # All are found but the last, which was misclassified before and stays.
  assert (distance[:-1] > 0.01).all() and distance[-1] == 0
  assert (logits_fn(point).argmax(-1) != label).all()


def attack_of_network(**arguments):
  logits_fn, image, label = network()
  # Sums over one example at a time: a product of matrices rounds by the batch's size.
  apart = lambda x: jax.lax.map(lambda one: logits_fn(one[None])[0], x)  # noqa: E731
  attack = fab.make_fab(
    num_classes=golden_fab.NUM_CLASSES,
    **{'num_steps': 10, 'keep_farther': True, **arguments},
  )
  return jax.jit(functools.partial(attack, apart)), image, label


@pytest.mark.parametrize('norm, epsilon', [('linf', 0.06), ('l2', 0.4)])
def test_an_example_is_the_same_alone_and_among_others(norm, epsilon):
  attack, image, label = attack_of_network(
    norm=norm, epsilon=epsilon, random_start=True
  )

  def of(index):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), index)
    return attack(image[index], label[index], keys)

  together = of(np.arange(len(image)))
  distance = norm_of(together - image, norm)
  # Some end early, some never.
  assert (distance[:-1] <= epsilon).any() and (distance > epsilon).any()
  for i in range(len(image)):
    # XLA rounds differently in a batch of another size.
    np.testing.assert_allclose(of(np.array([i])), together[i : i + 1], atol=1e-6)
  order = np.array([3, 3, 0, 3, 5, 3])
  np.testing.assert_array_equal(of(order), together[order])


def test_the_first_point_within_epsilon_is_kept():
  farthest = []
  for epsilon in (0.0, 0.06, 0.2):
    attack, image, label = attack_of_network(epsilon=epsilon, num_steps=20)
    distance = norm_of(attack(image, label, jax.random.key(0)) - image, 'linf')
    farthest.append(distance)
  nearest, half, first = farthest
  is_near, is_nearer = nearest <= 0.2, nearest <= 0.06
  assert (first[is_near] <= 0.2).all() and (half[is_nearer] <= 0.06).all()
  assert (nearest <= half).all() and (half <= first).all()
  assert (nearest < half).sum() >= 2 and (half < first).any()
  np.testing.assert_array_equal(first[~is_near], nearest[~is_near])


def test_random_start_lies_on_the_sphere_of_half_epsilon_and_steps_end_early():
  # Where logits do not change x stays at its start, which is no misclassified point.
  epsilon, seen = 0.2, []

  def logits_fn(x):
    jax.debug.callback(lambda x: seen.append(np.array(x)), x)
    return jnp.broadcast_to(jnp.array([1.0, 0.0]), (len(x), 2)) + 0.0 * x.sum()

  image = jnp.full((2, *SHAPE), 0.5)
  for norm in NORMS:
    attack = functools.partial(
      run,
      logits_fn,
      image,
      num_classes=2,
      norm=norm,
      epsilon=epsilon,
      num_steps=1,
      random_start=True,
    )
    np.testing.assert_array_equal(attack(jnp.zeros(2, jnp.int32)), image)
    jax.effects_barrier()
    farthest = max(norm_of(x - image, norm).max() for x in seen)
    np.testing.assert_allclose(farthest, epsilon / 2, rtol=1e-4)
    seen.clear()
  # What is misclassified as it comes costs one forward pass and no step.
  np.testing.assert_array_equal(attack(jnp.ones(2, jnp.int32)), image)
  jax.effects_barrier()
  assert len(seen) == 1


def test_epsilon_and_target_rank_may_be_traced():
  logits_fn, image, label = network()

  def with_both(epsilon, target_rank):
    attack = fab.make_fab(
      epsilon=epsilon,
      target_rank=target_rank,
      num_steps=10,
      num_classes=golden_fab.NUM_CLASSES,
      keep_farther=True,
    )
    return attack(logits_fn, image, label, jax.random.key(0))

  traced = jax.jit(with_both)
  for values in [(0.0, 2), (0.1, 4)]:
    np.testing.assert_allclose(traced(*values), with_both(*values), atol=1e-5)


@pytest.mark.parametrize('norm, epsilon', [('linf', 0.06), ('l2', 0.4)])
def test_what_is_farther_than_epsilon_is_not_returned(norm, epsilon):
  logits_fn, image, label = network()
  far, near = (
    run(
      *(logits_fn, image, label),
      num_classes=golden_fab.NUM_CLASSES,
      norm=norm,
      epsilon=epsilon,
      keep_farther=keep,
    )
    for keep in (True, False)
  )
  distance = balls.BALLS[norm].norm(far - image)
  is_far = np.asarray(distance > epsilon)[:, 0, 0, 0]
  assert 0 < is_far.sum() < len(image)
  np.testing.assert_array_equal(near[is_far], image[is_far])
  np.testing.assert_array_equal(near[~is_far], far[~is_far])


def test_no_gradient_flows_through_the_attack():
  logits_fn, image, label = network()
  attack = ATTACKS['fab'](epsilon=0.0, num_steps=2, num_classes=golden_fab.NUM_CLASSES)

  def loss(scale):
    scaled = lambda x: scale * logits_fn(x)  # noqa: E731
    return attack(scaled, image * scale, label, jax.random.key(0)).sum()

  assert float(jax.grad(loss)(1.0)) == 0.0


@pytest.mark.parametrize(
  'change, message',
  [
    ({'norm': 'l1'}, "norm.*'l1'.*allowed: l2, linf"),
    ({'epsilon': 8}, 'epsilon is 8; allowed: 0 to 1, .*8 is 8 / 255'),
    ({'epsilon': -0.1, 'norm': 'l2'}, 'epsilon is -0.1; allowed: 0 to inf'),
    ({'epsilon': float('nan')}, 'epsilon is nan'),
    ({'num_steps': -1}, 'num_steps is -1'),
    ({'target_rank': 1}, 'target_rank is 1.*2 or more'),
    ({'num_classes': 1}, 'num_classes is 1.*wrong'),
    ({'alpha_max': 1.5}, 'alpha_max is 1.5.*0 to 1'),
    ({'eta': 0.9}, 'eta is 0.9.*1 or more'),
    ({'beta': 2.0}, 'beta is 2.0.*0 to 1'),
  ],
)
def test_impossible_values_are_refused(change, message):
  with pytest.raises(errors.UserError, match=message):
    fab.make_fab(**{'epsilon': 0.1, 'num_classes': 3, **change})


def test_a_rank_above_the_number_of_classes_is_refused_or_finds_nothing():
  logits_fn, image, label = network()
  with pytest.raises(errors.UserError, match='target_rank is 6; allowed: 2 to 5'):
    run(logits_fn, image, label, num_classes=5, target_rank=6)
  attack = fab.make_fab(
    epsilon=0.0, num_steps=1, num_classes=5, target_rank=jnp.array(6)
  )
  found = attack(logits_fn, image, label, jax.random.key(0))
  np.testing.assert_array_equal(found, image)
