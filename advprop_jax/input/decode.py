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

import tensorflow as tf

from advprop_jax.input import exif, formats, graph

# What may be wrong with an image, by its number; 0 is a good one.
PROBLEMS = (
  '',
  'cannot be decoded',
  'has more pixels than data.max_megapixels allows',
  *(f'is {name}: convert it to PNG or JPEG' for name, *_ in formats.OTHERS),
)
GOOD, UNREADABLE, TOO_LARGE, OTHER = range(4)


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
      Decoding takes 6 bytes a pixel, the pixels and the crop of them; of a progressive
      JPEG up to 9.
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
    return num_pixels <= int(max_megapixels * 1e6)

  def read(encoded, shape, decode_box):
    """Returns the crop: `decode_box` decodes a rectangle of the image as stored."""

    def as_stored():
      return decode_box(box_fn(shape))

    def as_seen():
      box = box_fn(exif.seen_shape(shape, turned))
      return exif.turn(decode_box(exif.stored_box(box, shape, turned)), turned)

    if not exif_orientation:
      return as_stored(), tf.constant(True)
    turned = exif.orientation(encoded)
    return tf.cond(turned > 1, graph.rare(as_seen), as_stored), tf.constant(True)

  def jpeg(encoded):
    shape = tf.io.extract_jpeg_shape(encoded)

    def decode_box(box):
      # An empty box is an error, so that too large an image is not decoded.
      box *= tf.cast(fits(shape), tf.int32)
      crop = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
      return tf.ensure_shape(crop, [None, None, 3])

    return read(encoded, shape, decode_box)

  def whole(encoded, shape, decode_fn):
    def decode_box(box):
      with tf.control_dependencies([tf.Assert(fits(shape), ['too many pixels'])]):
        image = decode_fn()
      top, left, height, width = tf.unstack(box)
      return tf.slice(image, [top, left, 0], [height, width, 3])

    return read(encoded, shape, decode_box)

  def png(encoded):
    shape = formats.png_shape(encoded)
    return whole(encoded, shape, lambda: tf.io.decode_png(encoded, channels=3))

  def bmp(encoded):
    shape = formats.bmp_shape(encoded)
    return whole(encoded, shape, lambda: tf.io.decode_bmp(encoded, channels=3))

  def webp(encoded):
    # [1, H, W, 3], or 4 with transparency, which the op does not convert.
    shape = formats.webp_shape(encoded)
    return whole(encoded, shape, lambda: tf.io.decode_webp(encoded)[0])

  def other(encoded):
    return tf.cond(
      formats.is_png(encoded),
      lambda: png(encoded),
      lambda: tf.cond(
        formats.is_bmp(encoded), graph.rare(bmp, encoded), graph.rare(webp, encoded)
      ),
    )

  def diagnose():
    def of_shape(encoded):
      return tf.where(fits(formats.shape(encoded)), UNREADABLE, TOO_LARGE)

    problem = tf.constant(UNREADABLE)
    for i, (_, place, begin) in enumerate(formats.OTHERS):
      problem = tf.where(formats.has(encoded, place, begin), OTHER + i, problem)
    return graph.or_else(of_shape, encoded, problem)

  def attempt(fn):
    return graph.or_else(fn, encoded, failed) if guard else fn(encoded)

  # Nearly all are JPEGs: their way is short, since in a data set of one element
  # (`graph.or_else`) every op costs ten times what it costs elsewhere.
  crop, is_good = tf.cond(
    tf.image.is_jpeg(encoded), lambda: attempt(jpeg), lambda: attempt(other)
  )
  return crop, tf.cond(is_good, lambda: tf.constant(GOOD), diagnose)
