"""The evaluation crop and TensorFlow's resize as JAX, for any device and for exports.

`input/preprocess.py` is what a network is evaluated with; this is the same, so that
images can be classified without TensorFlow. Every pixel of the result is a weighted
sum of a few of the image, found by their indices. The height and the width may also be
numbers on the device, or symbolic dimensions of `jax.export`: nothing depends on them
but arithmetic.

Its bytes are TensorFlow's but for some that lie half way between two levels, which are
one level apart: 3 in a million with bicubic interpolation, 30 with bilinear (measured
on noise of 14 shapes, to 5 sizes, with TensorFlow 2.21 and JAX 0.10.2 on a CPU).

Source of every constant and of the order of all operations: TensorFlow 2.21,
`core/kernels/image/resize_bicubic_op.cc`, `resize_bilinear_op.cc` and
`image_resizer_state.h`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TABLE_SIZE = 1024  # Steps between two pixels that TensorFlow tabulates the cubic at.


class Taps(NamedTuple):
  """The pixels of one axis that a resized pixel is made of, and their weights."""

  indices: jax.Array  # int32 [S, T]
  weights: jax.Array  # float32 [S, T]; of two taps that of the second alone, [S, 1]


def _cubic_table(a: float) -> np.ndarray:
  """Returns the cubic at distances of i / TABLE_SIZE and 1 + i / TABLE_SIZE.

  float32 [TABLE_SIZE + 1, 2], computed in double precision, as in TensorFlow.
  """
  near = np.arange(TABLE_SIZE + 1) / TABLE_SIZE
  far = near + 1.0
  of_near = ((a + 2) * near - (a + 3)) * near * near + 1
  of_far = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
  return np.stack([of_near, of_far], axis=1).astype(np.float32)


def _place(size: jax.Array, image_size: int, half_pixel: bool):
  """Returns where each of S pixels is sampled: the pixel before, and the part behind.

  Args:
    size: pixels of the axis that is resized, int32 scalar.
    image_size: S.
    half_pixel: count from the centres of pixels, not from their corners.

  Returns:
    Two float32 [S]: whole numbers, and parts of a pixel in [0, 1).
  """
  # XLA would multiply by the reciprocal of a constant, which rounds otherwise.
  divisor = jax.lax.optimization_barrier(jnp.float32(image_size))
  scale = size.astype(jnp.float32) / divisor
  i = jnp.arange(image_size, dtype=jnp.float32)
  place = (i + 0.5) * scale - 0.5 if half_pixel else i * scale
  before = jnp.floor(place)
  return before, place - before


def _cubic_taps(
  size: jax.Array, image_size: int, *, a: float, half_pixel: bool, repeat_border: bool
) -> Taps:
  """Returns four taps for each pixel.

  Args:
    size: pixels of the axis, int32 scalar.
    image_size: S, after resizing.
    a: of the cubic: its slope at the distance 1.
    half_pixel: see `_place`.
    repeat_border: of taps outside of the image, take the pixel at the border. Else
      they have no weight, and the others are scaled to the sum 1.
  """
  before, part = _place(size, image_size, half_pixel)
  step = jnp.round(part * TABLE_SIZE).astype(jnp.int32)  # Halves to even, as lrintf.
  table = jnp.asarray(_cubic_table(a))
  first, second = table[step], table[TABLE_SIZE - step]
  weights = jnp.stack([first[:, 1], first[:, 0], second[:, 0], second[:, 1]], axis=1)
  indices = before.astype(jnp.int32)[:, None] + jnp.arange(-1, 3)
  inside = jnp.clip(indices, 0, size - 1)
  if not repeat_border:
    weights = jnp.where(indices == inside, weights, 0.0)
    weights *= 1.0 / _sum(weights[:, t] for t in range(4))[:, None]
  return Taps(inside, weights)


def _linear_taps(size: jax.Array, image_size: int) -> Taps:
  """Returns two taps for each pixel; see `_cubic_taps`."""
  before, part = _place(size, image_size, half_pixel=True)
  # A place outside of the image has the pixel at the border twice.
  indices = before.astype(jnp.int32)[:, None] + jnp.arange(2)
  return Taps(jnp.clip(indices, 0, size - 1), part[:, None])


def _take(image, taps: Taps, t: int, axis: int):
  """Returns the t-th pixel of every tap along an axis."""
  # The indices are inside: no other mode would do anything but take time.
  return jnp.take(image, taps.indices[:, t], axis=axis, mode='clip')


def _sum(terms):
  """Returns the sum from left to right, as TensorFlow adds."""
  return functools.reduce(jnp.add, terms)


def _cubic(image, rows: Taps, columns: Taps):
  """Returns float32 [..., S, S, 3]: of the rows first, then of the columns."""
  image = _sum(
    rows.weights[:, t, None, None] * _take(image, rows, t, -3).astype(jnp.float32)
    for t in range(4)
  )
  return _sum(
    columns.weights[:, t, None] * _take(image, columns, t, -2) for t in range(4)
  )


def _linear(image, rows: Taps, columns: Taps):
  """Returns float32 [..., S, S, 3]: of the columns first, then of the rows."""

  def of_columns(image):
    first, second = (_take(image, columns, t, -2) for t in range(2))
    return first + (second - first) * columns.weights

  first, second = (
    of_columns(_take(image, rows, t, -3).astype(jnp.float32)) for t in range(2)
  )
  return first + (second - first) * rows.weights[:, :, None]


class Method(NamedTuple):
  """A way to resize: what it samples of an axis, and how the samples are joined."""

  taps: Callable[..., Taps]  # (pixels of an axis, S) -> taps
  join: Callable[..., jax.Array]  # (image, taps of rows, of columns) -> float32


# The names and what they are: `RESIZE_METHODS` in `input/preprocess.py`.
METHODS = {
  'bicubic_tf1': Method(
    functools.partial(_cubic_taps, a=-0.75, half_pixel=False, repeat_border=True),
    _cubic,
  ),
  'bicubic': Method(
    functools.partial(_cubic_taps, a=-0.5, half_pixel=True, repeat_border=False),
    _cubic,
  ),
  'bilinear': Method(_linear_taps, _linear),
}


def center_crop_box(height, width, image_size: int, crop_padding: int):
  """Returns top, left and side of the evaluation crop, int32 scalars.

  Args:
    height: of the image, int32 scalar.
    width: likewise.
    image_size: side S that the crop will be resized to, in pixels.
    crop_padding: see `center_crop_box` of `input/preprocess.py`.
  """
  ratio = np.float32(image_size / (image_size + crop_padding))
  shorter = jnp.minimum(height, width).astype(jnp.float32)
  side = jnp.maximum((ratio * shorter).astype(jnp.int32), 1)
  return (height - side + 1) // 2, (width - side + 1) // 2, side


def preprocess(
  image: jax.Array,
  *,
  image_size: int,
  crop_padding: int,
  resize_method: str,
  shape: tuple[Any, Any] | None = None,
) -> jax.Array:
  """Returns the evaluation crop of images, uint8 [..., S, S, 3].

  Args:
    image: uint8 [..., H, W, 3].
    image_size: side S of the result, in pixels.
    crop_padding: see `center_crop_box`.
    resize_method: a key of METHODS.
    shape: height and width of the image, int32 scalars, if what lies below and to the
      right of it is no part of it; None: H and W.
  """
  height, width = (jnp.asarray(x, jnp.int32) for x in shape or image.shape[-3:-1])
  top, left, side = center_crop_box(height, width, image_size, crop_padding)
  method = METHODS[resize_method]
  taps = method.taps(side, image_size)  # The same of rows and columns of a square.
  rows, columns = (taps._replace(indices=taps.indices + start) for start in (top, left))
  image = method.join(image, rows, columns)
  # To the nearest of 256 levels, halves up, as `to_dtype` does.
  return jnp.floor(jnp.clip(image, 0.0, 255.0) + 0.5).astype(jnp.uint8)
