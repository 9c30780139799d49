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

  The nearest point of plane and box is clip(point + t w) for the t that is on the plane.
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
  attack = fab.make_fab(**{'epsilon': 0.0, 'num_steps': 20, **arguments})
  return jax.jit(functools.partial(attack, logits_fn))(image, label, rng)


def linear_logits(w):
  """Logits [B, K] of a linear model with weights [K, H, W, 3]."""
  return lambda x: jnp.einsum('bhwc,khwc->bk', x - 0.5, w)


@pytest.mark.parametrize('targeted', [True, False])
@pytest.mark.parametrize('norm', NORMS)
def test_distance_of_a_linear_model_is_the_margin_over_the_dual_norm(norm, targeted):
  rng = np.random.RandomState(3)
  w = np.float32(rng.standard_normal((4, *SHAPE)))
  image = np.float32(rng.uniform(0.45, 0.55, (5, *SHAPE)))  # The box is far.
  logits = np.asarray(linear_logits(w)(image))
  ranked = np.argsort(-logits, -1)
  label = ranked[:, 0]
  point = run(
    linear_logits(w),
    image,
    label,
    num_classes=4,
    norm=norm,
    targeted=targeted,
    target_rank=3,
  )
  order = {'linf': 1, 'l2': 2}[norm]
  distances = []
  for k in range(1, 4):
    other = ranked[:, k]
    dual = np.linalg.norm((w[label] - w[other]).reshape(5, -1), order, axis=-1)
    margin = np.take_along_axis(logits, ranked, 1)[:, [0, k]] @ [1, -1]
    distances.append(margin / dual)
  # The boundary to a target may lie behind that to another class, nearer.
  expected = np.array(distances).min(0)
  if targeted:
    expected = np.clip(norm_of(point - image, norm), expected, distances[1])
  np.testing.assert_allclose(norm_of(point - image, norm), expected, rtol=1e-3)
  logits = np.array(linear_logits(w)(point))
  assert (logits.argmax(-1) != label).all()


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
