"""Square: a random search that asks a model for logits only, never for a gradient.

A query changes the image in a random square window; the change is kept if the margin of
the true class falls. Source of all that follows: Andriushchenko et al. 2020 (Square
Attack), and where the paper is silent the authors' code in AutoAttack. One difference:
there one window serves the whole batch, and one sign per channel in the L-infinity ball
too. Here every example has its own, from its own key, so that what it gets does not
depend on the batch that it is in.

`search` keeps or refuses points; `make_propose` makes them, see `windows.py`;
`make_square` is the attack by name. Images are as in `gradient.py`, but square.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import errors, losses
from advprop_jax.attacks import balls, inputs, windows
from advprop_jax.attacks.gradient import Attack

# (last iteration, divisor): up to that one, from 0 on, the window has the share
# p_init / divisor of all pixels. As in AutoAttack it is not stretched to the number of
# queries.
SCHEDULE = (
  (10, 1),
  (50, 2),
  (200, 4),
  (500, 8),
  (1000, 16),
  (2000, 32),
  (4000, 64),
  (6000, 128),
  (8000, 256),
  (math.inf, 512),
)

Propose = Callable[[jax.Array, jax.Array], jax.Array]


def search(
  margin_fn: Callable[[jax.Array], jax.Array],
  image: jax.Array,
  start: jax.Array,
  propose: Propose,
  *,
  num_queries: int,
) -> jax.Array:
  """Lowers the margins of images by random search, in one compiled loop.

  Args:
    margin_fn: points, like `image`, to the margins of their true classes, [B].
    image: float32 [B, H, W, C]. One whose margin is not positive stays as it is.
    start: where to begin, like `image`.
    propose: (iteration from 0 on, int32 []; best points so far) to the points to try,
      like `image`. A point is kept if its margin is less; an example whose margin is
      not positive changes no more.
    num_queries: number of proposals; fewer if all margins fall to 0 or less.

  Returns:
    The best points, like `image`.
  """

  def is_unfinished(state):
    iteration, _, margin = state
    return (iteration < num_queries) & (margin > 0).any()

  # The image, at -2, and the start, at -1, take the same way as the proposals: so the
  # model is compiled once.
  def query(state):
    iteration, best, margin = state
    point = jnp.where(
      iteration == -2,
      image,
      jnp.where(iteration == -1, start, propose(iteration, best)),
    )
    new = margin_fn(point)
    keep = (margin > 0) & (new < margin)
    best = jnp.where(keep[:, None, None, None], point, best)
    margin = jnp.where(keep, new, margin)
    # The start is kept even if the image itself has a lower margin.
    margin = jnp.where((iteration == -2) & (margin > 0), jnp.inf, margin)
    return iteration + 1, best, margin

  margin = jnp.full(len(image), jnp.inf, image.dtype)
  _, best, _ = jax.lax.while_loop(is_unfinished, query, (jnp.int32(-2), image, margin))
  return jax.lax.stop_gradient(best)


def window_sides(image_size: int, *, norm: str, p_init: float) -> list[int]:
  """Returns the side of the window, in pixels, of every row of `SCHEDULE`."""
  sides = []
  for _, divisor in SCHEDULE:
    # Python's `round`: halves go to the even neighbour. Source: the authors' code.
    side = round(math.sqrt(p_init / divisor * image_size**2))
    if norm == 'l2':
      side = max(side, 3)
      side += 1 - side % 2
    sides.append(min(max(side, 1), image_size))
  return sides


def make_propose(
  image: jax.Array,
  *,
  norm: str,
  epsilon: float | jax.Array,
  p_init: float,
  draw: Callable[[jax.Array], windows.Draw],
) -> Propose:
  """Returns the proposals of `search`, of the random numbers that `draw` returns.

  Args:
    image: float32 [B, H, H, C] in [0, 1].
    norm: 'linf' or 'l2'.
    epsilon: radius; see `make_square`.
    p_init: see `make_square`.
    draw: iteration, int32 [], to its random numbers.
  """
  image_size = image.shape[1]
  sides = window_sides(image_size, norm=norm, p_init=p_init)
  last = jnp.array([x for x, _ in SCHEDULE[:-1]], jnp.int32)
  patterns = np.zeros((len(sides), image_size, image_size), np.float32)
  if norm == 'l2':
    for pattern, side in zip(patterns, sides, strict=True):
      pattern[:side, :side] = windows.l2_pattern(side)

  def propose(iteration, best):
    row = (iteration > last).sum()
    side, numbers = jnp.array(sides, jnp.int32)[row], draw(iteration)
    if norm == 'linf':
      return windows.move_linf(best, image, epsilon, side, numbers)
    return windows.move_l2(
      best, image, epsilon, side, jnp.asarray(patterns)[row], numbers
    )

  return propose


def make_square(
  *,
  epsilon: float | jax.Array,
  norm: str = 'linf',
  num_queries: int = 5000,
  p_init: float = 0.8,
) -> Attack:
  """Returns the Square attack, untargeted, with the margin as the loss.

  The defaults are those of AutoAttack. Images that are misclassified already stay as
  they are. `logits_fn` is called once for the images and once for the start as well.

  Args:
    epsilon: radius: 'linf' in pixel units of [0, 1], 'l2' a norm over all values of an
      image in [0, 1]. A JAX scalar is not checked.
    norm: 'linf' or 'l2'.
    num_queries: number of iterations.
    p_init: share of the pixels in the first windows.

  Raises:
    UserError: a value is outside its range; from the attack, if images are not square
      or, with 'l2', have less than 5 rows.
  """
  errors.check_choice('attack.norm', norm, windows.STARTS)
  inputs.check_radius(epsilon, norm=norm)
  inputs.check_count('num_queries', num_queries)
  if not 0 < p_init <= 1:
    raise errors.UserError(
      f'attack p_init is {p_init}; allowed: more than 0, up to 1: a share of the pixels'
    )
  smallest = 1 if norm == 'linf' else 5

  def attack(logits_fn, image, label, rng):
    height, width, channels = image.shape[1:]
    if height != width or height < smallest:
      raise errors.UserError(
        f'the attack square ({norm}) has images of {height} x {width} pixels; allowed: '
        f'as many rows as columns, {smallest} or more'
      )

    def first(rng, image):
      start_rng, search_rng = jax.random.split(rng)
      numbers = windows.draw_start(start_rng, image, norm=norm)
      return windows.STARTS[norm](image, epsilon, numbers), search_rng

    start, keys = jax.vmap(first)(balls.keys_of_examples(rng, len(image)), image)
    propose = make_propose(
      image,
      norm=norm,
      epsilon=epsilon,
      p_init=p_init,
      draw=lambda iteration: windows.draw_numbers(keys, iteration, channels),
    )
    return search(
      lambda x: losses.margin(logits_fn(x), label),
      image,
      start,
      propose,
      num_queries=num_queries,
    )

  return attack
