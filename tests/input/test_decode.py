"""Tests decoding of good and bad files against Pillow and TensorFlow's full decoder."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny_imagenet

from advprop_jax.input import decode


@pytest.fixture(scope='module')
def decode_crop():
  """Returns (bytes, box) -> (crop, problem), compiled once."""

  @tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)]
  )
  def call(encoded, box):
    return decode.decode_crop(encoded, lambda shape: box)

  return lambda encoded, box: [x.numpy() for x in call(encoded, box)]


def encode(image, suffix, **kwargs):
  buffer = io.BytesIO()
  image.save(buffer, suffix, **kwargs)
  return buffer.getvalue()


def pillow_rgb(encoded):
  return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert('RGB'))


NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize(
  'box', [(0, 0, 120, 160), (17, 3, 50, 101), (119, 159, 1, 1), (0, 40, 9, 120)]
)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_crop_of_a_jpeg_is_that_of_the_whole_image(decode_crop, mode, box):
  encoded = tiny_imagenet.jpeg(120, 160, mode)
  crop, problem = decode_crop(encoded, box)
  top, left, height, width = box
  whole = tf.io.decode_jpeg(encoded, channels=3).numpy()
  expected = whole[top : top + height, left : left + width]
  assert problem == decode.GOOD and crop.shape == expected.shape
  # Colours have half the resolution and are interpolated across the crop's border.
  difference = np.abs(crop.astype(int) - expected.astype(int))
  assert difference.max() <= (16 if mode == 'RGB' else 0)
  assert not difference[1:-1, 1:-1].any()


@pytest.mark.parametrize('mode, tolerance', [('RGB', 6), ('L', 2), ('CMYK', 4)])
def test_every_kind_of_jpeg_has_pillows_colours(decode_crop, mode, tolerance):
  # TensorFlow asks libjpeg for its fast transform, Pillow for the accurate one.
  encoded = tiny_imagenet.jpeg(64, 48, mode)
  crop, _ = decode_crop(encoded, (0, 0, 64, 48))
  difference = np.abs(crop.astype(int) - pillow_rgb(encoded).astype(int))
  assert difference.max() <= tolerance and difference.mean() < 1


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGB', 'RGBA', '1', 'I;16'])
def test_a_png_of_any_name_and_colour_model_is_decoded(decode_crop, mode):
  image = PIL.Image.fromarray(NOISE)
  if mode == 'I;16':  # The upper byte is what counts.
    expected = np.repeat(NOISE[..., :1], 3, axis=-1)
    image = PIL.Image.fromarray(NOISE[..., 0].astype(np.uint16) << 8)
  else:
    image = image.convert(mode)
    expected = np.asarray(image.convert('RGB'))
  crop, problem = decode_crop(encode(image, 'PNG'), (5, 7, 30, 50))
  assert problem == decode.GOOD
  np.testing.assert_array_equal(crop, expected[5:35, 7:57])


@pytest.mark.parametrize(
  'encoded, shape',
  [
    (tiny_imagenet.jpeg(120, 161), (120, 161)),
    (tiny_imagenet.jpeg(33, 70, 'L'), (33, 70)),
    (encode(PIL.Image.new('RGB', (300, 70_000)), 'PNG'), (70_000, 300)),
  ],
)
def test_the_header_tells_the_shape(encoded, shape):
  np.testing.assert_array_equal(decode.image_shape(encoded)[:2], shape)


BAD = {
  'no bytes': b'',
  'one byte': b'\xff',
  'text': b'<html>404 not found</html>',
  'the start of a JPEG': b'\xff\xd8\xff\xe0',
  'half a JPEG': tiny_imagenet.truncated_jpeg(),
  'a JPEG without tables': tiny_imagenet.corrupt_jpeg(),
  'half a PNG': tiny_imagenet.png()[:3000],
  'the start of a PNG': tiny_imagenet.png()[:20],
  'the signature of a PNG': tiny_imagenet.png()[:8],
  'a GIF': tiny_imagenet.gif(),
  'the start of a GIF': tiny_imagenet.gif()[:9],
  'a BMP': encode(PIL.Image.fromarray(NOISE), 'BMP'),
}


@pytest.mark.parametrize('kind', BAD)
def test_what_cannot_be_decoded_is_a_black_pixel_and_a_problem(
  decode_crop, kind, capfd
):
  crop, problem = decode_crop(BAD[kind], (0, 0, 120, 160))
  assert 'Traceback' not in capfd.readouterr().err
  said = 'is a GIF: convert it to PNG or JPEG' if 'GIF' in kind else 'cannot be decoded'
  assert decode.PROBLEMS[problem] == said
  np.testing.assert_array_equal(crop, np.zeros([1, 1, 3]))


@pytest.mark.parametrize('kind', BAD)
def test_without_a_guard_the_same_is_an_error(kind, capfd):
  box = tf.constant([0, 0, 120, 160])
  crops = tf.data.Dataset.from_tensors(BAD[kind]).map(
    lambda encoded: decode.decode_crop(encoded, lambda _: box, guard=False)
  )
  with pytest.raises(tf.errors.InvalidArgumentError):
    crops.get_single_element()
  assert 'Traceback' not in capfd.readouterr().err


def test_a_box_that_leaves_the_image_is_a_problem(decode_crop):
  assert decode_crop(tiny_imagenet.png(), (100, 0, 40, 60))[1] == decode.UNREADABLE


def test_half_a_jpeg_is_good_for_a_crop_above_the_break(decode_crop):
  crop, problem = decode_crop(tiny_imagenet.truncated_jpeg(), (0, 0, 8, 160))
  assert problem == decode.GOOD
  whole = tf.io.decode_jpeg(tiny_imagenet.jpeg(120, 160), channels=3)
  np.testing.assert_array_equal(crop, whole[:8])


def png_header(height, width):
  """The start of a PNG that says how large it would be; there is nothing to decode."""
  size = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
  return b'\x89PNG\r\n\x1a\n' + (13).to_bytes(4, 'big') + b'IHDR' + size + bytes(9)


@pytest.mark.parametrize(
  'encoded',
  [
    tiny_imagenet.huge_jpeg(),
    png_header(10_000, 10_000),
    png_header(2**31 - 1, 2**31 - 1),
  ],
)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
  decode_crop, encoded
):
  crop, problem = decode_crop(encoded, (0, 0, 9_000, 9_000))
  assert decode.PROBLEMS[problem] == 'has more than 89,478,485 pixels'
  assert crop.shape == (1, 1, 3)


def test_the_limit_is_pillows():
  assert decode.MAX_PIXELS == PIL.Image.MAX_IMAGE_PIXELS
