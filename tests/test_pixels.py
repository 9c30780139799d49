"""Tests the one place that scales images, against TensorFlow's conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from advprop_jax import pixels


def test_every_level_becomes_what_tensorflow_makes_of_it():
  levels = np.arange(256, dtype=np.uint8)
  units = jax.jit(pixels.to_unit)(levels)
  assert units.dtype == jnp.float32
  expected = tf.image.convert_image_dtype(levels, tf.float32)
  np.testing.assert_allclose(units, expected, rtol=2e-7)
  assert units[0] == 0.0 and units[255] == 1.0


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_floats_keep_their_values(dtype):
  image = jnp.linspace(0, 1, 50, dtype=dtype)
  units = pixels.to_unit(image)
  assert units.dtype == jnp.float32
  np.testing.assert_array_equal(units, np.asarray(image, np.float32))
