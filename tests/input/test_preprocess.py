"""Tests crops, flip and resize against TensorFlow 1's ops, closed forms and Pillow."""

import image_recipe
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from advprop_jax import errors
from advprop_jax.input import preprocess

v1 = tf.compat.v1


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def random_boxes(height, width, *, num_seeds=1000, **kwargs):
  """Returns `num_seeds` boxes as columns: top, left, height, width."""

  @tf.function
  def draw(seeds):
    return tf.map_fn(
      lambda seed: preprocess.random_crop_box(
        tf.constant([height, width, 3]), seed, image_size=224, **kwargs
      ),
      seeds,
      fn_output_signature=tf.int32,
    )

  seeds = tf.stack([tf.range(num_seeds), tf.range(num_seeds)], axis=1)
  return draw(seeds).numpy().T


# Crops.


@pytest.mark.parametrize('area_range', [(0.08, 1.0), (0.5, 0.6)])
def test_random_crops_keep_to_their_area_aspect_and_image(area_range):
  boxes = random_boxes(120, 160, area_range=area_range, crop_padding=0)
  # The fall-back, a square of the whole height, may be larger than the range.
  top, left, height, width = boxes[:, boxes[2] < 120]
  area = height * width / (120 * 160)
  # A side is rounded to whole pixels, of at least 27 here.
  assert np.all(area > area_range[0] * 0.94) and np.all(area < area_range[1] * 1.06)
  assert np.all(width / height > 0.75 * 0.94)
  assert np.all(width / height < 4 / 3 * 1.06)
  assert np.all(top >= 0) and np.all(top + height <= 120)
  assert np.all(left >= 0) and np.all(left + width <= 160)


def test_random_crops_are_distributed_as_those_of_tensorflow_1():
  """With the official arguments; the two draw from different generators."""
  ours = random_boxes(375, 500, area_range=(0.08, 1.0), crop_padding=32)
  with tf.Graph().as_default(), v1.Session() as session:
    op = v1.image.sample_distorted_bounding_box(
      [375, 500, 3],
      bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
      seed=1,
      seed2=2,
      min_object_covered=0.1,
      aspect_ratio_range=(3.0 / 4, 4.0 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    drawn = [session.run(op[:2]) for _ in range(1000)]
  theirs = np.array([(*begin[:2], *size[:2]) for begin, size in drawn]).T
  for a, b in zip(ours, theirs, strict=True):  # Two samples of one distribution:
    values = np.union1d(a, b)  # Kolmogorov and Smirnov's distance, at 0.1 %.
    cdf = [np.searchsorted(np.sort(x), values, side='right') / 1000 for x in (a, b)]
    assert np.abs(cdf[0] - cdf[1]).max() < 1.95 * np.sqrt(2 / 1000)


def test_a_random_crop_is_a_function_of_its_seed():
  boxes = random_boxes(40, 40, area_range=(0.1, 1.0), crop_padding=0)
  again = random_boxes(40, 40, area_range=(0.1, 1.0), crop_padding=0)
  np.testing.assert_array_equal(boxes, again)
  assert len(np.unique(boxes, axis=1).T) > 900


@pytest.mark.parametrize('crop_padding', [0, 32])
def test_where_no_random_crop_fits_the_center_crop_takes_its_place(crop_padding):
  shape = tf.constant([10, 200, 3])  # No rectangle of 90 % of it is nearly square.
  box = preprocess.random_crop_box(
    shape, [1, 2], image_size=16, area_range=(0.9, 1.0), crop_padding=crop_padding
  )
  expected = preprocess.center_crop_box(shape, 16, crop_padding)
  np.testing.assert_array_equal(box, expected)


@pytest.mark.parametrize(
  'shape, image_size, crop_padding, box',
  [
    ((500, 375), 224, 32, (86, 24, 328, 328)),  # int(0.875 * 375)
    ((375, 500), 224, 32, (24, 86, 328, 328)),
    ((333, 640), 240, 32, (20, 174, 293, 293)),  # Offsets are rounded up.
    ((375, 500), 600, 32, (10, 72, 356, 356)),  # int(0.9494 * 375)
    ((100, 61), 32, 0, (20, 0, 61, 61)),
    ((100, 60), 32, 32, (35, 15, 30, 30)),
    ((1, 3), 2, 32, (0, 1, 1, 1)),  # At least one pixel.
  ],
)
def test_the_center_crop_is_the_official_one(shape, image_size, crop_padding, box):
  found = preprocess.center_crop_box(tf.constant([*shape, 3]), image_size, crop_padding)
  np.testing.assert_array_equal(found, box)


# Resizing.


@pytest.mark.parametrize(
  'shape, size', [((83, 59), 64), ((31, 44), 64), ((64, 64), 64), ((7, 9), 224)]
)
def test_resizing_is_tensorflow_1s_by_default(shape, size):
  image = noise(*shape, 3)
  with tf.Graph().as_default(), v1.Session() as session:
    expected = session.run(v1.image.resize_bicubic(image[np.newaxis], [size, size])[0])
  resized = preprocess.resize(tf.constant(image), size, 'bicubic_tf1')
  np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize('n, size', [(40, 17), (17, 40), (375, 224)])
def test_tensorflow_1s_bicubic_in_closed_form(n, size):
  """The cubic with a = -0.75 at the corners of pixels, borders repeated."""

  def cubic(x, a=-0.75):
    x = abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))

  matrix = np.zeros([size, n])
  for i in range(size):
    first, part = divmod(i * n / size, 1)
    part = np.round(part * 1024) / 1024  # TensorFlow tabulates the cubic.
    for tap in range(-1, 3):
      matrix[i, np.clip(int(first) + tap, 0, n - 1)] += cubic(tap - part)
  image = noise(n, n, 3)
  expected = np.einsum('yh,xw,hwc->yxc', matrix, matrix, image, optimize=True)
  resized = preprocess.resize(tf.constant(image), size, 'bicubic_tf1')
  np.testing.assert_allclose(resized, expected, atol=1e-3)


