"""Square: a random search that asks a model for logits only, never for a gradient.

A query changes the image in a random square window; the change is kept if the margin of
the true class falls. Source of all that follows: Andriushchenko et al. 2020 (Square
Attack), and where the paper is silent the authors' code in AutoAttack. One difference:
there one window serves the whole batch, and one sign per channel in the L-infinity ball
too. Here every example has its own, from its own key, so that what it gets does not
depend on the batch that it is in.

`search` keeps or refuses points; `make_propose` makes them of random numbers, `Draw`;
`make_square` is the attack by name. Images are as in `gradient.py`, but square.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import errors, losses
from advprop_jax.attacks import balls, inputs
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
_TINY = 1e-12  # Added to norms, which may be 0. Source: the authors' code.

Propose = Callable[[jax.Array, jax.Array], jax.Array]


class Draw(NamedTuple):
  """The random numbers of an iteration."""

  position: jax.Array  # Row and column of two windows, float32 [B, 4] in [0, 1).
  transpose: jax.Array  # Whether the pattern of the L2 attack is transposed, bool [B].
  sign: jax.Array  # Of every channel, float32 [B, C]: -1 or 1.


class StartDraw(NamedTuple):
  """The random numbers of the start, of one example."""

  transpose: jax.Array  # Of the patterns of the L2 attack, bool [N, N].
  sign: jax.Array  # L-infinity: of columns, [W, C]; L2: of patterns, [N, N, C].


class Window(NamedTuple):
  """Which values of folded images, [B, H, W * C], are in a window: 1, else 0."""

  rows: jax.Array  # float32 [B, 1, H]
  columns: jax.Array  # float32 [B, 1, W * C]


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
  draw: Callable[[jax.Array], Draw],
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
      pattern[:side, :side] = l2_pattern(side)

  def propose(iteration, best):
    row = (iteration > last).sum()
    side, numbers = jnp.array(sides, jnp.int32)[row], draw(iteration)
    if norm == 'linf':
      return move_linf(best, image, epsilon, side, numbers)
    return move_l2(best, image, epsilon, side, jnp.asarray(patterns)[row], numbers)

  return propose


def start_linf(
  image: jax.Array, epsilon: float | jax.Array, draw: StartDraw
) -> jax.Array:
  """Returns an image, [H, W, C], on a border of the ball in every column."""
  return jnp.clip(image + epsilon * draw.sign, 0.0, 1.0)


def move_linf(
  best: jax.Array,
  image: jax.Array,
  epsilon: float | jax.Array,
  side: jax.Array,
  draw: Draw,
) -> jax.Array:
  """Moves a window of every image to the border of the ball, by a sign per channel."""
  window = _window(_corner(draw.position[:, :2], side, image), side, image)
  step = window.columns * _tile(2 * epsilon * draw.sign, image)
  moved = _fold(best) + window.rows.swapaxes(1, 2) * step
  return balls.project_linf(moved, _fold(image), epsilon).reshape(image.shape)


def num_start_windows(image_size: int) -> int:
  """Returns how many windows the L2 attack starts with, in either direction."""
  return image_size // (image_size // 5)


def start_l2(
  image: jax.Array, epsilon: float | jax.Array, draw: StartDraw
) -> jax.Array:
  """Returns an image, [H, H, C], plus a grid of patterns of the norm epsilon.

  Their side is a fifth of the image's. Where it does not divide the image, the grid may
  reach over the edge, and is cut there; the authors' code fails if a window is cut.
  """
  image_size, _, channels = image.shape
  side, num = image_size // 5, num_start_windows(image_size)
  first = (image_size - 5 * side) // 2
  pattern = jnp.asarray(l2_pattern(side), image.dtype)
  windows = jnp.where(draw.transpose[:, :, None, None], pattern.T, pattern)
  grid = windows[..., None] * draw.sign[:, :, None, None, :]  # [N, N, side, side, C]
  grid = grid.swapaxes(1, 2).reshape(num * side, num * side, channels)
  grid = grid[: image_size - first, : image_size - first]
  after = image_size - first - len(grid)
  delta = jnp.pad(grid, ((first, after), (first, after), (0, 0)))
  return jnp.clip(image + delta / (balls.l2_norm(delta) + _TINY) * epsilon, 0.0, 1.0)


def move_l2(
  best: jax.Array,
  image: jax.Array,
  epsilon: float | jax.Array,
  side: jax.Array,
  pattern: jax.Array,
  draw: Draw,
) -> jax.Array:
  """Adds a pattern in a first window, of the norm that it and a second one had.

  Args:
    best: the points to move, like `image`.
    image: float32 [B, H, H, C] in [0, 1].
    epsilon: radius.
    side: of both windows, int32 [].
    pattern: `l2_pattern(side)` in the corner of zeros, float32 [H, H].
    draw: the random numbers.
  """
  corner = _corner(draw.position[:, :2], side, image)
  first = _window(corner, side, image)
  second = _window(_corner(draw.position[:, 2:], side, image), side, image)
  every = Window(jnp.ones_like(first.rows), jnp.ones_like(first.columns))
  both = Window(first.rows * second.rows, first.columns * second.columns)

  delta = _fold(best) - _fold(image)
  total, in_first, in_second, in_both = _channel_sums(
    jnp.square(delta), [every, first, second, both], image
  )
  in_windows = in_first + in_second - in_both
  left = jnp.maximum(epsilon**2 - total.sum(-1, keepdims=True), 0.0)
  norm = jnp.sqrt(left / image.shape[-1] + in_windows)

  inside = _mask(first) * _tile(1 / (jnp.sqrt(in_first) + _TINY), image)
  new = _shift(pattern, draw.transpose, corner, image) * _tile(draw.sign, image)
  new = new + delta * inside
  (squares,) = _channel_sums(jnp.square(new), [every], image)
  scale = norm / (jnp.sqrt(squares) + _TINY)

  # The norm of the result: of the first window, and of what is in neither.
  outside = jnp.maximum(total - in_windows, 0.0)
  result = jnp.sqrt((outside + squares * scale**2).sum(-1, keepdims=True))
  shrink = epsilon / (result + _TINY)
  old = delta * (1 - _mask(first)) * (1 - _mask(second))
  delta = new * _tile(scale * shrink, image) + old * shrink[:, None]
  return jnp.clip(image + delta.reshape(image.shape), 0.0, 1.0)


def l2_pattern(side: int) -> np.ndarray:
  """Returns what the L2 attack adds in a window, float64 [side, side], of the norm 1.

  A peak above another one of the opposite sign.
  """
  above, below = _peak(side // 2, side), _peak(side - side // 2, side)
  pattern = np.concatenate([above, -below])
  return pattern / np.linalg.norm(pattern)


def _peak(height: int, width: int) -> np.ndarray:
  """Returns a peak of the norm 1, of squares around the middle, [height, width]."""
  row, column = (np.abs(np.arange(x) - x // 2) for x in (height, width))
  # 1 / k ** 2 in the k-th square: at a distance d, in all from the (d + 1)-th on.
  squares = 1 / np.arange(1, max(height, width) // 2 + 2) ** 2
  peak = np.cumsum(squares[::-1])[::-1][np.maximum(row[:, None], column)]
  return peak / np.linalg.norm(peak)


# In the functions below images have the shape [B, H, W * C]: a loop over the last axis
# is then long enough for vector instructions.


def _fold(image: jax.Array) -> jax.Array:
  return image.reshape(*image.shape[:2], -1)


def _tile(x: jax.Array, image: jax.Array) -> jax.Array:
  """Returns values of channels, [B, C], for every column, [B, 1, W * C]."""
  return _product(x, _channels(image))[:, None]


def _channels(image: jax.Array) -> jax.Array:
  """Returns which channel every column has, [C, W * C]: 1, else 0."""
  return jnp.tile(jnp.eye(image.shape[-1], dtype=image.dtype), image.shape[2])


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns `x @ matrix`, in float32.

  XLA computes a small array anew for every pixel that reads it, which takes longer than
  the arithmetic on the pixels; a product of matrices it computes once.
  """
  return jnp.matmul(x, matrix, precision='highest')


