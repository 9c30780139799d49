"""Image preprocessing: crops, flip and resize of one example, as TensorFlow ops.

Units: images arrive decoded, uint8[H, W, C] with C = 1 (grey), 3 (RGB) or 4 (RGBA).
Crops resize to float32[S, S, C], still on the scale 0..255 (bicubic interpolation
may overshoot it); `to_pixel_units` comes last and returns float32[S, S, 3] in [0, 1],
the pixel unit of the whole code base. Mean and standard deviation belong to the model.

Randomness is stateless: every op takes a `seed`, int[2], and draws from nothing else.

Source: tensorflow/tpu `models/official/efficientnet/preprocessing.py`.
"""

import functools

import tensorflow as tf

from advprop_jax import errors

# Name -> fn(image, [height, width]), sampling at pixel centres, no antialiasing.
RESIZE_METHODS = {
  'bicubic': functools.partial(tf.image.resize, method='bicubic'),  # Keys, a = -0.5.
  'bilinear': functools.partial(tf.image.resize, method='bilinear'),
}


def check_resize_method(method: str) -> None:
  """Raises UserError unless `method` is a key of RESIZE_METHODS."""
  errors.check_choice('resize method', method, RESIZE_METHODS)


def random_resized_crop(
  image: tf.Tensor,
  seed: tf.Tensor,
  image_size: int,
  *,
  area_range: tuple[float, float],
  aspect_range: tuple[float, float] = (3 / 4, 4 / 3),
  crop_padding: int,
  method: str = 'bicubic',
) -> tf.Tensor:
  """Resizes a random rectangle of the image to a square.

  A rectangle as large as the image means that none was found that satisfies the
  ranges: the evaluation crop takes its place, as in the official code.

  Args:
    image: decoded image, uint8[H, W, C].
    seed: int[2].
    image_size: side S of the result, in pixels.
    area_range: smallest and largest share of the image's area.
    aspect_range: smallest and largest width / height. Source: official code.
    crop_padding: see `center_crop_and_resize`.
    method: a key of RESIZE_METHODS.

  Returns:
    float32[S, S, C], scale 0..255.
  """
  shape = tf.shape(image)
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),  # The whole image.
    seed=seed,
    min_object_covered=0.1,  # Source, also of max_attempts: official code.
    aspect_ratio_range=aspect_range,
    area_range=area_range,
    max_attempts=10,
  )
  none_found = tf.reduce_all(tf.equal(size[:2], shape[:2]))
  center_begin, center_size = _center_box(shape, image_size, crop_padding)
  begin = tf.where(none_found, center_begin, begin)
  size = tf.where(none_found, center_size, size)
  return _crop_and_resize(image, begin, size, image_size, method)


def center_crop_and_resize(
  image: tf.Tensor, image_size: int, *, crop_padding: int = 32, method: str = 'bicubic'
) -> tf.Tensor:
  """Resizes the central square to `image_size`: the evaluation crop.

  Args:
    image: decoded image, uint8[H, W, C].
    image_size: side S of the result, in pixels.
    crop_padding: pixels of border, after resizing, that are cut away: the side of the
      crop is the S / (S + crop_padding) part of the image's shorter side. 0 keeps the
      largest central square. Source of 32: official code (CROP_PADDING).
    method: a key of RESIZE_METHODS.

  Returns:
    float32[S, S, C], scale 0..255.
  """
  begin, size = _center_box(tf.shape(image), image_size, crop_padding)
  return _crop_and_resize(image, begin, size, image_size, method)


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Mirrors the image left to right with probability 1/2."""
  return tf.image.stateless_random_flip_left_right(image, seed)


def to_pixel_units(image: tf.Tensor) -> tf.Tensor:
  """Maps 0..255, any number of channels, to RGB, float32[H, W, 3] in [0, 1]."""
  channels = image.shape[-1]
  if channels == 1:
    image = tf.image.grayscale_to_rgb(image)
  # A fourth channel is opacity; like the PNG decoder, ignore it.
  image = tf.cast(image[..., :3], tf.float32)
  return tf.clip_by_value(image / 255.0, 0.0, 1.0)


def _center_box(shape: tf.Tensor, image_size: int, crop_padding: int):
  """Returns begin and size, int32[3] each, of the evaluation crop."""
  # In float32, as in the official code: rounding decides about single pixels.
  ratio = tf.constant(image_size / (image_size + crop_padding), tf.float32)
  shorter = tf.cast(tf.reduce_min(shape[:2]), tf.float32)
  side = tf.maximum(tf.cast(ratio * shorter, tf.int32), 1)
  top, left = tf.unstack((shape[:2] - side + 1) // 2)
  return tf.stack([top, left, 0]), tf.stack([side, side, -1])


def _crop_and_resize(image, begin, size, image_size, method):
  channels = image.shape[-1]
  # Cast first: TensorFlow hands an image that has the right size back unchanged.
  crop = tf.cast(tf.slice(image, begin, size), tf.float32)
  crop = RESIZE_METHODS[method](crop, [image_size, image_size])
  return tf.ensure_shape(crop, [image_size, image_size, channels])
