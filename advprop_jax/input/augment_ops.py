"""The 16 operations of AutoAugment and RandAugment, as TensorFlow ops.

Units: images are uint8 [H, W, 3]; angles are in degrees, lengths in pixels, intensities
on the scale 0..255.

Speed, measured on one core: TensorFlow broadcasts along a last axis of 3 six times as
slowly as along rows, computes on bytes hardly faster than on float32, and looks up
values at 3 ns each. Hence rows, words of eight bytes, and two values per look-up here.

Source, also of all constants without another: tensorflow/tpu
`models/official/efficientnet/autoaugment.py`.
"""

import functools
import math

import numpy as np
import tensorflow as tf

FILL = 128  # Value of pixels that come from outside of the image.

_NUM_CHANNELS = 3


def auto_contrast(image: tf.Tensor, _=None) -> tf.Tensor:
  """Stretches each channel to 0..255; a channel of one value stays as it is."""
  low = tf.cast(tf.reduce_min(image, axis=[0, 1]), tf.float32)
  high = tf.cast(tf.reduce_max(image, axis=[0, 1]), tf.float32)
  scale = tf.where(high > low, 255.0 / (high - low), 1.0)
  offset = tf.where(high > low, -low * scale, 0.0)
  rows = tf.cast(_rows(image), tf.float32)
  rows = rows * _per_row(scale, image) + _per_row(offset, image)
  # At most one rounding outside 0..255, which the truncation takes back.
  return tf.reshape(tf.cast(rows, tf.uint8), tf.shape(image))


