"""From the bytes of an image file to a crop of its pixels, as TensorFlow ops.

JPEG and PNG are told apart by their first bytes, whatever the file is called: ImageNet
holds a PNG named .JPEG. Grey, CMYK, palette and transparent images become RGB. Of a
JPEG only what the crop needs is decoded.

With `guard=True` an image that cannot be decoded returns one black pixel and a problem
code, since one bad file would end a run of days; otherwise it raises.
`bad_examples.TrainBatches` decodes without a guard up to the first bad file. Damage
that the decoder tolerates is not detected: a JPEG that is cut off below the crop, or
one with wrong bits in the middle, of which libjpeg makes some picture.
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
  'is a GIF: convert it to PNG or JPEG',
)
GOOD, UNREADABLE, TOO_LARGE, GIF = range(4)

_PNG, _GIF = b'\x89PNG', b'GIF8'  # The first bytes.


def decode_crop(
  encoded: tf.Tensor, box_fn, *, guard: bool = True
) -> tuple[tf.Tensor, tf.Tensor]:
  """Decodes a rectangle of an image.

  Args:
    encoded: the file's bytes, a scalar string.
    box_fn: the image's shape, int32 [3], to the rectangle: top, left, height and width,
      int32 [4]. Of a JPEG the shape is known before anything is decoded.
    guard: report what cannot be decoded, for a tenth of the time; otherwise it is
      TensorFlow's InvalidArgumentError.

  Returns:
    The crop, uint8 [height, width, 3], RGB, or one black pixel; and the index of its
    problem in PROBLEMS, int32 scalar.
  """
  failed = (tf.zeros([1, 1, 3], tf.uint8), tf.constant(False))

  def jpeg(encoded):
    shape = tf.io.extract_jpeg_shape(encoded)
    # An empty box is an error, so that too large an image is not decoded.
    box = box_fn(shape) * tf.cast(_fits(shape), tf.int32)
    crop = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
    return tf.ensure_shape(crop, [None, None, 3]), tf.constant(True)

  def other(encoded):
    image = _decode_png(encoded)
    top, left, height, width = tf.unstack(box_fn(tf.shape(image)))
    return tf.slice(image, [top, left, 0], [height, width, 3]), tf.constant(True)

  def diagnose():
    fits = or_else(lambda x: _fits(image_shape(x)), encoded, tf.constant(True))
    problem = tf.where(fits, UNREADABLE, TOO_LARGE)
    return tf.where(_starts_with(encoded, _GIF), GIF, problem)

  def attempt(fn):
    return or_else(fn, encoded, failed) if guard else fn(encoded)

  # Nearly all are JPEGs: their way is short, since in a data set of one element
  # (`or_else`) every op costs ten times what it costs elsewhere.
  crop, is_good = tf.cond(
    tf.image.is_jpeg(encoded), lambda: attempt(jpeg), lambda: attempt(other)
  )
  return crop, tf.cond(is_good, lambda: tf.constant(GOOD), diagnose)


def image_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns height, width and number of channels, int32 [3], from the header alone.

  Raises:
    tf.errors.InvalidArgumentError: it is neither a JPEG nor a PNG.
  """
  return tf.cond(
    tf.image.is_jpeg(encoded),
    lambda: tf.io.extract_jpeg_shape(encoded),
    lambda: _png_shape(encoded),
  )


def _fits(shape):
  return tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= MAX_PIXELS


def _starts_with(encoded, prefix):
  return tf.equal(tf.strings.substr(encoded, 0, len(prefix)), prefix)


def _png_shape(encoded):
  is_png = _starts_with(encoded, _PNG) & (tf.strings.length(encoded) >= 24)
  with tf.control_dependencies([tf.Assert(is_png, ['neither a JPEG nor a PNG'])]):
    # Width and height, big-endian. Source: the format's specification.
    words = tf.io.decode_raw(
      tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False
    )
    return tf.stack([words[1], words[0], 3])


def _decode_png(encoded):
  fits = _fits(_png_shape(encoded))
  with tf.control_dependencies([tf.Assert(fits, ['too many pixels'])]):
    return tf.io.decode_png(encoded, channels=3)


def or_else(fn, x, fallback):
  """Returns fn(x), or `fallback` if that raises: what graphs lack.

  A data set of one element drops it with its error; the fallback then comes first.
  """
  result = tf.data.Dataset.from_tensors(x).map(fn).ignore_errors()
  result = result.concatenate(tf.data.Dataset.from_tensors(fallback))
  return result.take(1).get_single_element()
