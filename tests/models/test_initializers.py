"""Initial weights: their distributions against scipy's, and what they depend on."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from advprop_jax import models
from advprop_jax.models import initializers

# Of a true hypothesis, one seed in ten thousand would fail; the seeds are fixed.
MIN_P = 1e-4


@pytest.mark.parametrize(
  ('shape', 'fan_out'),
  [((3, 3, 3, 320), 9 * 320), ((5, 5, 1, 960), 25), ((1, 1, 40, 240), 240)],
  ids=['stem', 'depthwise', 'pointwise'],
)
def test_conv_kernels_are_normal_with_variance_2_over_fan_out(shape, fan_out):
  kernel = initializers.conv_kernel(jax.random.key(fan_out), shape)

  assert (kernel.shape, kernel.dtype) == (shape, np.float32)
  normal = scipy.stats.norm(scale=math.sqrt(2 / fan_out))
  assert scipy.stats.kstest(np.ravel(kernel), normal.cdf).pvalue > MIN_P


def test_dense_kernels_are_uniform_within_1_over_root_of_outputs():
  kernel = initializers.dense_kernel(jax.random.key(1), (64, 100))

  uniform = scipy.stats.uniform(loc=-0.1, scale=0.2)
  assert scipy.stats.kstest(np.ravel(kernel), uniform.cdf).pvalue > MIN_P


def test_weights_are_a_function_of_the_key_alone():
  def draw(seed):
    return initializers.conv_kernel(jax.random.key(seed), (3, 3, 8, 16))

  np.testing.assert_array_equal(draw(2), jax.jit(draw)(2))
  assert scipy.stats.kstest(np.ravel(draw(2)), np.ravel(draw(3))).pvalue > MIN_P
  assert not np.isclose(draw(2), draw(3)).any()


def test_keys_can_be_mapped():
  keys = jax.random.split(jax.random.key(5), 3)
  draw = lambda key: initializers.conv_kernel(key, (3, 3, 1, 8))  # noqa: E731
  kernels = jax.vmap(draw)(jax.random.clone(keys))

  np.testing.assert_array_equal(kernels, [draw(key) for key in keys])


def test_every_kernel_of_a_model_is_drawn_apart():
  """No two leaves begin with the same numbers, nor with their multiples."""
  model = models.create_model('efficientnet_b0', num_classes=10)

  @jax.jit
  def init(seed):
    key = initializers.host_key(jax.random.key(seed))
    image = jax.numpy.zeros((1, 32, 32, 3))
    return model.init(key, image, train=False)['params']

  kernels = [np.ravel(x)[:16] for x in jax.tree.leaves([init(0), init(1)]) if np.any(x)]
  correlation = np.corrcoef(kernels)
  np.fill_diagonal(correlation, 0)

  assert len(kernels) == 2 * 82  # Convolutions and the classifier; biases are zero.
  assert np.abs(correlation).max() < 0.97  # 16 independent numbers, 13,366 pairs.


def test_host_keys_serve_jax_random():
  key = initializers.host_key(jax.random.key(4))
  parts = jax.random.split(key, 3)
  numbers = [jax.random.normal(part, (1000,)) for part in parts]

  for x in numbers:
    assert scipy.stats.kstest(x, scipy.stats.norm.cdf).pvalue > MIN_P
  assert not np.isclose(numbers[0], numbers[1]).any()
  folded = jax.random.key_data(
    jax.vmap(jax.random.fold_in, (None, 0))(jax.random.clone(key), np.arange(100_000))
  )
  assert len(np.unique(folded, axis=0)) == 100_000
