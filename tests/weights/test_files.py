"""Tests image files read by Pillow against TensorFlow's decoders."""

import io
import pathlib

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tiny_imagenet
from PIL import Image

from advprop_jax import errors
from advprop_jax.weights import files

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
RGB = Image.fromarray(NOISE)
PHOTOGRAPHS = pathlib.Path(sklearn.datasets.__file__).parent / 'images'


def encode(image, suffix='PNG', **options):
  buffer = io.BytesIO()
  image.save(buffer, suffix, **options)
  return buffer.getvalue()


def read(tmp_path, encoded, *, exif_orientation=True):
  (tmp_path / 'image').write_bytes(encoded)
  return files.read(str(tmp_path / 'image'), exif_orientation=exif_orientation)


def decode_png(encoded):
  return tf.io.decode_png(encoded, channels=3)


PALETTE = RGB.quantize(16)
GREY_16 = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257 + 3)


@pytest.mark.parametrize(
  'encoded, decode',
  [
    *((encode(RGB.convert(x)), decode_png) for x in ('L', 'LA', 'RGB', 'RGBA', '1')),
    (encode(PALETTE), decode_png),
    (encode(PALETTE, transparency=bytes(range(16))), decode_png),
    (encode(RGB, transparency=(1, 2, 3)), decode_png),
    (encode(GREY_16), decode_png),
    (encode(RGB, 'BMP'), tf.io.decode_bmp),
    (encode(RGB, 'WEBP', quality=80), lambda x: tf.io.decode_webp(x)[0]),
    *((tiny_imagenet.jpeg(64, 48, x), None) for x in ('RGB', 'L')),
  ],
)
def test_files_have_the_bytes_that_tensorflow_decodes(tmp_path, encoded, decode):
  if decode is None:
    expected = tf.io.decode_jpeg(encoded, channels=3, dct_method='INTEGER_ACCURATE')
  else:
    expected = decode(encoded)
  pixels = read(tmp_path, encoded)
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize('name', ['china.jpg', 'flower.jpg'])
def test_photographs_differ_from_those_of_training_by_one_level(name):
  encoded = (PHOTOGRAPHS / name).read_bytes()
  pixels = files.read(str(PHOTOGRAPHS / name), exif_orientation=True).astype(int)
  decoded = tf.io.decode_jpeg(encoded, channels=3).numpy()
  difference = np.abs(pixels - decoded.astype(int))
  assert difference.max() <= 18 and 0.9 < difference.mean() < 1.4


@pytest.mark.parametrize('turned', [True, False])
def test_images_are_turned_if_they_are_to_be(tmp_path, turned):
  entry = Image.Exif()
  entry[0x0112] = 6  # Stored as it is seen after a quarter turn to the left.
  encoded = encode(RGB, exif=entry.tobytes())
  expected = np.rot90(NOISE, -1) if turned else NOISE
  np.testing.assert_array_equal(
    read(tmp_path, encoded, exif_orientation=turned), expected
  )
  damaged = encode(RGB, exif=b'Exif\0\0II*\0\xff\xff')
  np.testing.assert_array_equal(read(tmp_path, damaged), NOISE)


@pytest.mark.parametrize(
  'encoded',
  [
    *(b'', b'no image', encode(RGB)[:500], encode(RGB).replace(b'IDAT', b'IDAX')),
    *(tiny_imagenet.gif(), tiny_imagenet.jpeg(64, 48, 'RGB')[:700]),
  ],
)
def test_what_cannot_be_read_is_one_line_with_its_path(tmp_path, encoded):
  with pytest.raises(errors.UserError, match=f'image {tmp_path}/image: .*allowed') as e:
    read(tmp_path, encoded)
  assert '\n' not in str(e.value)


def test_folders_are_searched_for_images(tmp_path):
  for name in ('b.JPG', 'a/z.png', 'a/c/x.webp', 'a/notes.txt', '.b.jpg', '.d/e.jpg'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  found = files.find([tmp_path, 'other.gif'])
  expected = [tmp_path / 'a/c/x.webp', tmp_path / 'a/z.png', tmp_path / 'b.JPG']
  assert found == [*map(str, expected), 'other.gif']
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match='/empty has no images; allowed: .*.jpg'):
    files.find([tmp_path, tmp_path / 'empty'])
