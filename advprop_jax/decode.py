"""From the bytes of an image file to a crop of its pixels, as TensorFlow ops.

JPEG, PNG and GIF (its first picture) are told apart by their first bytes, whatever the
file is called: ImageNet holds a PNG named .JPEG. Grey, CMYK, palette and transparent
images become RGB. Of a JPEG only what the crop needs is decoded.

What cannot be decoded is no error here, since one bad file would end a run of days: it
comes back as one black pixel with a number that says what is wrong. A JPEG that is cut
off below the crop is not bad: the crop is whole.
"""

import tensorflow as tf

# Above this an image would need gigabytes while it is decoded. Source: Pillow, which
# warns of a decompression bomb from there on (Image.MAX_IMAGE_PIXELS).
MAX_PIXELS = 89_478_485

# What may be wrong with an image, by its number; 0 is a good one.
PROBLEMS = (
  '',
  'cannot be decoded',
  f'has more than {MAX_PIXELS:,} pixels',
)
GOOD, UNREADABLE, TOO_LARGE = range(3)


def decode_crop(encoded: tf.Tensor, box_fn) -> tuple[tf.Tensor, tf.Tensor]:
  """Decodes a rectangle of an image.

  Args:
    encoded: the file's bytes, a scalar string.
    box_fn: the image's shape, int32 [3], to the rectangle: top, left, height and width,
      int32 [4]. The shape is known before anything is decoded.

  Returns:
    The crop, uint8 [height, width, 3], RGB, or one black pixel; and the index of its
    problem in PROBLEMS, int32 scalar.
  """
  failed = (tf.zeros([1, 1, 3], tf.uint8), tf.constant(False))

  def attempt(decode, shape_fn):
    def decode_crop(encoded):
      shape = shape_fn(encoded)
      # An empty box is an error, so that too large an image is not decoded.
      box = box_fn(shape) * tf.cast(_fits(shape), tf.int32)
      return tf.ensure_shape(decode(encoded, box), [None, None, 3]), tf.constant(True)

    return lambda: _or_else(decode_crop, encoded, failed)

  def diagnose():
    fits = _or_else(lambda x: _fits(image_shape(x)), encoded, tf.constant(True))
    return tf.where(fits, UNREADABLE, TOO_LARGE)

  # Nearly all are JPEGs: their way is short, since in a data set of one element
  # (`_or_else`) every op costs ten times what it costs elsewhere.
  crop, is_good = tf.cond(
    tf.image.is_jpeg(encoded),
    attempt(_decode_jpeg, _jpeg_shape),
    attempt(_decode_other, _other_shape),
  )
  return crop, tf.cond(is_good, lambda: tf.constant(GOOD), diagnose)


def image_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns height, width and number of channels, int32 [3], from the header alone.

  Raises:
    tf.errors.InvalidArgumentError: it is none of a JPEG, PNG or GIF.
  """
  return tf.cond(
    tf.image.is_jpeg(encoded),
    lambda: _jpeg_shape(encoded),
    lambda: _other_shape(encoded),
  )


def _fits(shape):
  return tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= MAX_PIXELS


def _jpeg_shape(encoded):
  return tf.io.extract_jpeg_shape(encoded)


def _other_shape(encoded):
  """Returns what the header of a PNG or GIF says."""

  def integers(position, dtype, **kwargs):
    words = tf.io.decode_raw(tf.strings.substr(encoded, position, 8), dtype, **kwargs)
    return tf.cast(words[:2], tf.int32)

  is_png = tf.equal(tf.strings.substr(encoded, 0, 4), b'\x89PNG')
  # Width comes first in both. Source: the formats' specifications.
  width_height = tf.cond(
    is_png,
    lambda: integers(16, tf.int32, little_endian=False),
    lambda: integers(6, tf.uint16),
  )
  supported = is_png | tf.equal(tf.strings.substr(encoded, 0, 4), b'GIF8')
  with tf.control_dependencies([tf.Assert(supported, ['no JPEG, PNG or GIF'])]):
    return tf.concat([width_height[::-1], [3]], axis=0)


def _decode_jpeg(encoded, box):
  return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)


def _decode_other(encoded, box):
  # An empty box would be no error here.
  with tf.control_dependencies([tf.Assert(box[2] > 0, ['empty box'])]):
    image = tf.raw_ops.DecodeImage(
      contents=encoded, channels=3, dtype=tf.uint8, expand_animations=False
    )
  return tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [3]], 0))


def _or_else(fn, x, fallback):
  """Returns fn(x), or `fallback` if that raises: what graphs lack.

  A data set of one element drops it with its error; the fallback then comes first.
  """
  result = tf.data.Dataset.from_tensors(x).map(fn).ignore_errors()
  result = result.concatenate(tf.data.Dataset.from_tensors(fallback))
  return result.take(1).get_single_element()
