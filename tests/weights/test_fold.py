"""Tests that a network without norms is the network with them."""

import jax
import numpy as np
import pytest

from advprop_jax import models
from advprop_jax.weights import fold

pytestmark = pytest.mark.usefixtures('fast_compilation')


@pytest.mark.parametrize(
  'name, activation', [('efficientnet_tiny', 'swish'), ('resnet_tiny', 'smooth_relu')]
)
def test_logits_are_the_same_and_no_norm_is_left(name, activation):
  model = models.create_model(name, num_classes=5, activation=activation)
  image = np.random.RandomState(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  rng = np.random.RandomState(1)
  variables = jax.tree.map(
    lambda x: (0.5 + 0.2 * np.abs(rng.standard_normal(x.shape))).astype(np.float32),
    shapes,
  )
  variables['params'] = jax.tree.map(
    lambda x: x - 0.5 if x.ndim > 1 else x, variables['params']
  )
  params, biases = fold.fold_norms(variables, bn_epsilon=model.bn_epsilon)
  folded = jax.jit(fold.apply_folded(model, params, biases))
  expected = jax.jit(lambda image: model.apply(variables, image, train=False))(image)
  np.testing.assert_allclose(folded(image), expected, rtol=2e-5)
  assert 'rsqrt' not in folded.lower(image).as_text()
  # Other weights than the network's: they are in the kernels.
  assert jax.tree.structure(params) == jax.tree.structure(variables['params'])
  kernel = params['stem_conv']['kernel']
  assert np.abs(kernel - variables['params']['stem_conv']['kernel']).max() > 0.01
