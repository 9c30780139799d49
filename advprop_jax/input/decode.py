"""From the bytes of an image file to a crop of its pixels, as TensorFlow ops.

Read are JPEG, PNG, BMP and WebP, told apart by their first bytes (`formats.py`). Grey,
CMYK, palette and transparent images become RGB. Of a JPEG only what the crop needs is
decoded.

With `guard=True` an image that cannot be decoded returns one black pixel and a problem
code, since one bad file would end a run of days; otherwise it raises.
`bad_examples.TrainBatches` decodes without a guard up to the first bad file. Damage
that the decoder tolerates is not detected: a JPEG that is cut off below the crop, or
one with wrong bits in the middle, of which libjpeg makes some picture.
"""

import functools

import tensorflow as tf

from advprop_jax.input import exif, formats, graph

# What may be wrong with an image, by its number; 0 is a good one.
PROBLEMS = (
  '',
  'cannot be decoded',
  'has more pixels than data.max_megapixels allows',
  'is not of the size that the images of this suite have',
  *(f'is {name}: convert it to PNG or JPEG' for name, *_ in formats.OTHERS),
)
GOOD, UNREADABLE, TOO_LARGE, OTHER_SIZE, OTHER = range(5)


def decode_crop(
  encoded: tf.Tensor,
  box_fn,
  *,
  max_megapixels: float,
  exif_orientation: bool = False,
  guard: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Decodes a rectangle of an image.

  Args:
    encoded: the file's bytes, a scalar string.
    box_fn: the image's shape, int32 [3], to the rectangle: top, left, height and width,
      int32 [4]. The shape is known before anything is decoded.
    max_megapixels: of an image, in millions of pixels; a larger one is not decoded.
      Decoding takes 6 bytes a pixel, the pixels and the crop of them, beside those of
      the file; of a progressive JPEG 9, or 11 if it is in CMYK.
    exif_orientation: turn the image as the entry of its camera says; shape and
      rectangle are those of the image as it is seen.
    guard: report what cannot be decoded, for a tenth of the time; otherwise it is
      TensorFlow's InvalidArgumentError.

  Returns:
    The crop, uint8 [height, width, 3], RGB, or one black pixel; and the index of its
    problem in PROBLEMS, int32 scalar.
  """
  failed = (tf.zeros([1, 1, 3], tf.uint8), tf.constant(False))

  def fits(shape):
    # Of the largest sides that a header can say, the product fits into int64.
    num_pixels = tf.reduce_prod(tf.cast(shape[:2], tf.int64))
    return num_pixels <= round(min(max_megapixels, 1e12) * 1e6)

  def jpeg(encoded, as_stored):
    shape = tf.io.extract_jpeg_shape(encoded)
    # An empty box is an error, so that too large an image is not decoded.
    box = as_stored(shape) * tf.cast(fits(shape), tf.int32)
    return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)

  def other(shape_fn, decode_fn, encoded, as_stored):
    shape = shape_fn(encoded)
    with tf.control_dependencies([tf.Assert(fits(shape), ['too many pixels'])]):
      image = decode_fn(encoded)
    top, left, height, width = tf.unstack(as_stored(shape))
    return tf.slice(image, [top, left, 0], [height, width, 3])

  def read(crop_fn, turned):
    """Returns the crop and whether there is one."""

    def crop(encoded):
      if turned is None:
        return crop_fn(encoded, box_fn), tf.constant(True)
      box = functools.partial(exif.stored_box, box_fn, turned=turned)
      return crop_fn(encoded, box), tf.constant(True)

    return graph.or_else(crop, encoded, failed) if guard else crop(encoded)

  def read_any(turned=None):
    # What is told apart here is not in the guarded part: in a data set of one element
    # (`graph.or_else`) every op costs ten times what it costs elsewhere.
    png = functools.partial(other, formats.png_shape, _decode_png)
    bmp_or_webp = functools.partial(
      other, formats.bmp_or_webp_shape, _decode_bmp_or_webp
    )
    return tf.cond(
      tf.image.is_jpeg(encoded),
      lambda: read(jpeg, turned),
      lambda: tf.cond(
        formats.is_png(encoded),
        lambda: read(png, turned),
        graph.rare(read, bmp_or_webp, turned),
      ),
    )

  def read_turned(turned):
    crop, is_good = read_any(turned)
    return exif.turn(crop, turned), is_good

  def diagnose():
    def of_shape(encoded):
      return tf.where(fits(formats.shape(encoded)), UNREADABLE, TOO_LARGE)

    other = formats.other(encoded)
    problem = tf.where(other >= 0, OTHER + other, UNREADABLE)
    return graph.or_else(of_shape, encoded, problem)

  if exif_orientation:
    turned = exif.orientation(encoded)
    crop, is_good = tf.cond(turned > 1, graph.rare(read_turned, turned), read_any)
  else:
    crop, is_good = read_any()
  crop = tf.ensure_shape(crop, [None, None, 3])
  return crop, tf.cond(is_good, lambda: tf.constant(GOOD), graph.rare(diagnose))


def _decode_png(encoded):
  return tf.io.decode_png(encoded, channels=3)


def _decode_bmp_or_webp(encoded):
  """Returns uint8 [H, W, 3], or of a transparent WebP [H, W, 4]."""
  return tf.cond(
    formats.is_bmp(encoded),
    lambda: tf.io.decode_bmp(encoded, channels=3),
    lambda: tf.io.decode_webp(encoded)[0],
  )
