"""What the first bytes of an image file say: its format and its shape, as ops.

A file is what its bytes say, whatever it is called: ImageNet holds a PNG named .JPEG.
The ops are few, since every stream of images builds them anew.

Source of every offset: the specifications of the formats (PNG; BMP: BITMAPINFOHEADER;
WebP: RFC 9649).
"""

import numpy as np
import tensorflow as tf

# What is not read: its name, and the bytes at a place that tell it. Of the last two,
# formats that are otherwise read, `other` looks at more of the header.
OTHERS = (
  ('a GIF', 0, b'GIF8'),
  ('a TIFF', 0, b'II*\0'),
  ('a TIFF', 0, b'MM\0*'),
  ('a HEIC or AVIF', 4, b'ftyp'),
  ('a BMP with a palette, or compressed', 0, b'BM'),
  ('an animated WebP', 8, b'WEBPVP8X'),
)
_GREYS = b''.join(bytes([i, i, i, 0]) for i in range(256))  # A BMP's palette of them.


def is_png(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a file is a PNG, a bool scalar."""
  return tf.equal(tf.strings.substr(encoded, 0, 4), b'\x89PNG')


def is_bmp(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a file is a BMP, a bool scalar."""
  return tf.equal(tf.strings.substr(encoded, 0, 2), b'BM')


def webp_has_exif(encoded: tf.Tensor) -> tf.Tensor:
  """Returns whether a WebP's header says that there is EXIF, a bool scalar."""
  is_extended = tf.equal(_bytes(encoded, 8, 8), b'WEBPVP8X')
  flags = tf.io.decode_raw(_bytes(encoded, 20, 1), tf.uint8)[0]
  return is_extended & (flags & 8 > 0)


def other(encoded: tf.Tensor) -> tf.Tensor:
  """Returns which of OTHERS a file is, int32 scalar; -1 if it is none of them."""
  _, places, words = zip(*OTHERS, strict=True)
  head = tf.strings.substr(encoded, 0, 32) + bytes(32)  # No place is behind its end.
  found = tf.strings.substr(
    tf.broadcast_to(head, [len(words)]), places, [len(word) for word in words]
  )
  pixels_at, planes, flags = _numbers(head, (10, 4), (26, 2), (20, 1))
  # Not of a file that is cut off, or of a text that begins with BM.
  is_whole = (pixels_at >= 54) & (pixels_at <= tf.strings.length(encoded))
  is_certain = tf.stack(
    [True] * (len(words) - 2) + [is_whole & (planes == 1), flags & 2 > 0]
  )
  is_it = tf.equal(found, words) & is_certain
  return tf.reduce_max(tf.where(is_it, range(len(words)), -1))


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
      lambda: bmp_or_webp_shape(encoded),
    ),
  )


def png_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns the shape of a PNG; see `shape`."""
  is_whole = is_png(encoded) & (tf.strings.length(encoded) >= 24)
  with tf.control_dependencies([tf.Assert(is_whole, ['no PNG'])]):
    words = tf.io.decode_raw(
      tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False
    )
    return tf.stack([words[1], words[0], 3])


def bmp_or_webp_shape(encoded: tf.Tensor) -> tf.Tensor:
  """Returns the shape of a BMP, or else of a WebP; see `shape`."""
  return tf.cond(
    is_bmp(encoded), lambda: _bmp_shape(encoded), lambda: _webp_shape(encoded)
  )


def _bmp_shape(encoded):
  """Returns the shape of a BMP of true colours, or of all 256 greys.

  TensorFlow's op takes the indices of any palette for greys.
  """
  header, width, height, bits, compression = _numbers(
    encoded, (14, 4), (18, 4), (22, 4), (28, 2), (30, 4)
  )
  is_grey = tf.equal(_bytes(encoded, 54, len(_GREYS)), _GREYS)
  is_colour = ((bits == 24) | (bits == 32)) & (header >= 40)
  readable = is_colour | ((bits == 8) & (header == 40) & is_grey)
  assertion = tf.Assert(readable & (compression == 0), ['palette or compression'])
  with tf.control_dependencies([assertion]):
    return tf.stack([tf.abs(height), width, 3])  # Below 0: from top to bottom.


def _webp_shape(encoded):
  """Returns the shape of a WebP of one image."""
  width, height, both, width_less_1, height_less_1, flags = _numbers(
    encoded, (26, 2), (28, 2), (21, 4), (24, 3), (27, 3), (20, 1)
  )
  kind = _bytes(encoded, 8, 8)
  is_lossy, is_lossless, is_extended = tf.unstack(
    tf.equal(kind, [b'WEBPVP8 ', b'WEBPVP8L', b'WEBPVP8X'])
  )
  is_animated = flags & 2 > 0
  readable = is_lossy | is_lossless | (is_extended & ~is_animated)
  with tf.control_dependencies([tf.Assert(readable, ['no WebP of one image'])]):
    lossy = tf.stack([height, width, 3]) & 0x3FFF
    lossless = tf.stack([tf.bitwise.right_shift(both, 14), both, 2]) & 0x3FFF
    extended = tf.stack([height_less_1, width_less_1, 2])
    return tf.where(is_lossy, lossy, tf.where(is_lossless, lossless, extended) + 1)


def _bytes(encoded, place: int, size: int):
  """Returns bytes at a place; of a file that ends before it, zeros."""
  # `substr` alone would raise, with the bytes of the file in its message.
  head = tf.strings.substr(encoded, 0, place + size) + bytes(place + size)
  return tf.strings.substr(head, place, size)


def _numbers(encoded, *fields: tuple[int, int]):
  """Returns integers of a header, stored least byte first: (place, bytes) of each."""
  num_bytes = max(place + size for place, size in fields)
  weights = np.zeros([len(fields), num_bytes], np.int64)
  for row, (place, size) in zip(weights, fields, strict=True):
    row[place : place + size] = 256 ** np.arange(size)
  digits = tf.io.decode_raw(tf.strings.substr(encoded, 0, num_bytes), tf.uint8)
  digits = tf.cast(tf.ensure_shape(digits, [num_bytes]), tf.int64)
  numbers = tf.reduce_sum(digits * weights, axis=1)
  return tf.unstack(tf.bitcast(numbers, tf.int32)[:, 0])  # With their sign.
