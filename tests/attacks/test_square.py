"""Tests Square against AutoAttack's, see golden_square.py, and against closed forms."""

import functools
import pathlib

import golden_square
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors, losses
from advprop_jax.attacks import ATTACKS, square, windows

pytestmark = pytest.mark.usefixtures('fast_compilation')

EPSILON = {'linf': 0.03, 'l2': 0.6}
SIZE = 10


@pytest.fixture(scope='module')
def golden():
  with np.load(pathlib.Path(__file__).parent / 'golden_square.npz') as arrays:
    return dict(arrays)


def network(image_size):
  a, b = golden_square.weights(image_size)
  return lambda x: jnp.tanh(3 * (x.reshape(len(x), -1) - 0.5) @ a) @ b


@pytest.fixture(scope='module')
def images():
  """Returns images, some of whose pixels are 0 or 1, and what the network predicts."""
  image = np.concatenate([golden_square.image(seed, SIZE) for seed in range(6)])
  return jnp.asarray(image), network(SIZE)(image).argmax(-1)


@functools.cache
def attacked(norm, num_queries=100):
  """Returns Square on the network, compiled once for every shape."""
  attack = square.make_square(epsilon=EPSILON[norm], norm=norm, num_queries=num_queries)
  return jax.jit(functools.partial(attack, network(SIZE)))


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('image_size, p_init', golden_square.SIDES)
def test_windows_have_the_sides_of_autoattack(golden, norm, image_size, p_init):
  expected = golden[f'sides/{norm}/{image_size}/{p_init}']
  sides = square.window_sides(image_size, norm=norm, p_init=p_init)
  last = [x for x, _ in square.SCHEDULE[:-1]]
  rows = np.searchsorted(last, np.arange(len(expected)))
  np.testing.assert_array_equal(np.array(sides)[rows], expected)


@pytest.mark.parametrize('name', golden_square.CASES)
def test_queries_are_those_of_autoattack_for_the_same_random_numbers(golden, name):
  norm, size, epsilon, num_queries = golden_square.CASES[name]
  logits_fn = network(size)
  queried = []

  # One program for all images: what differs between them is an argument.
  @jax.jit
  def run(image, label, draws):
    def margin_fn(x):
      margin = losses.margin(logits_fn(x), label)
      jax.debug.callback(queried.append, margin[0], ordered=True)
      return margin

    start_draw = windows.StartDraw(draws['start_transpose'], draws['start_sign'])
    return square.search(
      margin_fn,
      image,
      windows.STARTS[norm](image[0], epsilon, start_draw)[None],
      square.make_propose(
        image,
        norm=norm,
        epsilon=epsilon,
        p_init=0.8,
        draw=lambda i: windows.Draw(
          *(draws[key][i][None] for key in ('position', 'transpose', 'sign'))
        ),
      ),
      num_queries=num_queries,
    )

  for seed in golden_square.SEEDS[name]:
    image = golden_square.image(seed, size)
    draws = jax.tree.map(jnp.asarray, golden_square.numbers(name, seed))
    queried.clear()
    best = run(image, jnp.array([golden_square.label(image)]), draws)
    jax.effects_barrier()
    # Theirs does not ask for the image itself. They end after the same query.
    expected = golden[f'{name}/{seed}/margins']
    np.testing.assert_allclose(queried[1:], expected, atol=2e-5)
    np.testing.assert_allclose(best[0], golden[f'{name}/{seed}/best'], atol=2e-6)
    if seed == golden_square.SEEDS[name][1]:
      assert len(expected) < num_queries and expected[-1] < 0


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_stays_in_the_ball_and_in_the_range_of_pixels(images, norm):
  image, label = images
  adversarial = attacked(norm)(image, label, jax.random.key(1))
  assert 0.0 <= float(adversarial.min()) and float(adversarial.max()) <= 1.0
  delta = np.asarray(adversarial - image, np.float64)
  size = {
    'linf': np.abs(delta).max((1, 2, 3)),
    'l2': np.sqrt((delta**2).sum((1, 2, 3))),
  }[norm]
  assert size.max() <= EPSILON[norm] + 1e-6 and size.min() >= 0.8 * EPSILON[norm]


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_an_example_gets_the_same_alone_and_in_a_batch(images, norm):
  image, label = images

  def run(index):
    index = jnp.array(index)
    keys = jax.random.split(jax.random.key(2), len(image))
    return attacked(norm)(image[index], label[index], keys[index])

  order = [3, 1, 5, 0, 2, 4]
  together = run([0, 1, 2, 3, 4, 5])
  np.testing.assert_allclose(run(order), together[jnp.array(order)], atol=1e-6)
  for i in range(3):
    np.testing.assert_allclose(run([i])[0], together[i], atol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_every_example_and_every_iteration_has_its_own_random_numbers(images, norm):
  image, label = images
  same = jnp.stack([image[0]] * 6), jnp.stack([label[0]] * 6)
  adversarial = attacked(norm)(*same, jax.random.key(2))
  assert len(np.unique(np.asarray(adversarial).reshape(6, -1), axis=0)) == 6

  @jax.jit
  def draw(rng):
    keys = jax.random.split(rng, 500)
    return jax.vmap(lambda i: windows.draw_numbers(keys, i, 3))(jnp.arange(40))

  draws = draw(jax.random.key(0))
  position = np.asarray(draws.position).reshape(-1, 4)
  # 20,000 of each; the standard deviation of a mean is 0.002, of a correlation 0.007.
  numbers = np.concatenate(
    [
      position,
      np.asarray(draws.transpose).reshape(-1, 1),
      np.asarray(draws.sign).reshape(-1, 3) / 2 + 0.5,
    ],
    axis=1,
  )
  assert position.min() >= 0 and position.max() < 1
  np.testing.assert_allclose(numbers.mean(0), 0.5, atol=0.018)
  np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(8), atol=0.035)
  assert len(np.unique(position[:, 0])) > 19_900


