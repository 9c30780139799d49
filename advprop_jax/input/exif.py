"""The orientation that cameras write into a file: which way up its image is.

A crop is chosen in the image as it is seen, decoded from the image as it is stored, and
turned afterwards, so that of a JPEG no more than the crop is decoded. All as ops: to
ask Pillow for the entry, the threads of tf.data would wait for Python's lock.

Source: the EXIF standard (CIPA DC-008), tag 0x0112 and the TIFF structure around it.
"""

import tensorflow as tf

from advprop_jax.input import formats, graph

TAG, SHORT, LONG = 0x0112, 3, 4
ENTRY_BYTES = 12
# An entry of a JPEG is no longer, nor is what stands before it, except for profiles of
# colours in several parts: behind these it is not looked for.
MAX_ENTRY_BYTES = 1 << 16
# Of Intel's and of Motorola's byte order; in some WebPs with the word of JPEGs before.
BEGINS = (b'II*\0', b'MM\0*', b'Exif')


def orientation(encoded: tf.Tensor) -> tf.Tensor:
  """Returns how an image is stored, int32 scalar from 1 to 8.

  1 is as it is seen, and what a file without an entry, or with a damaged one, has; so
  has a JPEG whose entry comes after 128 KB of other parts.

  Args:
    encoded: the file's bytes, a scalar string; of a JPEG, PNG or WebP.
  """
  return tf.cond(
    tf.image.is_jpeg(encoded),
    lambda: _find(tf.strings.substr(encoded, 0, 2 * MAX_ENTRY_BYTES), b'Exif\0\0'),
    lambda: tf.cond(
      formats.is_png(encoded),
      lambda: _find(encoded, b'eXIf'),
      graph.rare(_find_in_webp, encoded),
    ),
  )


def stored_box(box_fn, shape: tf.Tensor, *, turned: tf.Tensor) -> tf.Tensor:
  """Returns where a rectangle of the image as it is seen is stored, int32 [4].

  Args:
    box_fn: the shape of the image as it is seen, int32 [3], to the rectangle: top,
      left, height and width, int32 [4].
    shape: of the image as it is stored, int32 [3].
    turned: see `orientation`.
  """
  lies = turned >= 5
  box = box_fn(tf.where(lies, tf.gather(shape, [1, 0, 2]), shape))
  top, left, height, width = tf.unstack(
    tf.where(lies, tf.gather(box, [1, 0, 3, 2]), box)
  )
  upside_down, mirrored = _flips(turned)
  top = tf.where(upside_down, shape[0] - top - height, top)
  left = tf.where(mirrored, shape[1] - left - width, left)
  return tf.stack([top, left, height, width])


def turn(crop: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
  """Returns a crop as it is seen, uint8 [height, width, 3]; see `orientation`."""
  upside_down, mirrored = _flips(turned)
  rows, columns = (tf.where(x, -1, 1) for x in (upside_down, mirrored))
  crop = crop[::rows, ::columns]
  return tf.cond(turned >= 5, lambda: tf.transpose(crop, [1, 0, 2]), lambda: crop)


def _flips(turned):
  """Returns whether the rows and the columns are stored in reverse, bool scalars."""
  upside_down = tf.reduce_any(turned == tf.constant([3, 4, 6, 7]))
  mirrored = tf.reduce_any(turned == tf.constant([2, 3, 7, 8]))
  return upside_down, mirrored


def _find(encoded, word: bytes, *, skip: int = 0):
  """Returns the orientation that an entry says, 1 if there is none.

  An entry is found by the word before it, and some bytes to skip. The word may also
  stand in texts, profiles and pixels, so what follows must begin as an entry does.
  """
  # `split` is the op that finds a word in bytes.
  pieces = tf.strings.split([encoded], word).values

  def read():
    starts = tf.cumsum(tf.strings.length(pieces) + len(word))[:-1] + skip
    padded = pieces[1:] + bytes(skip + 4)  # No place is behind the end.
    begins = tf.strings.substr(padded, skip, 4)
    is_entry = tf.reduce_any(tf.equal(begins[:, tf.newaxis], BEGINS), axis=1)
    start = tf.boolean_mask(starts, is_entry)
    # If there is none, the end of the file.
    start = tf.concat([start, [tf.strings.length(encoded)]], 0)[0]
    return _read(tf.strings.substr(encoded, start, MAX_ENTRY_BYTES))

  return tf.cond(tf.size(pieces) > 1, graph.rare(read), lambda: tf.constant(1))


def _find_in_webp(encoded):
  """Returns the orientation that a WebP says, 1 if it says none."""
  # Behind the word comes the length of the chunk.
  return tf.cond(
    formats.webp_has_exif(encoded),
    lambda: _find(encoded, b'EXIF', skip=4),
    lambda: tf.constant(1),
  )


def _read(entries):
  """Returns the orientation in the bytes of a TIFF structure, 1 if there is none."""
  # Some programs repeat the word of JPEGs in a WebP.
  prefix = b'Exif\0\0'
  repeated = tf.equal(tf.strings.substr(entries, 0, len(prefix)), prefix)
  entries = tf.strings.substr(entries, tf.where(repeated, len(prefix), 0), -1)
  # Zeros behind the end: what is cut off has no entry, and is no error.
  data = tf.cast(tf.io.decode_raw(entries, tf.uint8), tf.int32)
  data = tf.pad(data, [[0, ENTRY_BYTES]])
  least_first = data[0] == ord('I')  # 'II' for Intel, 'MM' for Motorola.

  def short(first, second):
    return tf.where(least_first, first + 256 * second, 256 * first + second)

  is_near = tf.where(least_first, data[6] + data[7], data[4] + data[5]) == 0
  place = tf.where(least_first, short(data[4], data[5]), short(data[6], data[7]))
  place = tf.minimum(place, tf.size(data) - 2)
  count = tf.where(is_near, short(data[place], data[place + 1]), 0)
  rows = data[place + 2 : place + 2 + ENTRY_BYTES * count]
  rows = tf.reshape(
    rows[: tf.size(rows) // ENTRY_BYTES * ENTRY_BYTES], [-1, ENTRY_BYTES]
  )
  kind = short(rows[:, 2], rows[:, 3])
  # Of four bytes the lower two, which 'MM' stores last.
  is_last = (kind == LONG) & ~least_first
  value = tf.where(
    is_last, short(rows[:, 10], rows[:, 11]), short(rows[:, 8], rows[:, 9])
  )
  is_it = (short(rows[:, 0], rows[:, 1]) == TAG) & ((kind == SHORT) | (kind == LONG))
  value = tf.reduce_max(tf.where(is_it, value, 1))
  return tf.where((value >= 1) & (value <= 8), value, 1)
