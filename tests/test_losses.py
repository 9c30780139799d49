"""Tests losses against TensorFlow's."""

import jax
import numpy as np
import pytest
import tensorflow as tf

from advprop_jax import losses


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1, 0.7])
def test_cross_entropy_equals_tensorflow(label_smoothing):
  logits = 5 * jax.random.normal(jax.random.key(0), (16, 10))
  label = np.arange(16, dtype=np.int32) % 10
  expected = tf.keras.losses.categorical_crossentropy(
    tf.one_hot(label, 10),
    np.asarray(logits),
    from_logits=True,
    label_smoothing=label_smoothing,
  )
  loss = losses.cross_entropy(logits, label, label_smoothing=label_smoothing)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
