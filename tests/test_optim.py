"""Tests the optimizer against TensorFlow and its schedule against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from advprop_jax import optim


def test_schedule_climbs_linearly_and_falls_by_half_a_cosine():
  schedule = optim.warmup_cosine(peak=0.4, warmup_steps=10, total_steps=110)
  values = [float(schedule(step)) for step in (0, 5, 10, 35, 60, 110, 500)]
  expected = [0, 0.2, 0.4, 0.2 * (1 + np.cos(np.pi / 4)), 0.2, 0, 0]
  np.testing.assert_allclose(values, expected, atol=1e-7)


@pytest.mark.parametrize('warmup_steps, total_steps', [(0, 10), (5, 5), (9, 3), (0, 1)])
def test_schedule_is_finite_for_short_runs(warmup_steps, total_steps):
  schedule = optim.warmup_cosine(
    peak=1.0, warmup_steps=warmup_steps, total_steps=total_steps
  )
  values = [float(schedule(step)) for step in range(total_steps)]
  assert np.isfinite(values).all() and max(values) <= 1.0
  if not warmup_steps:
    assert values[0] == 1.0


def test_sgd_equals_keras_with_the_decay_in_the_loss_and_none_on_norms():
  weights = {'params': {'w': jnp.array([1.0, -2.0])}, 'norm': {'s': jnp.array([3.0])}}
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.05)
  opt_state = tx.init(weights)
  w, s = tf.Variable([1.0, -2.0]), tf.Variable([3.0])
  sgd = tf.keras.optimizers.SGD(learning_rate=0.1, momentum=0.9, nesterov=True)

  for _ in range(10):
    grads = jax.grad(
      lambda t: (jnp.sin(t['params']['w']) + t['norm']['s'] * t['params']['w']).sum()
    )(weights)
    updates, opt_state = tx.update(grads, opt_state, weights)
    weights = optax.apply_updates(weights, updates)
    with tf.GradientTape() as tape:
      value = tf.reduce_sum(tf.sin(w) + s * w) + 0.05 * tf.nn.l2_loss(w)
    sgd.apply_gradients(zip(tape.gradient(value, [w, s]), [w, s], strict=True))

  np.testing.assert_allclose(weights['params']['w'], w, rtol=1e-5)
  np.testing.assert_allclose(weights['norm']['s'], s, rtol=1e-5)


def test_moving_average_equals_tensorflow():
  weight, num_updates = tf.Variable([5.0, 1.0]), tf.Variable(0.0)
  average = tf.train.ExponentialMovingAverage(0.6, num_updates=num_updates)
  average.apply([weight])  # Creates the shadow, equal to the weight.
  ema = {'w': jnp.array([5.0, 1.0])}
  for step in range(30):
    new = np.array([np.sin(step), step], np.float32)
    num_updates.assign(step)
    weight.assign(new)
    average.apply([weight])
    ema = optim.ema_update(ema, {'w': jnp.asarray(new)}, step=step, decay=0.6)
  np.testing.assert_allclose(ema['w'], average.average(weight), rtol=1e-5)
