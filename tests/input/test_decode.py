"""Tests decoding of good and bad files against Pillow and TensorFlow's full decoder."""

import io
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny_imagenet

from advprop_jax.input import decode, preprocess


@pytest.fixture(scope='module')
def decode_crop():
  """Returns (bytes, box) -> (crop, problem), compiled once."""

  @tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)]
  )
  def call(encoded, box):
    return decode.decode_crop(encoded, lambda shape: box, max_megapixels=MEGAPIXELS)

  return lambda encoded, box: [x.numpy() for x in call(encoded, box)]


def encode(image, suffix, **kwargs):
  buffer = io.BytesIO()
  image.save(buffer, suffix, **kwargs)
  return buffer.getvalue()


def pillow_rgb(encoded):
  return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert('RGB'))


MEGAPIXELS = 45.0
PROBLEM = 'has more pixels than data.max_megapixels allows'
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


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA'])
@pytest.mark.parametrize(
  'suffix, options',
  [('BMP', {}), ('WEBP', {'lossless': True}), ('WEBP', {'quality': 80})],
)
def test_other_formats_have_pillows_pixels(decode_crop, mode, suffix, options):
  image = PIL.Image.fromarray(NOISE).convert(mode)
  if mode == 'RGBA':
    image.putalpha(PIL.Image.fromarray(NOISE[..., 0]))
  encoded = encode(image, suffix, **options)
  crop, problem = decode_crop(encoded, (5, 7, 30, 50))
  assert problem == decode.GOOD
  np.testing.assert_array_equal(crop, pillow_rgb(encoded)[5:35, 7:57])


def test_a_bmp_may_be_stored_from_top_to_bottom(decode_crop):
  encoded = bytearray(encode(PIL.Image.fromarray(NOISE), 'BMP'))
  encoded[22:26] = (-40).to_bytes(4, 'little', signed=True)
  crop, problem = decode_crop(bytes(encoded), (0, 0, 40, 60))
  assert problem == decode.GOOD
  np.testing.assert_array_equal(crop, NOISE[::-1])


def animation(suffix):
  frames = [PIL.Image.fromarray(NOISE), PIL.Image.fromarray(NOISE[::-1])]
  return encode(frames[0], suffix, save_all=True, append_images=frames[1:])


OTHERS = [
  ('a GIF', tiny_imagenet.gif(), 'a GIF'),
  ('the start of a GIF', tiny_imagenet.gif()[:9], 'a GIF'),
  ('a TIFF', encode(PIL.Image.fromarray(NOISE), 'TIFF'), 'a TIFF'),
  ('a TIFF of a Mac', b'MM\0*' + bytes(60), 'a TIFF'),
  ('an AVIF', encode(PIL.Image.fromarray(NOISE), 'AVIF'), 'a HEIC or AVIF'),
  ('a HEIC', bytes([0, 0, 0, 24]) + b'ftypheic' + bytes(60), 'a HEIC or AVIF'),
  (
    'a BMP of indices',  # TensorFlow's op would take them for greys.
    encode(PIL.Image.fromarray(NOISE).quantize(256), 'BMP'),
    'a BMP with a palette, or compressed',
  ),
  (
    'a BMP of two colours',
    encode(PIL.Image.fromarray(NOISE).convert('1'), 'BMP'),
    'a BMP with a palette, or compressed',
  ),
  ('an animation', animation('WEBP'), 'an animated WebP'),
]
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
  'a box beyond a BMP': encode(PIL.Image.fromarray(NOISE), 'BMP'),
  'half a BMP': encode(PIL.Image.fromarray(NOISE), 'BMP')[:3000],
  'the start of a BMP': encode(PIL.Image.fromarray(NOISE), 'BMP')[:54],
  'a BMP without its size': encode(PIL.Image.fromarray(NOISE), 'BMP')[:20],
  'text like a BMP': b'BMW made 2.5 million cars in the year of the fair, and more',
  'a BMP of OS/2': b'BM'
  + struct.pack('<IIIIHHHH', 98, 0, 26, 12, 4, 6, 1, 24)
  + bytes(72),
  'half a WebP': encode(PIL.Image.fromarray(NOISE), 'WEBP')[:1000],
  'the start of a WebP': encode(PIL.Image.fromarray(NOISE), 'WEBP')[:20],
  'the start of an extended WebP': b'RIFF' + bytes(4) + b'WEBPVP8X' + bytes(4),
  **{name: encoded for name, encoded, _ in OTHERS},
}
SAID = {name: said for name, _, said in OTHERS}


@pytest.mark.parametrize('kind', BAD)
def test_what_cannot_be_decoded_is_a_black_pixel_and_a_problem(
  decode_crop, kind, capfd
):
  crop, problem = decode_crop(BAD[kind], (0, 0, 120, 160))
  assert 'Traceback' not in capfd.readouterr().err
  said = 'cannot be decoded'
  if kind in SAID:
    said = f'is {SAID[kind]}: convert it to PNG or JPEG'
  assert decode.PROBLEMS[problem] == said
  np.testing.assert_array_equal(crop, np.zeros([1, 1, 3]))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])  # Traced once for all.