@pytest.mark.parametrize(
  'method, pillow, tolerance',
  [
    # TensorFlow tabulates the cubic at 1024 points, hence the tolerance.
    ('bicubic', PIL.Image.Resampling.BICUBIC, 0.3),
    ('bilinear', PIL.Image.Resampling.BILINEAR, 1e-3),
  ],
)
def test_enlarging_agrees_with_pillow(method, pillow, tolerance):
  # Pillow smooths when it reduces, TensorFlow does not: only enlarging compares.
  image = noise(13, 13, 3)
  enlarged = preprocess.resize(tf.constant(image), 37, method)
  for channel in range(3):
    grey = PIL.Image.fromarray(image[..., channel].astype(np.float32))
    expected = np.asarray(grey.resize((37, 37), pillow))
    np.testing.assert_allclose(enlarged[..., channel], expected, atol=tolerance)


@pytest.mark.parametrize('method', preprocess.RESIZE_METHODS)
def test_an_image_of_the_right_size_passes_unchanged(method):
  image = noise(16, 16, 3)
  same = preprocess.resize(tf.constant(image), 16, method)
  assert same.dtype == tf.float32
  np.testing.assert_array_equal(same, image.astype(np.float32))


# Flip and types.


def test_half_of_the_flips_mirror_the_image():
  image = noise(2, 3, 3)
  flipped = 0
  for seed in range(200):
    result = preprocess.random_flip(image, [seed, 0]).numpy()
    mirrored = (result != image).any()
    flipped += mirrored
    np.testing.assert_array_equal(result, image[:, ::-1] if mirrored else image)
  assert 70 < flipped < 130


VALUES = np.float32([-3.0, 0.0, 0.5, 1.5, 99.49, 99.51, 254.9, 255.0, 300.0])


def test_bytes_for_augmentation_are_cut_off_as_in_the_official_code():
  result = preprocess.to_bytes(tf.constant(VALUES))
  np.testing.assert_array_equal(result, [0, 0, 0, 1, 99, 99, 254, 255, 255])
  assert result.dtype == tf.uint8


def test_finished_bytes_are_rounded_to_the_nearest():
  result = preprocess.to_dtype(tf.constant(VALUES), 'uint8')
  np.testing.assert_array_equal(result, [0, 0, 1, 2, 99, 100, 255, 255, 255])
  assert result.dtype == tf.uint8


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-7), ('bfloat16', 2**-8)])
def test_finished_floats_are_in_pixel_units(dtype, tolerance):
  result = preprocess.to_dtype(tf.constant(VALUES), dtype)
  assert result.dtype == dtype
  expected = np.clip(VALUES, 0, 255) / 255
  np.testing.assert_allclose(tf.cast(result, tf.float32), expected, rtol=tolerance)
  same = preprocess.to_dtype(tf.constant([7, 255], tf.uint8), dtype)
  np.testing.assert_allclose(tf.cast(same, tf.float32), [7 / 255, 1], rtol=tolerance)


@pytest.mark.parametrize(
  'resize_method, image_dtype, message',
  [
    ('cubic', 'uint8', "'cubic'; .*allowed: bicubic, bicubic_tf1, .*bilinear"),
    ('bicubic', 'int8', "'int8'; .*allowed: bfloat16, float32, uint8"),
  ],
)
def test_an_unknown_choice_is_an_error_that_lists_the_known(
  resize_method, image_dtype, message
):
  with pytest.raises(errors.UserError, match=message):
    preprocess.check_options(
      image_recipe.RECIPE._replace(resize_method=resize_method, image_dtype=image_dtype)
    )