def _corner(position: jax.Array, side: jax.Array, image: jax.Array) -> jax.Array:
  """Returns the first row and column of windows, int32 [B, 2].

  The last possible ones are never drawn. Source: the authors' code.
  """
  free = (image.shape[1] - side).astype(position.dtype)
  return (position * free).astype(jnp.int32)


def _window(corner: jax.Array, side: jax.Array, image: jax.Array) -> Window:
  offset = jnp.arange(image.shape[1]) - jnp.arange(image.shape[1])[:, None]
  inside = ((offset >= 0) & (offset < side)).astype(image.dtype)  # Of every corner.
  at_corner = jax.nn.one_hot(corner, len(inside), dtype=image.dtype)
  rows = _product(at_corner[:, 0], inside)
  columns = _product(at_corner[:, 1], jnp.repeat(inside, image.shape[-1], axis=-1))
  return Window(rows[:, None], columns[:, None])


def _mask(window: Window) -> jax.Array:
  return window.rows.swapaxes(1, 2) * window.columns


def _channel_sums(
  x: jax.Array, windows: list[Window], image: jax.Array
) -> list[jax.Array]:
  """Returns the sums over windows of every channel, [B, C] each."""
  rows = jnp.concatenate([window.rows for window in windows], 1)
  columns = jnp.concatenate([window.columns for window in windows], 1)
  sums = _product(_product(rows, x) * columns, _channels(image).T)
  return [sums[:, i] for i in range(len(windows))]


