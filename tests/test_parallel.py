"""Tests the one place that knows of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advprop_jax import errors, parallel


def test_equals_jit_of_the_whole_batch_with_sharded_inputs():
  # pmap is in maintenance mode; this is what it must stay equal to.
  w, x = jnp.arange(3.0), jnp.arange(24.0).reshape(8, 3)

  def loss(w, x):
    return jnp.square(jnp.sin(x) @ w).mean()

  def step(w, x):
    return jax.lax.pmean(jax.grad(loss)(w, x), parallel.AXIS)

  mapped = parallel.data_parallel(step, split=(False, True))
  mesh = Mesh(jax.devices(), ('batch',))
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('batch')))
  expected = jax.jit(jax.grad(loss))(w, sharded)
  np.testing.assert_allclose(mapped(w, parallel.shard(x)), expected, rtol=1e-6)


def test_replicated_arrays_have_the_sharding_that_steps_return():
  x = parallel.replicate(jnp.ones(3))
  step = parallel.data_parallel(
    lambda a, b: a + jax.lax.psum(b.sum(), parallel.AXIS), split=(False, True)
  )
  y = step(x, np.ones((4, 2), np.float32))
  assert x.sharding.is_equivalent_to(y.sharding, 1)
  assert y.shape == (3,)


def test_batches_are_on_their_devices_before_they_are_asked_for():
  taken = []

  def batches():
    for i in range(5):
      taken.append(i)
      yield {'image': np.full((8, 3), i, np.uint8), 'label': np.arange(8)}

  stream = parallel.prefetch(batches(), size=2)
  for i, batch in enumerate(stream):
    assert len(taken) == min(i + 3, 5)
    assert batch['image'].shape == (4, 2, 3) and batch['image'].dtype == np.uint8
    assert set(batch['image'].devices()) == set(jax.local_devices())
    np.testing.assert_array_equal(batch['image'], np.full((4, 2, 3), i))
    np.testing.assert_array_equal(batch['label'], np.arange(8).reshape(4, 2))
  assert i == 4


def test_shard_keeps_the_order_of_examples():
  batch = {'image': np.arange(24).reshape(8, 3), 'label': np.arange(8)}
  sharded = parallel.shard(batch)
  assert sharded['image'].shape == (4, 2, 3)
  np.testing.assert_array_equal(sharded['label'].reshape(-1), batch['label'])


def test_a_batch_that_does_not_divide_is_a_one_line_error():
  with pytest.raises(errors.UserError, match='batch of 6 .* 4 devices.*multiples of 4'):
    parallel.shard({'image': np.zeros((6, 2))})
  with pytest.raises(errors.UserError, match='data.batch_size is 6.*multiples of 4'):
    parallel.check_batch_size('data.batch_size', 6)
  with pytest.raises(errors.UserError, match='data.batch_size is 0'):
    parallel.check_batch_size('data.batch_size', 0)
  parallel.check_batch_size('data.batch_size', 8)


def test_an_argument_without_arrays_is_refused():
  step = parallel.data_parallel(lambda a, b: b['x'] + b['y'], split=(False, True))
  with pytest.raises(ValueError, match='no arrays'):
    step(None, {'x': np.ones((4, 2)), 'y': np.ones((4, 2))})
