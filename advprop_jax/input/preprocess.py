"""Image preprocessing: which part of an image, at which size, as TensorFlow ops.

The order is the official code's: crop, resize, flip, augmentation (`augment.py`). A box
is int32 [4]: top, left, height, width. Crops are uint8 [H, W, 3]; resized they are
float32 [S, S, 3], still on the scale 0..255, which bicubic interpolation may overshoot;
`to_dtype` comes last. Mean and standard deviation belong to the model.

Randomness is stateless: every op takes a `seed`, int [2], and draws from nothing else.

Source: tensorflow/tpu `models/official/efficientnet/preprocessing.py`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from advprop_jax import errors


def _resize_bicubic_tf1(image, size):
  # Half-pixel centres would also change the cubic, from a = -0.75 to -0.5.
  return tf.raw_ops.ResizeBicubic(images=image[tf.newaxis], size=size)[0]


def _resize(method, image, size):
  # Not cast before: as float32 a large image needs four times the memory. The cast is
  # needed, since TensorFlow returns an image that has the right size unchanged.
  return tf.cast(tf.image.resize(image, size, method), tf.float32)


# Name -> fn(image, [height, width]), none with antialiasing.
RESIZE_METHODS: dict[str, Callable[..., tf.Tensor]] = {
  # What the published networks were trained and evaluated with: TensorFlow 1's
  # `tf.image.resize_bicubic`, which samples at pixels' corners; a = -0.75.
  'bicubic_tf1': _resize_bicubic_tf1,
  # At pixels' centres; the cubic of Keys, a = -0.5.
  'bicubic': functools.partial(_resize, 'bicubic'),
  'bilinear': functools.partial(_resize, 'bilinear'),
}

# A batch's key of the images before the augmentation, see `Recipe.plain_image`.
PLAIN_IMAGE = 'plain_image'
IMAGE_DTYPES = ('uint8', 'bfloat16', 'float32')


class Recipe(NamedTuple):
  """How a file becomes an image to train on or to evaluate."""

  image_size: int  # Side S of the images, in pixels.
  crop_padding: int  # Of evaluation, see `center_crop_box`.
  resize_method: str  # A key of RESIZE_METHODS.
  image_dtype: str  # One of IMAGE_DTYPES.
  max_megapixels: float  # Of the file; see `decode.decode_crop`.
  exif_orientation: bool  # Turn the image as its camera says; see `exif.py`.
  # Of training alone:
  crop_area: tuple[float, float]  # Smallest and largest share of the area of a crop.
  flip: bool  # Mirror half of the images.
  # (uint8 [S, S, 3], seed) -> uint8 [S, S, 3], after crop and flip; None: none.
  augment_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None
  plain_image: bool  # Keep the image before the augmentation as well.
  # Of evaluation alone:
  border: int = 0  # Pixels to cut off on each side, before the crop.
  resize: bool = True  # False: a crop that is not S x S is a bad image.


def random_crop_box(
  shape: tf.Tensor,
  seed: tf.Tensor,
  *,
  image_size: int,
  area_range: tuple[float, float],
  crop_padding: int,
) -> tf.Tensor:
  """Returns the box of a random rectangle of the image.

  A rectangle as large as the image means that none was found that satisfies the
  ranges: the evaluation crop takes its place, as in the official code (there, not for
  JPEGs that are grey or CMYK: it compares the number of channels, too).

  Args:
    shape: of the image, int32 [3].
    seed: int [2].
    image_size: side S that the crop will be resized to, in pixels.
    area_range: smallest and largest share of the image's area.
    crop_padding: see `center_crop_box`.
  """
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),  # The whole image.
    seed=seed,
    # Source of the three: official code; the second is width / height.
    min_object_covered=0.1,
    aspect_ratio_range=(3 / 4, 4 / 3),
    max_attempts=10,
    area_range=area_range,
  )
  none_found = tf.reduce_all(tf.equal(size[:2], shape[:2]))
  box = tf.concat([begin[:2], size[:2]], axis=0)
  return tf.where(none_found, center_crop_box(shape, image_size, crop_padding), box)


def center_crop_box(shape: tf.Tensor, image_size: int, crop_padding: int) -> tf.Tensor:
  """Returns the box of the central square: the evaluation crop.

  Args:
    shape: of the image, int32 [3].
    image_size: side S that the crop will be resized to, in pixels.
    crop_padding: pixels of border, after resizing, that are cut away: the side of the
      crop is the S / (S + crop_padding) part of the image's shorter side. 0 keeps the
      largest central square. Source of 32: official code (CROP_PADDING).
  """
  # In float32, as in the official code: rounding decides about single pixels.
  ratio = tf.constant(image_size / (image_size + crop_padding), tf.float32)
  shorter = tf.cast(tf.reduce_min(shape[:2]), tf.float32)
  side = tf.maximum(tf.cast(ratio * shorter, tf.int32), 1)
  return tf.concat([(shape[:2] - side + 1) // 2, [side, side]], axis=0)


def resize(crop: tf.Tensor, image_size: int, method: str) -> tf.Tensor:
  """Resizes a crop to a square.

  Args:
    crop: uint8 [H, W, 3].
    image_size: side S of the result, in pixels.
    method: a key of RESIZE_METHODS.

  Returns:
    float32 [S, S, 3], scale 0..255.
  """
  image = RESIZE_METHODS[method](crop, [image_size, image_size])
  return tf.ensure_shape(image, [image_size, image_size, 3])


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Mirrors the image left to right with probability 1/2."""
  return tf.image.stateless_random_flip_left_right(image, seed)


def to_bytes(image: tf.Tensor) -> tf.Tensor:
  """Cuts off overshoots and fractions: uint8, what augmentation works on.

  Fractions are dropped, not rounded. Source: official code.
  """
  return tf.cast(_clip(image), tf.uint8)


def _clip(image):
  # One pass over the image; tf.clip_by_value makes two.
  return tf.raw_ops.ClipByValue(t=image, clip_value_min=0.0, clip_value_max=255.0)


def to_dtype(image: tf.Tensor, dtype: str) -> tf.Tensor:
  """Converts an image to the type that goes to the devices; see `pixels.py`.

  In evaluation the official code neither rounds nor cuts off what bicubic interpolation
  overshoots. Here pixels stay in their range, which attacks need; 'float32' does not
  round.

  Args:
    image: uint8, or float32 on the scale 0..255, of any shape.
    dtype: one of IMAGE_DTYPES: 'uint8' rounds to the nearest of 256 levels, the others
      map to [0, 1].
  """
  if image.dtype == dtype == 'uint8':
    return image
  if dtype == 'uint8':
    # One pass, three times as fast as adding 1/2, clipping and casting.
    quantized, _, _ = tf.raw_ops.QuantizeV2(
      input=image, min_range=0.0, max_range=255.0, T=tf.quint8, mode='MIN_COMBINED'
    )
    return tf.bitcast(quantized, tf.uint8)
  return tf.cast(_clip(tf.cast(image, tf.float32)) / 255.0, dtype)


def check_options(recipe: Recipe) -> None:
  """Raises UserError unless the resize method and the type are known."""
  errors.check_choice('resize_method', recipe.resize_method, RESIZE_METHODS)
  errors.check_choice('image_dtype', recipe.image_dtype, IMAGE_DTYPES)