def decode_without_guard(encoded):
  box = tf.constant([0, 0, 120, 160])
  return decode.decode_crop(
    encoded, lambda _: box, max_megapixels=MEGAPIXELS, guard=False
  )


@pytest.mark.parametrize('kind', BAD)
def test_without_a_guard_the_same_is_an_error(kind, capfd):
  crops = tf.data.Dataset.from_tensors(BAD[kind]).map(decode_without_guard)
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
    b'BM' + bytes(12) + struct.pack('<IiiHHI', 40, 9000, -9000, 1, 24, 0) + bytes(60),
    b'RIFF' + bytes(4) + b'WEBPVP8X' + bytes(8) + b'\xff\xff\xff' * 2 + bytes(60),
    b'RIFF' + bytes(4) + b'WEBPVP8 ' + bytes(10) + b'\xff\x3f\xff\x3f' + bytes(60),
    b'RIFF' + bytes(4) + b'WEBPVP8L' + bytes(5) + b'\xff\xff\xff\x0f' + bytes(60),
  ],
)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
  decode_crop, encoded
):
  crop, problem = decode_crop(encoded, (0, 0, 9_000, 9_000))
  assert decode.PROBLEMS[problem] == PROBLEM
  assert crop.shape == (1, 1, 3)


@pytest.mark.parametrize('suffix', ['PNG', 'JPEG', 'BMP', 'WEBP'])
def test_the_limit_is_in_millions_of_pixels(suffix):
  encoded = encode(PIL.Image.new('RGB', (100, 50)), suffix)
  for max_megapixels, expected in [
    (0.005, decode.GOOD),
    (0.0049, decode.TOO_LARGE),
    (1e30, decode.GOOD),
  ]:
    _, problem = decode.decode_crop(
      tf.constant(encoded), lambda shape: [0, 0, 8, 8], max_megapixels=max_megapixels
    )
    assert problem == expected


# The pixels and the crop of them; of a progressive JPEG the coefficients, two bytes a
# value, and the crop.
TURNED = b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06' + bytes(7)
BYTES_PER_PIXEL = {
  'png': ('PNG', 'RGB', {}, 6),
  'bmp': ('BMP', 'RGB', {}, 6),
  'turned': ('JPEG', 'RGB', {'exif': TURNED}, 6),
  'progressive': ('JPEG', 'RGB', {'progressive': True, 'subsampling': 0}, 9),
  'cmyk': ('JPEG', 'CMYK', {'progressive': True}, 11),
}


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the memory from /proc')
def test_the_memory_that_decoding_takes_is_as_the_docstring_says(tmp_path):
  """Images of 16 million pixels, with crops of all but a row and a column."""
  for name, (suffix, mode, options, _) in BYTES_PER_PIXEL.items():
    encoded = encode(PIL.Image.new(mode, (4000, 4000)), suffix, **options)
    (tmp_path / name).write_bytes(encoded)
    tiny = encode(PIL.Image.new(mode, (40, 40)), suffix, **options)
    (tmp_path / f'{name}.tiny').write_bytes(tiny)
  code = """
import os, sys, tensorflow as tf
from advprop_jax.input import decode, preprocess
def memory(name):
  lines = open('/proc/self/status').read().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(name))
def image(encoded, method):
  box_fn = lambda shape: tf.concat([[1, 1], shape[:2] - 1], 0)
  crop, problem = decode.decode_crop(
    encoded, box_fn, max_megapixels=16.0, exif_orientation=True
  )
  return preprocess.resize(crop, 224, method), problem
options = tf.data.Options()
options.autotune.enabled = False  # Reads no file ahead.
for i, method in enumerate(preprocess.RESIZE_METHODS):
  paths = sys.argv[1:] if i == 0 else sys.argv[1:3]
  files = tf.data.Dataset.from_tensor_slices(paths).map(tf.io.read_file)
  images = iter(files.map(lambda encoded: image(encoded, method)).with_options(options))
  for path in paths:
    open('/proc/self/clear_refs', 'w').write('5')  # Forget the peak.
    before = memory('VmRSS')
    _, problem = next(images)
    assert problem == 0
    file_bytes = os.path.getsize(path)
    print(path, ((memory('VmHWM') - before) * 1024 - file_bytes) / 16e6)
"""
  names = [f'{name}{end}' for name in BYTES_PER_PIXEL for end in ('.tiny', '')]
  command = [sys.executable, '-c', code, *(str(tmp_path / name) for name in names)]
  done = subprocess.run(command, capture_output=True, text=True)
  lines = done.stdout.splitlines()
  assert len(lines) == len(names) + 2 * (len(preprocess.RESIZE_METHODS) - 1), (
    done.stderr
  )
  for line in lines:
    path, measured = line.split()
    if not path.endswith('.tiny'):
      *_, expected = BYTES_PER_PIXEL[path.rpartition('/')[2]]
      assert abs(float(measured) - expected) < 1, line