def _shift(
  pattern: jax.Array, transpose: jax.Array, corner: jax.Array, image: jax.Array
) -> jax.Array:
  """Returns the pattern with its corner moved, and transposed, of every image."""
  size, channels = image.shape[2:]
  both = jnp.stack([pattern, pattern.T])
  padded = jnp.pad(both, ((0, 0), (size, 0), (size, 0)))
  padded = jnp.repeat(padded, channels, axis=-1)

  def cut(index, corner):
    row, column = size - corner
    start = (index, row, column * channels)
    return jax.lax.dynamic_slice(padded, start, (1, size, size * channels))[0]

  return jax.vmap(cut)(transpose.astype(jnp.int32), corner)


def draw_start(rng: jax.Array, image: jax.Array, *, norm: str) -> StartDraw:
  """Draws the random numbers of the start of an image, [H, H, C]."""
  size, _, channels = image.shape
  num = num_start_windows(size) if norm == 'l2' else 0
  shape = (num, num, channels) if norm == 'l2' else (size, channels)
  transpose_rng, sign_rng = jax.random.split(rng)
  return StartDraw(
    jax.random.bernoulli(transpose_rng, shape=(num, num)),
    jax.random.rademacher(sign_rng, shape, image.dtype),
  )


def draw_numbers(rng: jax.Array, iteration: jax.Array, num_channels: int) -> Draw:
  """Draws the random numbers of an iteration; `rng` is a key per example, [B]."""

  def bits(key):
    return jax.random.bits(jax.random.fold_in(key, iteration), (5,))

  numbers = jax.vmap(bits)(rng)
  position, last = numbers[:, :4], numbers[:, 4:]  # uint32
  sign = (last >> jnp.arange(num_channels, dtype=last.dtype)) & 1
  return Draw(
    position=(position >> 8).astype(jnp.float32) / 2**24,
    transpose=last[:, 0] >> 31 == 1,
    sign=2 * sign.astype(jnp.float32) - 1,
  )


STARTS = {'linf': start_linf, 'l2': start_l2}


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
  errors.check_choice('attack.norm', norm, STARTS)
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
      numbers = draw_start(start_rng, image, norm=norm)
      return STARTS[norm](image, epsilon, numbers), search_rng

    start, keys = jax.vmap(first)(balls.keys_of_examples(rng, len(image)), image)
    propose = make_propose(
      image,
      norm=norm,
      epsilon=epsilon,
      p_init=p_init,
      draw=lambda iteration: draw_numbers(keys, iteration, channels),
    )
    return search(
      lambda x: losses.margin(logits_fn(x), label),
      image,
      start,
      propose,
      num_queries=num_queries,
    )

  return attack
