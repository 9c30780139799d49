"""Tests activations and their gradients against TensorFlow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from advprop_jax import errors
from advprop_jax.models import activations
from advprop_jax.models.cpu.no_inline import no_inline

THEIRS = {'silu': tf.nn.silu, 'swish': tf.nn.silu, 'relu': tf.nn.relu}


@pytest.mark.parametrize('name', activations.ACTIVATIONS)
def test_values_and_gradients_equal_tensorflow(name):
  x = np.concatenate([np.linspace(-20, 20, 401), [-1e4, -100, 100, 1e4]]).astype('f')
  variable = tf.Variable(x)
  with tf.GradientTape() as tape:
    expected = THEIRS[name](variable)
  activation = activations.get_activation(name).function

  np.testing.assert_allclose(activation(x), expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(
    jax.grad(lambda x: activation(x).sum())(x),
    tape.gradient(expected, variable),
    rtol=1e-5,
    atol=1e-6,
  )


def test_a_site_has_the_parameters_of_its_activation():
  layer = activations.Activate(
    activations.Activation(lambda x, a, b: a * x + b, (2.0, -1.0))
  )
  x = jnp.arange(4.0, dtype=jnp.bfloat16)
  variables = layer.init(jax.random.key(0), x)
  np.testing.assert_array_equal(variables['params']['activation'], [2.0, -1.0])
  assert variables['params']['activation'].dtype == jnp.float32
  y = layer.apply({'params': {'activation': jnp.array([3.0, 0.5])}}, x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, jnp.array([0.5, 3.5, 6.5, 9.5], jnp.bfloat16))
  assert not activations.Activate(activations.IDENTITY).init(jax.random.key(0), x)


def test_unknown_names_are_refused():
  with pytest.raises(errors.UserError, match="'gellu'; allowed: .*relu.* silu"):
    activations.get_activation('gellu')


def test_no_inline_is_a_call_and_changes_no_result():
  def affine(x):
    return 2 * x + 1

  def compiled(function):
    x = jnp.arange(10_000, dtype=jnp.float32)
    both = jax.jit(lambda x: jnp.sin(function(x)) + jnp.cumsum(function(x)))
    return both.lower(x).compile(), x

  plain, x = compiled(affine)
  called, _ = compiled(no_inline(affine))
  np.testing.assert_array_equal(plain(x), called(x))
  assert ' call(' in called.as_text() and ' call(' not in plain.as_text()