def equalize(image: tf.Tensor, _=None) -> tf.Tensor:
  """Flattens each channel's histogram, by Pillow's rule."""
  counts = [
    tf.raw_ops.DenseBincount(  # tf.math.bincount looks for the maximum first.
      input=tf.reshape(tf.cast(channel, tf.int32), [-1]),
      size=256,
      weights=tf.zeros([0], tf.int32),
    )
    for channel in tf.unstack(image, axis=-1)
  ]
  counts = tf.stack(counts)
  upto = tf.cumsum(counts, axis=1)
  # All pixels but those of the highest value that occurs.
  below_last = tf.where(upto < upto[:, -1:], upto, 0)
  step = tf.reduce_max(below_last, axis=1, keepdims=True) // 255
  table = (upto - counts + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
  return _look_up(image, table)


def invert(image: tf.Tensor, _=None) -> tf.Tensor:
  """Maps x to 255 - x."""
  return _from_words(tf.bitwise.invert(_words(image)), image)


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
  """Rotates about the center, counter-clockwise for positive angles."""
  y, x = _grid(image)
  radians = degrees * tf.constant(math.pi / 180)
  cos, sin = tf.cos(radians), tf.sin(radians)
  bottom, right = y[-1, 0], x[0, -1]
  x_offset = (right - (cos * right - sin * bottom)) / 2
  y_offset = (bottom - (sin * right + cos * bottom)) / 2
  return _sample(image, sin * x + cos * y + y_offset, cos * x - sin * y + x_offset)


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Keeps the `bits` highest bits of each value; one, if it is not 1 to 8 of them.

  AutoAugment asks once for 0 bits, RandAugment of magnitude 28 for 11. The official
  code shifts by 8 - bits as uint8, so by 253 for -3, and TensorFlow by 7 at most.
  """
  shift = 8 - tf.cast(bits, tf.int32)
  shift = tf.where((shift < 0) | (shift > 7), 7, shift)
  mask = tf.bitwise.left_shift(tf.constant(255, tf.uint8), tf.cast(shift, tf.uint8))
  mask = tf.bitcast(tf.repeat(mask, 8), tf.uint64)
  return _from_words(tf.bitwise.bitwise_and(_words(image), mask), image)


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
  """Inverts values that are not below the threshold modulo 256: for 256, all values.

  The official code compares with the threshold as uint8. AutoAugment asks once for 256,
  RandAugment for up to 716 (google-research/big_vision, issue 110).
  """
  chosen = image >= tf.cast(tf.math.floormod(threshold, 256.0), tf.uint8)
  return _from_words(tf.bitwise.bitwise_xor(_words(image), _mask(chosen)), image)


def solarize_add(image: tf.Tensor, addition: tf.Tensor) -> tf.Tensor:
  """Adds to values below 128, up to 255."""
  addition = tf.cast(tf.minimum(addition, 255), tf.uint8)
  # What remains up to 255 bounds it, so that no byte carries over to the next.
  added = _words(tf.minimum(invert(image), addition))
  added = tf.bitwise.bitwise_and(added, _mask(image < 128))
  return _from_words(_words(image) + added, image)


def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends from grey (0) to the image (1) and beyond."""
  planes = [tf.cast(plane, tf.float32) for plane in tf.unstack(image, axis=-1)]
  red, green, blue = [plane * (1 / 255) for plane in planes]
  # tf.image.rgb_to_grayscale with its roundings in their order: for all 2**24 colors
  # the same, and faster.
  grey = tf.floor((0.2989 * red + 0.587 * green + 0.114 * blue) * 255.5)
  grey = tf.reshape(_three_times(tf.reshape(grey, [-1])), tf.shape(image))
  return _blend(grey, tf.cast(image, tf.float32), factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends from a constant image (0) to the image (1) and beyond.

  The constant is what the official code computes: not the mean intensity, but the sum
  of the histogram / 256, H W / 256, at most 255.
  """
  constant = tf.minimum(tf.size(image) // (_NUM_CHANNELS * 256), 255)
  return _blend(tf.cast(constant, tf.float32), tf.cast(image, tf.float32), factor)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends from black (0) to the image (1) and beyond."""
  return _blend(0.0, tf.cast(image, tf.float32), factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Blends from a smoothed image (0) to the image (1) and beyond, except the border.

  With TF_ENABLE_ONEDNN_OPTS=0, which `startup.py` sets, it is the official op bit for
  bit; with oneDNN the official op itself is one off in 1 % of the pixels.
  """
  rows = _rows(image)
  values = tf.cast(rows, tf.float32)
  height, width = tf.unstack(tf.shape(rows))
  # Nine products, added one after the other: bit for bit TensorFlow's depthwise
  # convolution, which takes four times as long for three channels.
  outer, center = values * (1 / np.float32(13)), values * (5 / np.float32(13))
  size = [height - 2, width - 2 * _NUM_CHANNELS]
  parts = [
    tf.slice(center if i == j == 1 else outer, [i, j * _NUM_CHANNELS], size)
    for i in range(3)
    for j in range(3)
  ]
  smoothed = tf.floor(functools.reduce(tf.add, parts))
  inside = values[1:-1, _NUM_CHANNELS:-_NUM_CHANNELS]
  inside = _blend(smoothed, inside, factor)
  left, right = rows[1:-1, :_NUM_CHANNELS], rows[1:-1, -_NUM_CHANNELS:]
  middle = tf.concat([left, inside, right], axis=1)
  rows = tf.concat([rows[:1], middle, rows[-1:]], axis=0)
  return tf.reshape(rows, tf.shape(image))


def shear_x(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
  """Moves row y by -level * y to the right."""
  y, x = _grid(image)
  return _sample(image, y, x + level * y)


def shear_y(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
  """Moves column x by -level * x downwards."""
  y, x = _grid(image)
  return _sample(image, level * x + y, x)


def translate_x(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
  """Moves the image to the left."""
  y, x = _grid(image)
  return _sample(image, y, x + pixels)


def translate_y(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
  """Moves the image upwards."""
  y, x = _grid(image)
  return _sample(image, y + pixels, x)


def cutout(image: tf.Tensor, half_side: tf.Tensor, center: tf.Tensor) -> tf.Tensor:
  """Fills a square; `center` is float32[2] in [0, 1), a share of height and width."""
  size = tf.shape(image)[:2]
  middle = tf.cast(center * tf.cast(size, tf.float32), tf.int32)
  half_side = tf.cast(half_side, tf.int32)
  top, left = tf.unstack(tf.maximum(middle - half_side, 0))
  bottom, right = tf.unstack(tf.minimum(middle + half_side, size))
  band = image[top:bottom]
  fill = tf.constant(FILL, tf.uint8)
  square = tf.fill([bottom - top, right - left, _NUM_CHANNELS], fill)
  band = tf.concat([band[:, :left], square, band[:, right:]], axis=1)
  return tf.concat([image[:top], band, image[bottom:]], axis=0)


# Name -> fn(image, argument), uint8[H, W, 3] -> uint8[H, W, 3]; see `argument_of` about
# the argument, float32[]. Cutout alone takes a third, the center.
# The order is the official one of RandAugment.
OPS = {
  'AutoContrast': auto_contrast,
  'Equalize': equalize,
  'Invert': invert,
  'Rotate': rotate,
  'Posterize': posterize,
  'Solarize': solarize,
  'Color': color,
  'Contrast': contrast,
  'Brightness': brightness,
  'Sharpness': sharpness,
  'ShearX': shear_x,
  'ShearY': shear_y,
  'TranslateX': translate_x,
  'TranslateY': translate_y,
  'Cutout': cutout,
  'SolarizeAdd': solarize_add,
}


def _blend(start: tf.Tensor, end: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns start + factor (end - start), clipped and truncated to uint8."""
  return tf.cast(tf.clip_by_value(start + factor * (end - start), 0.0, 255.0), tf.uint8)


def _rows(image: tf.Tensor) -> tf.Tensor:
  """Returns [H, W * 3]."""
  return tf.reshape(image, [-1, tf.shape(image)[1] * _NUM_CHANNELS])


def _per_row(channels: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Repeats a vector of three, one per channel, to the length of a row."""
  return tf.tile(channels, tf.shape(image)[1:2])


def _words(image: tf.Tensor) -> tf.Tensor:
  """Returns eight bytes at a time, uint64[N]: TensorFlow is slow with single ones."""
  flat = tf.reshape(image, [-1])
  padded = tf.pad(flat, [[0, -tf.size(flat) % 8]])
  return tf.bitcast(tf.reshape(padded, [-1, 8]), tf.uint64)


def _from_words(words: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Returns bytes again, in the shape of `image`."""
  flat = tf.reshape(tf.bitcast(words, tf.uint8), [-1])
  return tf.reshape(flat[: tf.size(image)], tf.shape(image))


def _mask(chosen: tf.Tensor) -> tf.Tensor:
  """Returns words with 255 in the bytes that are chosen, bool[H, W, 3], else 0."""
  return _words(tf.cast(chosen, tf.uint8)) * 255


def _three_times(values: tf.Tensor) -> tf.Tensor:
  """Repeats each value of a float32 vector three times, once per channel.

  A product with a matrix of zeros and ones is exact, and much faster than tf.repeat.
  """
  size, block = tf.size(values), 8
  blocks = tf.reshape(tf.pad(values, [[0, -size % block]]), [-1, block])
  matrix = np.repeat(np.eye(block, dtype=np.float32), _NUM_CHANNELS, axis=1)
  return tf.reshape(tf.matmul(blocks, matrix), [-1])[: size * _NUM_CHANNELS]


def _grid(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the coordinates of the pixels, y float32[H, 1] and x float32[1, W]."""
  height, width, _ = tf.unstack(tf.cast(tf.shape(image), tf.float32))
  return tf.range(height)[:, None], tf.range(width)[None]


def _sample(image: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
  """Reads the pixels nearest to the coordinates, and FILL outside of the image.

  As tf.raw_ops.ImageProjectiveTransformV3 does (the coordinate -1/2 alone it rounds to
  -1, not 0), in a quarter of its time. Neither needs the channel of ones by which the
  official code finds what is outside.

  Args:
    image: uint8[H, W, 3].
    y: float32[H, 1] or [H, W].
    x: float32[1, W] or [H, W].
  """
  height, width, _ = tf.unstack(tf.shape(image))
  # In an image with a border of FILL all that lies outside is on the border.
  bordered = tf.pad(
    _rows(image), [[1, 1], [_NUM_CHANNELS, _NUM_CHANNELS]], constant_values=FILL
  )
  row = _to_border(y, height)
  column = _to_border(x, width)
  index = row * (width + 2) + column
  pixels = tf.reshape(bordered, [-1, _NUM_CHANNELS])
  return tf.gather_nd(pixels, index[..., None])  # Faster than tf.gather.


def _to_border(coordinate, length):
  """Rounds coordinates, and clips them to the border, 0 and length + 1."""
  last = tf.cast(length + 1, tf.float32)
  return tf.cast(tf.clip_by_value(coordinate + 1.5, 0.0, last), tf.int32)


def _look_up(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
  """Replaces values by those of a table, int32[3, 256].

  Looks up two bytes at a time as one uint16, which costs the same as one byte. The
  tables of the pairs are RG, BR and GB, since three channels alternate over pairs.
  """
  height, width, _ = tf.unstack(tf.shape(image))
  even = width + width % 2
  rows = tf.pad(_rows(image), [[0, 0], [0, (even - width) * _NUM_CHANNELS]])
  pairs = tf.bitcast(tf.reshape(rows, [height, -1, 2]), tf.uint16)
  # The first of two bytes is the lower one: RG, BR, GB.
  table = tf.cast(table, tf.uint16)
  first, second = tf.gather(table, [0, 2, 1]), tf.gather(table, [1, 0, 2])
  table = second[:, :, None] * 256 + first[:, None, :]
  index = tf.cast(pairs, tf.int32) + tf.tile([0, 65536, 2 * 65536], [even // 2])
  pairs = tf.gather_nd(tf.reshape(table, [-1]), index[..., None])
  rows = tf.reshape(tf.bitcast(pairs, tf.uint8), [height, even, _NUM_CHANNELS])
  return rows[:, :width]
