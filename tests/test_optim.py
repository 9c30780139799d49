"""Tests the optimizer against TensorFlow and its schedule against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from advprop_jax import models, optim

v1 = tf.compat.v1


def test_schedule_climbs_linearly_and_falls_by_half_a_cosine():
  schedule = optim.cosine(
    learning_rate=0.4,
    warmup_epochs=10,
    batch_size=256,
    steps_per_epoch=1,
    total_steps=110,
  )
  values = [float(schedule(step)) for step in (0, 5, 10, 35, 60, 110, 500)]
  expected = [0, 0.2, 0.4, 0.2 * (1 + np.cos(np.pi / 4)), 0.2, 0, 0]
  np.testing.assert_allclose(values, expected, atol=1e-7)


@pytest.mark.parametrize('warmup_steps, total_steps', [(0, 10), (5, 5), (9, 3), (0, 1)])
def test_schedule_is_finite_for_short_runs(warmup_steps, total_steps):
  schedule = optim.cosine(
    learning_rate=1.0,
    warmup_epochs=warmup_steps,
    batch_size=256,
    steps_per_epoch=1,
    total_steps=total_steps,
  )
  values = [float(schedule(step)) for step in range(total_steps)]
  assert np.isfinite(values).all() and max(values) <= 1.0
  if not warmup_steps:
    assert values[0] == 1.0


def test_sgd_equals_keras_with_the_decay_in_the_loss_and_none_on_norms():
  weights = {'params': {'w': jnp.array([1.0, -2.0])}, 'norms': {'s': jnp.array([3.0])}}
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.05)
  opt_state = tx.init(weights)
  w, s = tf.Variable([1.0, -2.0]), tf.Variable([3.0])
  sgd = tf.keras.optimizers.SGD(learning_rate=0.1, momentum=0.9, nesterov=True)

  for _ in range(10):
    grads = jax.grad(
      lambda t: (jnp.sin(t['params']['w']) + t['norms']['s'] * t['params']['w']).sum()
    )(weights)
    updates, opt_state = tx.update(grads, opt_state, weights)
    weights = optax.apply_updates(weights, updates)
    with tf.GradientTape() as tape:
      value = tf.reduce_sum(tf.sin(w) + s * w) + 0.05 * tf.nn.l2_loss(w)
    sgd.apply_gradients(zip(tape.gradient(value, [w, s]), [w, s], strict=True))

  np.testing.assert_allclose(weights['params']['w'], w, rtol=1e-5)
  np.testing.assert_allclose(weights['norms']['s'], s, rtol=1e-5)


# The official recipe, at the official batch of 2048.
STEPS_PER_EPOCH = 1281167 / 2048
STAIRCASE = dict(
  learning_rate=0.016,
  warmup_epochs=5,  # 3127 steps, int(5 * 625.57).
  decay_epochs=2.4,  # 1501.37 steps.
  decay_rate=0.97,
  batch_size=2048,
  steps_per_epoch=STEPS_PER_EPOCH,
)


@pytest.mark.parametrize(
  'step, rate',
  [
    (0, 0.0),
    (1, 0.128 / 3127),
    (1563, 0.128 * 1563 / 3127),  # The first stair falls inside the warm-up: no trace.
    (3126, 0.128 * 3126 / 3127),
    (3127, 0.128 * 0.97**2),  # 2 * 1501.37 steps have passed.
    (4504, 0.128 * 0.97**2),
    (4505, 0.128 * 0.97**3),  # 3 * 1501.37 = 4504.1
    (218948, 0.128 * 0.97**145),  # The last step of 350 epochs.
  ],
)
def test_staircase_at_steps_computed_by_hand(step, rate):
  schedule = optim.staircase(**STAIRCASE)
  np.testing.assert_allclose(schedule(step), rate, rtol=1e-5)  # float32 to the 145th.


def test_staircase_without_warmup_starts_at_the_peak():
  schedule = optim.staircase(**{**STAIRCASE, 'warmup_epochs': 0})
  np.testing.assert_allclose([schedule(0), schedule(1501)], 0.128, rtol=1e-6)


def test_staircase_equals_tensorflow_after_the_warmup():
  steps = np.arange(3127, 218949, 37)
  with tf.Graph().as_default(), v1.Session() as session:
    step = v1.placeholder(tf.int64, [None])
    decayed = v1.train.exponential_decay(
      0.128, step, 2.4 * STEPS_PER_EPOCH, 0.97, staircase=True
    )
    expected = session.run(decayed, {step: steps})
  rates = jax.vmap(optim.staircase(**STAIRCASE))(steps)
  np.testing.assert_allclose(rates, expected, rtol=2e-6)


def test_rmsprop_and_averages_equal_tensorflow_1():
  """Runs the official code's optimizer, weight decay and average side by side."""
  rng = np.random.default_rng(0)
  start = rng.normal(size=[2, 50]).astype(np.float32)
  grads = rng.normal(size=[20, 2, 50]).astype(np.float32) * 10.0 ** rng.uniform(
    -4, 2, [20, 1, 50]
  ).astype(np.float32)
  rates = 0.128 * 0.9 ** np.arange(20, dtype=np.float32)  # Another one every step.

  with tf.Graph().as_default(), v1.Session() as session:
    grad, rate = v1.placeholder(tf.float32, [2, 50]), v1.placeholder(tf.float32, [])
    w, s = v1.Variable(start[0], use_resource=True), v1.Variable(start[1])
    step = v1.train.get_or_create_global_step()
    loss = tf.reduce_sum(grad[0] * w + grad[1] * s) + 0.5 * tf.nn.l2_loss(w)
    optimizer = v1.train.RMSPropOptimizer(rate, decay=0.9, momentum=0.9, epsilon=1e-3)
    train_op = optimizer.minimize(loss, step)
    average = tf.train.ExponentialMovingAverage(0.5, num_updates=step)
    with tf.control_dependencies([train_op]):
      train_op = average.apply([w, s])
    session.run(v1.global_variables_initializer())
    expected = []
    for g, r in zip(grads, rates, strict=True):
      session.run(train_op, {grad: g, rate: r})
      expected.append(session.run([w, s, average.average(w), average.average(s)]))

  weights = {'params': jnp.asarray(start[0]), 'norms': jnp.asarray(start[1])}
  tx = optim.rmsprop(
    lambda step: jnp.asarray(rates)[step],
    decay=0.9,
    momentum=0.9,
    epsilon=1e-3,
    weight_decay=0.5,
  )
  opt_state, ema, found = tx.init(weights), weights, []
  for i, g in enumerate(grads):
    updates, opt_state = tx.update({'params': g[0], 'norms': g[1]}, opt_state, weights)
    weights = optax.apply_updates(weights, updates)
    ema = optim.ema_update(ema, weights, step=i + 1, decay=0.5)
    found.append([weights['params'], weights['norms'], ema['params'], ema['norms']])

  # Of the largest weight so far: a weight that passes zero has no relative error.
  scale = np.maximum.accumulate(np.abs(expected).max(axis=-1), axis=0)
  assert (np.abs(np.subtract(found, expected)).max(axis=-1) / scale).max() < 1e-6
  assert (scale > 0.5).all()


