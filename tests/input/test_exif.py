"""Tests that images are turned as Pillow turns them, and that damage turns nothing."""

import io
import random
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from advprop_jax.input import decode, exif

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
# What a camera writes beside the orientation; in some the thumbnail has one of its own.
MAKE, DATE = 0x010F, 0x0132


def encode(orientation, suffix='PNG', byte_order=None, **options):
  tags = PIL.Image.Exif()
  tags[MAKE], tags[DATE] = 'a camera', '2026:11:28 10:00:00'
  if orientation is not None:
    tags[exif.TAG] = orientation
  if byte_order:
    tags.endian = byte_order
  # Blocks of one colour, which JPEG keeps.
  image = PIL.Image.fromarray(NOISE.repeat(16, 0).repeat(16, 1))
  buffer = io.BytesIO()
  image.save(buffer, suffix, exif=tags.tobytes(), **options)
  return buffer.getvalue()


def seen(encoded):
  """Returns the image as a viewer shows it, by Pillow."""
  image = PIL.Image.open(io.BytesIO(encoded))
  return np.asarray(PIL.ImageOps.exif_transpose(image).convert('RGB'))


@pytest.fixture(scope='module')
def decode_crop():
  @tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)]
  )
  def call(encoded, box):
    return decode.decode_crop(
      encoded, lambda shape: box, max_megapixels=1.0, exif_orientation=True
    )

  return lambda encoded, box: [x.numpy() for x in call(encoded, box)]


orientation = tf.function(
  exif.orientation, input_signature=[tf.TensorSpec([], tf.string)]
)


@pytest.mark.parametrize('byte_order', ['<', '>'])
@pytest.mark.parametrize('suffix', ['PNG', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('value', range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(
  decode_crop, value, suffix, byte_order
):
  options = {'lossless': True} if suffix == 'WEBP' else {}
  encoded = encode(value, suffix, byte_order, **options)
  assert orientation(encoded) == value
  expected = seen(encoded)
  top, left, height, width = box = (32, 16, 240, 304)  # Whole blocks of JPEG.
  crop, problem = decode_crop(encoded, box)
  assert problem == decode.GOOD
  difference = np.abs(
    crop.astype(int) - expected[top : top + height, left : left + width].astype(int)
  )
  # TensorFlow asks libjpeg for another transform, and interpolates colours otherwise.
  assert np.median(difference) <= 2 if suffix == 'JPEG' else not difference.any()


@pytest.mark.parametrize('turn', [False, True])
def test_the_box_is_chosen_in_the_image_as_it_is_seen(turn):
  encoded = encode(6)
  crop, _ = decode.decode_crop(
    tf.constant(encoded),
    lambda shape: tf.concat([[0, 0], shape[:2]], 0),
    max_megapixels=1.0,
    exif_orientation=turn,
  )
  stored = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
  np.testing.assert_array_equal(crop, seen(encoded) if turn else stored)


@pytest.mark.parametrize('value', [None, 0, 9, 65535])
def test_an_unknown_orientation_turns_nothing(value):
  assert orientation(encode(value, 'JPEG')) == 1


def test_files_without_an_entry_turn_nothing():
  for suffix in ('PNG', 'JPEG', 'WEBP', 'BMP'):
    buffer = io.BytesIO()
    PIL.Image.fromarray(NOISE).save(buffer, suffix)
    assert orientation(buffer.getvalue()) == 1
  for encoded in (b'', b'Exif', b'\xff\xd8\xffExif\0\0', b'\x89PNGeXIf'):
    assert orientation(encoded) == 1


def test_the_orientation_of_a_thumbnail_is_not_the_images():
  encoded, other = encode(6, 'JPEG'), encode(3, 'JPEG')
  entry = other[other.index(b'Exif') :][:200]
  thumbnail = b'\xff\xe1' + (len(entry) + 2).to_bytes(2, 'big') + entry
  start = encoded.index(b'\xff\xdb')  # Behind the entry of the image.
  assert orientation(encoded[:start] + thumbnail + encoded[start:]) == 6


def png_chunk(kind, content):
  body = kind + content
  return len(content).to_bytes(4, 'big') + body + zlib.crc32(body).to_bytes(4, 'big')


def moved_behind_the_pixels(png):
  start = png.index(b'eXIf') - 4
  end = start + 12 + int.from_bytes(png[start : start + 4], 'big')
  return png[:start] + png[end:-12] + png[start:end] + png[-12:]


# What may stand before the entry: texts and profiles with its word, and much of both.
PROFILE = b'Exif\0\0 eXIf EXIF' + bytes(50_000)
BEHIND = {
  'pixels': moved_behind_the_pixels(encode(6)),
  'a profile in a PNG': encode(6, icc_profile=random.Random(0).randbytes(50_000)),
  'a text in a PNG': encode(6)[:33] + png_chunk(b'tEXt', b'a\0eXIf') + encode(6)[33:],
  'a profile in a JPEG': (
    encode(6, 'JPEG')[:2]
    + b'\xff\xe2'
    + (len(PROFILE) + 2).to_bytes(2, 'big')
    + PROFILE
    + encode(6, 'JPEG')[2:]
  ),
  'a profile in a WebP': encode(6, 'WEBP', icc_profile=PROFILE),
}


@pytest.mark.parametrize('what', BEHIND)
def test_the_entry_is_found_behind(what):
  assert PIL.Image.open(io.BytesIO(BEHIND[what])).getexif()[exif.TAG] == 6
  assert orientation(BEHIND[what]) == 6


def test_a_text_that_follows_the_entry_of_a_webp_is_none():
  encoded = encode(6, 'WEBP', xmp=b'<x:xmpmeta>EXIF and eXIf</x:xmpmeta>')
  assert encoded.rindex(b'EXIF') > encoded.index(b'EXIF')
  assert orientation(encoded) == 6


@pytest.mark.parametrize('byte_order', ['little', 'big'])
def test_the_orientation_may_be_a_long(byte_order):
  encoded = encode(6, 'JPEG', {'little': '<', 'big': '>'}[byte_order])
  row, long_row = (
    b''.join(
      number.to_bytes(size, byte_order)
      for number, size in zip(
        [exif.TAG, kind, 1, 6], [2, 2, 4, value_bytes], strict=True
      )
    )
    for kind, value_bytes in [(exif.SHORT, 2), (exif.LONG, 4)]
  )
  start = encoded.index(row)
  changed = encoded[:start] + long_row + encoded[start + len(long_row) :]
  assert PIL.Image.open(io.BytesIO(changed)).getexif()[exif.TAG] == 6
  assert orientation(changed) == 6


@pytest.mark.parametrize('suffix', ['PNG', 'JPEG', 'WEBP'])
def test_damage_of_the_entry_is_no_error(suffix):
  """Cut off anywhere, it says nothing until it is whole; any byte may be wrong."""
  encoded = encode(6, suffix, '<')
  word = {'PNG': b'eXIf', 'JPEG': b'Exif', 'WEBP': b'EXIF'}[suffix]
  start = encoded.rindex(word)
  whole = encoded.index(exif.TAG.to_bytes(2, 'little'), start) + exif.ENTRY_BYTES
  found = [
    int(orientation(encoded[:length]))
    for length in range(start, min(start + 90, len(encoded)))
  ]
  # The value is in the first of the last four bytes.
  num_before = whole - 3 - start
  assert found == [1] * num_before + [6] * (len(found) - num_before)
  rng = np.random.default_rng(0)
  for place in range(start, min(start + 90, len(encoded))):
    wrong = bytearray(encoded)
    wrong[place] = rng.integers(256)
    assert orientation(bytes(wrong)) in range(1, 9)
