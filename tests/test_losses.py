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


def test_weighted_sum_adds_the_mean_losses_of_parts_of_a_batch():
  logits = np.random.default_rng(1).normal(size=(6, 10)).astype('f')
  label = np.array([3, 1, 4, 1, 5, 9], np.int32)
  expected = tf.keras.losses.sparse_categorical_crossentropy(
    label, logits, from_logits=True
  ).numpy()
  top1 = tf.keras.metrics.sparse_categorical_accuracy(label, logits).numpy()

  loss, metrics = losses.weighted_sum(
    logits, [label[:2], label[2:]], [1.0, 0.5], label_smoothing=0.0
  )
  np.testing.assert_allclose(
    [x['loss'] for x in metrics], [expected[:2].mean(), expected[2:].mean()], rtol=1e-6
  )
  np.testing.assert_allclose(
    [x['top1'] for x in metrics], [top1[:2].mean(), top1[2:].mean()]
  )
  np.testing.assert_allclose(
    loss, expected[:2].mean() + 0.5 * expected[2:].mean(), rtol=1e-6
  )
