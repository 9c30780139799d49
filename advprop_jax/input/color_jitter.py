"""Colour jitter and lighting noise of one example, as stateless TensorFlow ops.

Why no library: as in `augment.py`, none draws from a seed per example.

Source: `fbresnet_augmentor` in `imagenet_utils.py` of
cihangxie/SmoothAdversarialTraining, on bytes, as there; the lighting noise is that of
Krizhevsky et al. 2012, section 4.1.
"""

import functools

import tensorflow as tf

GREY = (0.299, 0.587, 0.114)  # Source: ITU-R BT.601, as OpenCV and Pillow have it.
# Of the colours of ImageNet, red, green and blue in [0, 1]: the standard deviation
# along each principal component. Each component is a column of PRINCIPAL_COMPONENTS.
# Source: tensorpack.
PRINCIPAL_STD = (0.2175, 0.0188, 0.0045)
PRINCIPAL_COMPONENTS = (
  (-0.5675, 0.7192, 0.4009),
  (-0.5808, -0.0045, -0.8140),
  (-0.5836, -0.6948, 0.4203),
)


def color_jitter(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  lighting: float,
) -> tf.Tensor:
  """Changes brightness, contrast, saturation and light, in random order.

  After each of them values are cut off at 0 and 255, and fractions dropped.

  Args:
    image: uint8[H, W, 3].
    seed: int[2].
    brightness: factors are drawn evenly from 1 - brightness to 1 + brightness.
    contrast: likewise, about the mean of each channel.
    saturation: likewise, about the grey image.
    lighting: standard deviation of the noise along each principal component.

  Returns:
    uint8[H, W, 3].
  """
  order_seed, factor_seed, light_seed = tf.unstack(tf.random.split(seed, 3))
  order = tf.argsort(tf.random.stateless_uniform([4], order_seed))
  spread = tf.convert_to_tensor([brightness, contrast, saturation], tf.float32)
  factors = 1 + spread * tf.random.stateless_uniform([3], factor_seed, -1.0, 1.0)
  light = lighting * tf.random.stateless_normal([3], light_seed)
  ops = [
    lambda x: x * factors[0],
    lambda x: scale_contrast(x, factors[1]),
    lambda x: scale_saturation(x, factors[2]),
    lambda x: add_light(x, light),
  ]
  pixels = tf.cast(image, tf.float32)
  for i in range(len(ops)):
    calls = [functools.partial(op, pixels) for op in ops]
    pixels = tf.ensure_shape(tf.switch_case(order[i], calls), image.shape)
    pixels = tf.floor(tf.clip_by_value(pixels, 0.0, 255.0))
  return tf.cast(pixels, tf.uint8)


def grey(image: tf.Tensor) -> tf.Tensor:
  """Returns the grey image, float32 [H, W, 1] of [H, W, 3]."""
  return tf.reduce_sum(image * tf.constant(GREY), axis=-1, keepdims=True)


def scale_contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Scales the distances to the mean of each channel, float32 [H, W, 3]."""
  mean = tf.reduce_mean(image, axis=[0, 1], keepdims=True)
  return factor * image + (1 - factor) * mean  # With factor 1 exactly the image.


def scale_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Scales the distances to the grey image, float32 [H, W, 3]."""
  without = grey(image)
  return factor * image + (1 - factor) * without


def add_light(image: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
  """Adds amounts, float32 [3], of the principal components to every pixel."""
  shift = tf.linalg.matvec(
    tf.constant(PRINCIPAL_COMPONENTS), amounts * tf.constant(PRINCIPAL_STD)
  )
  return image + 255.0 * shift
