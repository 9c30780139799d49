"""The windows that Square changes: where they are, and what is added in them.

Every function here is one of arrays and random numbers; which of the points are kept
is in `square.py`, as are the sources. Images are float32 in [0, 1], shape [B, H, H, C]
or of one [H, H, C].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax.attacks import balls

_TINY = 1e-12  # Added to norms, which may be 0. Source: the authors' code.


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


STARTS = {'linf': start_linf, 'l2': start_l2}


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