def test_what_is_misclassified_stays_and_a_start_that_fools_is_the_result(images):
  image, label = images
  wrong = (label + jnp.arange(6) % 2) % golden_square.NUM_CLASSES
  adversarial = attacked('linf')(image, wrong, jax.random.key(1))
  changed = jnp.abs(adversarial - image).max((1, 2, 3)) > 0
  np.testing.assert_array_equal(changed, [True, False] * 3)

  def logits_fn(x):  # Class 0 only where no pixel has changed.
    is_clean = jnp.isclose(x, image).all((1, 2, 3)).astype(x.dtype)
    return jnp.stack([is_clean, jnp.full(6, 0.5)], 1)

  fooled = square.make_square(epsilon=0.1, num_queries=50)(
    logits_fn, image, jnp.zeros(6, jnp.int32), jax.random.key(3)
  )
  # Stripes: a column has one sign per channel, and is at the border of the ball.
  up, down = jnp.clip(image + 0.1, 0, 1), jnp.clip(image - 0.1, 0, 1)
  is_up, is_down = ((fooled == x).all(1) for x in (up, down))  # [B, W, C]
  assert bool((is_up | is_down).all())
  assert 0.3 < float(is_up.mean()) < 0.7


def test_finds_the_worst_case_of_a_linear_model():
  # The margin is w.x, with the same w in all pixels of a channel: windows add up to the
  # corner of the ball that is the optimum. It never falls to 0, so all queries count.
  w = jnp.array([1.0, -2.0, 0.5])
  image = jax.random.uniform(jax.random.key(0), (4, 6, 6, 3), minval=0.2, maxval=0.8)

  def logits_fn(x):
    return jnp.stack([(x @ w).sum((1, 2)) + 100, jnp.zeros(4)], 1)

  attack = jax.jit(
    functools.partial(square.make_square(epsilon=0.1, num_queries=600), logits_fn)
  )
  label = jnp.zeros(4, jnp.int32)
  best = attack(image, label, jax.random.key(0))
  corner = image - 0.1 * jnp.sign(w)
  np.testing.assert_allclose(best[:, :-1, :-1], corner[:, :-1, :-1], atol=1e-6)
  # Of the windows, 5 pixels at most, none has the last row or column: the authors' code
  # never draws the last position. There the stripes of the start stay.
  stays = np.abs(np.asarray(best - corner))[:, -1] > 0.1  # [B, W, C]
  assert 0.2 < stays.mean() < 0.8


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_a_traced_epsilon_is_the_number(images, norm):
  image, label = images

  @jax.jit
  def run(epsilon):
    attack = ATTACKS['square'](epsilon=epsilon, norm=norm, num_queries=100)
    return attack(network(SIZE), image, label, jax.random.key(1))

  expected = attacked(norm)(image, label, jax.random.key(1))
  traced = run(jnp.float32(EPSILON[norm]))
  np.testing.assert_allclose(traced, expected, atol=1e-6)
  np.testing.assert_array_equal(run(jnp.float32(0.0)), image)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'norm': 'l1'}, "norm.*'l1'.*linf"),
    ({'epsilon': 8}, r'epsilon is 8; allowed: 0 to 1.*8 is 8 / 255'),
    ({'epsilon': float('nan')}, 'epsilon is nan'),
    ({'epsilon': -0.5, 'norm': 'l2'}, 'epsilon is -0.5'),
    ({'num_queries': -1}, 'num_queries is -1'),
    ({'num_queries': 2.5}, 'num_queries is 2.5'),
    ({'p_init': 0.0}, 'p_init is 0.0'),
    ({'p_init': 1.5}, 'p_init is 1.5'),
  ],
)
def test_impossible_values_are_refused(change, message):
  with pytest.raises(errors.UserError, match=message):
    square.make_square(**{'epsilon': 0.1, **change})


@pytest.mark.parametrize(
  'norm, shape, message',
  [
    ('linf', (4, 5), '4 x 5 pixels; allowed: as many rows as columns'),
    ('l2', (4, 4), '4 x 4 pixels; allowed: .* 5 or more'),
  ],
)
def test_images_that_no_window_fits_are_refused(norm, shape, message):
  attack = square.make_square(epsilon=0.1, norm=norm)
  with pytest.raises(errors.UserError, match=message):
    attack(None, jnp.zeros((1, *shape, 3)), jnp.zeros(1, jnp.int32), jax.random.key(0))
