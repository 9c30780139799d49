"""What the first bytes of an image file say: its format and its shape, as ops.

A file is what its bytes say, whatever it is called: ImageNet holds a PNG named .JPEG.

Source of every offset: the specifications of the formats (PNG; BMP: BITMAPINFOHEADER;
WebP: RFC 9649).
"""

import tensorflow as tf

# What is not read: its name, and the bytes at a place that tell it. The last two are
# of formats that are read: they stand for what could not be.
OTHERS = (
  ('a GIF', 0, b'GIF8'),
  ('a TIFF', 0, b'II*\0'),
  ('a TIFF', 0, b'MM\0*'),
  ('a HEIC or AVIF', 4, b'ftyp'),
  ('a BMP with a palette, or compressed', 0, b'BM'),
  ('an animated WebP', 8, b'WEBPVP8X'),
)

_GREYS = b''.join(bytes([i, i, i, 0]) for i in range(256))  # A BMP's palette of them.


def has(encoded: tf.Tensor, place: int, expected: bytes) -> tf.Tensor:
  """Returns whether a file has these bytes at a place, a bool scalar."""
  # `substr` raises if the file ends before the place.
  place = tf.minimum(place, tf.strings.length(encoded))
  return tf.equal(tf.strings.substr(encoded, place, len(expected)), expected)


def is_png(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a file is a PNG, a bool scalar."""
  return has(encoded, 0, b'\x89PNG')


def is_bmp(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a file is a BMP, a bool scalar."""
  return has(encoded, 0, b'BM')


def shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns height, width and 3, int32 [3], from the header alone.

  Raises:
    tf.errors.InvalidArgumentError: it is in no format that is read.
  """
  return tf.cond(
    tf.image.is_jpeg(encoded),
    lambda: tf.concat([tf.io.extract_jpeg_shape(encoded)[:2], [3]], 0),
    lambda: tf.cond(
      is_png(encoded),
      lambda: png_shape(encoded),
      lambda: tf.cond(
        is_bmp(encoded), lambda: bmp_shape(encoded), lambda: webp_shape(encoded)
      ),
    ),
  )


def png_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns the shape of a PNG; see `shape`."""
  with _required(is_png(encoded) & (tf.strings.length(encoded) >= 24), 'no PNG'):
    words = tf.io.decode_raw(
      tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False
    )
    return tf.stack([words[1], words[0], 3])


def bmp_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns the shape of a BMP of true colours, or of all 256 greys; see `shape`.

  TensorFlow's op takes the indices of any palette for greys.
  """
  with _required(is_bmp(encoded) & (tf.strings.length(encoded) >= 54), 'no BMP'):
    header, width, height = (_little(encoded, place, 4) for place in (14, 18, 22))
    bits, compression = _little(encoded, 28, 2), _little(encoded, 30, 4)
    true_colour = (bits == 24) | (bits == 32)
    greys = has(encoded, 54, _GREYS)
    readable = true_colour | ((bits == 8) & (header == 40) & greys)
    with _required(readable & (compression == 0), 'a palette, or compressed'):
      return tf.stack([tf.abs(height), width, 3])  # Below 0: from top to bottom.


def webp_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns the shape of a WebP of one image; see `shape`."""
  with _required(tf.strings.length(encoded) >= 30, 'no image'):
    word = _little(encoded, 21, 4)
    height = tf.bitwise.right_shift(word, 14)
    lossless = tf.stack([(height & 0x3FFF) + 1, (word & 0x3FFF) + 1])
    lossy = tf.stack(
      [_little(encoded, 28, 2) & 0x3FFF, _little(encoded, 26, 2) & 0x3FFF]
    )
    extended = tf.stack([_little(encoded, 27, 3) + 1, _little(encoded, 24, 3) + 1])
    is_animated = _little(encoded, 20, 1) & 2 > 0
    is_lossy, is_lossless, is_extended = (
      has(encoded, 8, b'WEBP' + kind) for kind in (b'VP8 ', b'VP8L', b'VP8X')
    )
  readable = is_lossy | is_lossless | (is_extended & ~is_animated)
  with _required(has(encoded, 0, b'RIFF') & readable, 'no image that is read'):
    size = tf.where(is_lossy, lossy, tf.where(is_lossless, lossless, extended))
    return tf.concat([size, [3]], 0)


def _little(encoded, place: int, num_bytes: int):
  """Returns an integer of a file, least byte first, int32."""
  digits = tf.io.decode_raw(tf.strings.substr(encoded, place, num_bytes), tf.uint8)
  digits = tf.ensure_shape(tf.cast(digits, tf.int32), [num_bytes])
  return tf.reduce_sum(tf.bitwise.left_shift(digits, [8 * i for i in range(num_bytes)]))


def _required(condition, message: str):
  return tf.control_dependencies([tf.Assert(condition, [message])])