def test_moving_average_at_steps_computed_by_hand():
  old, new = {'w': jnp.float32(1.0)}, {'w': jnp.float32(0.0)}
  for step, decay in [(1, 2 / 11), (90, 0.91), (89990, 0.9999), (10**6, 0.9999)]:
    value = optim.ema_update(old, new, step=step, decay=0.9999)['w']
    np.testing.assert_allclose(value, min(decay, 0.9999), rtol=1e-6)


def test_weight_decay_reaches_the_official_variables_and_no_others():
  """All trained values but scale and bias of the 49 norms, 2 * 21,008 of them."""
  model = models.create_model('efficientnet_b0', num_classes=1000)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros([1, 224, 224, 3]), train=False)
  )
  weights = {
    'params': variables['params'],
    'norms': {'clean': variables['norm'], 'adv': variables['norm']},
  }
  # A single number stands for each array.
  sizes = jax.tree.map(lambda x: x.size, weights)
  ones, zeros = (jax.tree.map(lambda _, x=x: x, sizes) for x in np.float32([1, 0]))
  tx = optim.rmsprop(
    lambda step: 1.0, decay=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1.0
  )
  updates, _ = tx.update(zeros, tx.init(ones), ones)
  moved = jax.tree.map(lambda update, size: size * bool(update), updates, sizes)
  assert sum(jax.tree.leaves(moved['params'])) == 5_288_548 - 42_016
  assert not any(jax.tree.leaves(moved['norms']))


def test_milestones_are_those_of_the_recipe():
  schedule = optim.milestones(
    learning_rate=0.1,
    warmup_learning_rate=0.1,
    warmup_epochs=5.0,
    milestones_epochs=(30.0, 60.0, 90.0),
    decay_rate=0.1,
    batch_size=1024,
    steps_per_epoch=10.0,
  )
  steps = np.array([0, 25, 50, 299, 300, 599, 600, 899, 900, 999])
  expected = [0.1, 0.25, 0.4, 0.4, 0.04, 0.04, 4e-3, 4e-3, 4e-4, 4e-4]
  np.testing.assert_allclose([float(schedule(i)) for i in steps], expected, rtol=1e-5)
  # PyTorch's MultiStepLR, its closed form: the base times gamma^(milestones passed).
  passed = np.searchsorted([300, 600, 900], steps, side='right')
  np.testing.assert_allclose(
    [float(schedule(i)) for i in steps[2:]], 0.4 * 0.1 ** passed[2:], rtol=1e-5
  )


@pytest.mark.parametrize('decay_biases', [True, False])
def test_weight_decay_spares_what_it_should(decay_biases):
  layer = {'kernel': jnp.ones(2), 'bias': jnp.ones(2), 'activation': jnp.ones(1)}
  weights = {
    'params': {'layer': layer},
    'norms': {'clean': {'bn': {'scale': jnp.ones(2)}}},
  }
  tx = optim.sgd(
    lambda step: 1.0, momentum=0.0, weight_decay=0.1, decay_biases=decay_biases
  )
  grads = jax.tree.map(jnp.zeros_like, weights)
  updates, _ = tx.update(grads, tx.init(weights), weights)
  decayed = jax.tree.map(lambda x: bool((x != 0).all()), updates)
  assert decayed == {
    'params': {'layer': {'kernel': True, 'bias': decay_biases, 'activation': False}},
    'norms': {'clean': {'bn': {'scale': False}}},
  }
