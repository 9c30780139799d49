"""Tests crop and resize in JAX against the TensorFlow ops of the evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from jax import export

from advprop_jax.input import preprocess as tf_preprocess
from advprop_jax.weights import preprocess

SIDE = 640  # The images below fit into it.
# Height and width: odd and even, smaller and larger than the result, not square.
SHAPES = [
  *((83, 59), (31, 44), (63, 63), (7, 9), (500, 375), (333, 640)),
  *((1, 3), (2, 2), (480, 480), (640, 101), (128, 256), (171, 171)),
]


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def by_tensorflow(image, image_size, crop_padding, resize_method):
  """Returns what the network is evaluated with."""
  box = tf_preprocess.center_crop_box(tf.shape(image), image_size, crop_padding)
  crop = tf.image.crop_to_bounding_box(image, *tf.unstack(box))
  resized = tf_preprocess.resize(crop, image_size, resize_method)
  return tf_preprocess.to_dtype(resized, 'uint8').numpy()


def check_equal(resized, expected, method):
  """Checks bytes: what lies half way between two levels may be rounded otherwise.

  Between two pixels that is often so, with as few as 2 x 2 of them.
  """
  difference = np.abs(np.asarray(resized).astype(int) - np.asarray(expected))
  share = np.mean(difference > 0)
  assert difference.max() <= 1 and share < (1e-3 if method == 'bilinear' else 5e-5)


def test_the_methods_are_those_of_the_evaluation():
  assert preprocess.METHODS.keys() == tf_preprocess.RESIZE_METHODS.keys()


@pytest.mark.parametrize('image_size, crop_padding', [(63, 0), (224, 32)])
@pytest.mark.parametrize('method', preprocess.METHODS)
def test_images_of_any_size_become_those_of_the_evaluation(
  method, image_size, crop_padding
):
  options = dict(image_size=image_size, crop_padding=crop_padding, resize_method=method)
  # One program for all sizes: what is not the image must not be seen.
  resize = jax.jit(functools.partial(preprocess.preprocess, **options))
  resized, expected = [], []
  for height, width in SHAPES:
    image = noise(height, width, 3)
    padded = noise(SIDE, SIDE, 3)
    padded[:height, :width] = image
    resized.append(resize(padded, shape=(height, width)))
    assert resized[-1].dtype == jnp.uint8
    expected.append(by_tensorflow(image, **options))
  check_equal(resized, expected, method)


@pytest.mark.parametrize('method', ['bicubic_tf1', 'bilinear'])
def test_sizes_may_be_symbols_of_an_export(method):
  resize = functools.partial(
    preprocess.preprocess, image_size=32, crop_padding=8, resize_method=method
  )
  shape = export.symbolic_shape('b, h, w, 3')
  exported = export.export(jax.jit(resize))(jax.ShapeDtypeStruct(shape, jnp.uint8))
  for batch in (noise(2, 53, 40, 3), noise(1, 20, 31, 3)):
    expected = [by_tensorflow(x, 32, 8, method) for x in batch]
    check_equal(exported.call(batch), expected, method)
