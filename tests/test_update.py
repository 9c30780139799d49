"""Tests the norms that a step reports, against gradients of one device and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_train_step
from tiny_model import TinyModel

from advprop_jax import branches, layer_rates, losses, parallel, update

LEARNING_RATE = 0.25


def step_of(frozen=(), **kwargs):
  """Returns what is trained before and after a step of SGD, and the step's metrics."""
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = layer_rates.freeze(optax.sgd(LEARNING_RATE), frozen)
  streams = (test_train_step.clean(),)
  step = test_train_step.create_step(model, tx, streams, frozen=frozen, **kwargs)
  before = test_train_step.create_state(model, tx, streams)
  trained = jax.device_get(before.trained)
  after, metrics = step(before, parallel.shard(test_train_step.batch()))
  return trained, jax.device_get(after.trained), jax.device_get(metrics)


@jax.jit
def gradient_on_one_device(trained, batch):
  """Returns the gradient of a batch by jax.grad alone."""
  model = TinyModel()
  start = model.init(jax.random.key(0), batch['image'], train=False)

  def loss(trained):
    variables = branches.variables(
      trained['params'], trained['norms'], {'clean': start['batch_stats']}, 'clean'
    )
    logits, _ = model.apply(
      variables, batch['image'], train=True, mutable=['batch_stats']
    )
    return losses.cross_entropy(logits, batch['label'], label_smoothing=0.1).mean()

  return jax.grad(loss)(trained)


def length(arrays):
  """Returns the norm in float64."""
  return np.sqrt(sum((np.float64(x) ** 2).sum() for x in arrays))


@pytest.mark.parametrize('frozen', [(), ('conv/*', 'bn/scale')])
def test_norms_are_those_of_the_gradient_of_the_whole_batch(frozen, fast_compilation):
  before, after, metrics = step_of(frozen)
  grads = gradient_on_one_device(before, test_train_step.batch())
  left = [grads['params']['classifier'], grads['norms']['clean']['bn']['bias']]
  expected = length(jax.tree.leaves(left if frozen else grads))
  np.testing.assert_allclose(metrics['grad_norm'], expected, rtol=1e-5)
  # Of SGD without momentum it is the gradient times the rate, and what has changed.
  np.testing.assert_allclose(
    metrics['update_norm'], LEARNING_RATE * expected, rtol=1e-5
  )
  change = length(jax.tree.leaves(jax.tree.map(np.subtract, after, before)))
  np.testing.assert_allclose(metrics['update_norm'], change, rtol=1e-4)


def test_the_norm_of_parts_of_a_batch_is_that_of_their_mean(fast_compilation):
  before, _, metrics = step_of(accumulate_steps=2)
  # Four devices with four images each, two of which are a part.
  parts = np.arange(16).reshape(4, 2, 2).swapaxes(0, 1).reshape(2, 8)
  first, second = (
    gradient_on_one_device(
      before, {key: x[part] for key, x in test_train_step.batch().items()}
    )
    for part in parts
  )
  mean = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
  expected = length(jax.tree.leaves(mean))
  np.testing.assert_allclose(metrics['grad_norm'], expected, rtol=1e-5)


@pytest.mark.parametrize('shapes', [[(3,)], [(3, 2), (), (70, 70), (5000,)], [(9000,)]])
def test_the_norm_of_small_and_large_arrays_is_numpys(shapes):
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
  np.testing.assert_allclose(update.norm(arrays), length(arrays), rtol=1e-6)
  np.testing.assert_allclose(update.norm(arrays), optax.tree.norm(arrays), rtol=1e-6)
