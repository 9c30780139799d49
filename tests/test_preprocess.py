"""Tests crops, flip and resize against closed forms and Pillow."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from advprop_jax import errors, preprocess


def coordinates(height, width):
  """An image that holds its own coordinates: channel 0 the row, channel 1 the column.

  After a crop and a bilinear reduction, pixel i reads begin + (i + 1/2) size / S - 1/2:
  the values tell the crop.
  """
  rows, columns = np.mgrid[:height, :width]
  return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.float32)


def crop_box(resized):
  """Returns [top, left], [height, width] of the crop of `coordinates`."""
  image_size = len(resized)
  first, last = resized[0, 0, :2], resized[-1, -1, :2]
  size = (last - first) * image_size / (image_size - 1)
  return first + 0.5 - size / image_size / 2, size


def random_boxes(image, *, num_seeds=200, image_size=4, **kwargs):
  def crop(seed):
    return preprocess.random_resized_crop(
      image, seed, image_size, method='bilinear', crop_padding=0, **kwargs
    )

  seeds = tf.stack([tf.range(num_seeds), tf.range(num_seeds)], axis=1)
  crops = tf.map_fn(crop, seeds, fn_output_signature=tf.float32).numpy()
  return np.array([crop_box(c) for c in crops])


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('area_range', [(0.08, 1.0), (0.5, 0.6)])
def test_random_crops_keep_to_their_area_aspect_and_image(area_range):
  boxes = random_boxes(coordinates(120, 160), area_range=area_range)
  (top, left), (height, width) = np.moveaxis(boxes, 0, -1)
  area = height * width / (120 * 160)
  # A side is rounded to whole pixels, of at least 27 here.
  assert np.all(area > area_range[0] * 0.94) and np.all(area < area_range[1] * 1.06)
  assert np.all(width / height > 0.75 * 0.94)
  assert np.all(width / height < 4 / 3 * 1.06)
  assert np.all(top > -0.1) and np.all(top + height < 120.1)
  assert np.all(left > -0.1) and np.all(left + width < 160.1)


def test_random_crops_fill_their_ranges():
  boxes = random_boxes(coordinates(120, 160), area_range=(0.1, 0.9))
  area = boxes[:, 1].prod(axis=1) / (120 * 160)
  assert area.min() < 0.2 and area.max() > 0.75
  aspect = boxes[:, 1, 1] / boxes[:, 1, 0]
  assert aspect.min() < 0.8 and aspect.max() > 1.25


def test_a_random_crop_is_a_function_of_its_seed():
  boxes = random_boxes(coordinates(40, 40), area_range=(0.1, 1.0))
  again = random_boxes(coordinates(40, 40), area_range=(0.1, 1.0))
  np.testing.assert_array_equal(boxes, again)
  assert len(np.unique(boxes.reshape(len(boxes), -1), axis=0)) > 150


@pytest.mark.parametrize('crop_padding', [0, 32])
def test_where_no_random_crop_fits_the_center_crop_takes_its_place(crop_padding):
  image = noise(10, 200, 3)  # No rectangle of 90 % of it is nearly square.
  cropped = preprocess.random_resized_crop(
    image, [1, 2], 16, area_range=(0.9, 1.0), crop_padding=crop_padding
  )
  expected = preprocess.center_crop_and_resize(image, 16, crop_padding=crop_padding)
  np.testing.assert_array_equal(cropped, expected)


@pytest.mark.parametrize(
  'shape, image_size, crop_padding, begin, side',
  [
    ((500, 375), 224, 32, (86, 24), 328),  # int(0.875 * 375)
    ((375, 500), 224, 32, (24, 86), 328),
    ((333, 640), 240, 32, (20, 174), 293),  # Offsets are rounded up.
    ((100, 61), 32, 0, (20, 0), 61),
    ((100, 60), 32, 32, (35, 15), 30),
  ],
)
def test_the_center_crop_is_the_official_one(
  shape, image_size, crop_padding, begin, side
):
  # An eighth of size and padding: the same crop, always reduced (see `coordinates`).
  image = coordinates(*shape)
  cropped = preprocess.center_crop_and_resize(
    image, image_size // 8, crop_padding=crop_padding / 8, method='bilinear'
  )
  found_begin, found_size = crop_box(cropped.numpy())
  np.testing.assert_allclose(found_begin, begin, atol=0.01)
  np.testing.assert_allclose(found_size, side, atol=0.01)


def test_an_image_of_the_right_size_passes_unchanged():
  image = noise(16, 16, 3)
  same = preprocess.center_crop_and_resize(image, 16, crop_padding=0)
  assert same.dtype == tf.float32
  np.testing.assert_array_equal(same, image.astype(np.float32))


def test_a_center_crop_keeps_at_least_one_pixel():
  cropped = preprocess.center_crop_and_resize(noise(1, 3, 3), 2, crop_padding=32)
  np.testing.assert_array_equal(cropped, np.broadcast_to(cropped[0, 0], (2, 2, 3)))


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
  image = noise(13, 13, 1)
  enlarged = preprocess.center_crop_and_resize(image, 37, crop_padding=0, method=method)
  grey = PIL.Image.fromarray(image[..., 0].astype(np.float32))
  expected = np.asarray(grey.resize((37, 37), pillow))
  np.testing.assert_allclose(enlarged[..., 0], expected, atol=tolerance)


def test_half_of_the_flips_mirror_the_image():
  image = coordinates(2, 3)
  flipped = 0
  for seed in range(200):
    result = preprocess.random_flip(image, [seed, 0]).numpy()
    mirrored = result[0, 0, 1] == 2
    flipped += mirrored
    np.testing.assert_array_equal(result, image[:, ::-1] if mirrored else image)
  assert 70 < flipped < 130


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_pixel_units_are_rgb_from_zero_to_one(channels):
  image = noise(5, 5, channels)
  image[0, 0], image[0, 1] = 0, 255
  result = preprocess.to_pixel_units(tf.constant(image)).numpy()
  colors = np.broadcast_to(image, (5, 5, 3)) if channels == 1 else image[..., :3]
  np.testing.assert_array_equal(result, colors.astype(np.float32) / np.float32(255))
  assert result.dtype == np.float32


def test_pixel_units_cut_off_what_bicubic_overshoots():
  edge = np.zeros((8, 8, 3), np.uint8)
  edge[:, 4:] = 255
  enlarged = preprocess.center_crop_and_resize(edge, 32, crop_padding=0)
  assert tf.reduce_min(enlarged) < 0 and tf.reduce_max(enlarged) > 255
  units = preprocess.to_pixel_units(enlarged)
  assert tf.reduce_min(units) == 0 and tf.reduce_max(units) == 1


def test_an_unknown_resize_method_is_an_error_that_lists_the_known():
  with pytest.raises(errors.UserError, match="'cubic'; allowed: bicubic, bilinear"):
    preprocess.check_resize_method('cubic')
