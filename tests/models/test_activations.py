"""Tests activations and their gradients against TensorFlow's."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf

from advprop_jax import errors
from advprop_jax.models import activations
from advprop_jax.models.cpu.no_inline import no_inline

# Keras and TensorFlow, and where they have no such function its formula, in float64.
THEIRS = {
  'silu': tf.nn.silu,
  'swish': tf.nn.silu,
  'relu': tf.nn.relu,
  'relu6': tf.nn.relu6,
  'softplus': tf.nn.softplus,
  'parametric_softplus': lambda x: tf.nn.softplus(10 * x) / 10,
  'gelu': lambda x: tf.nn.gelu(x, approximate=True),
  'gelu_exact': lambda x: tf.nn.gelu(x, approximate=False),
  'elu': tf.nn.elu,
  'celu': lambda x: keras.ops.celu(x, alpha=1.0),
  'mish': keras.activations.mish,
  # Not with |x|, as ours: TensorFlow's gradient is taken at x > 0 alone.
  'smooth_relu': lambda x: tf.maximum(
    x - tf.math.log1p(400 * tf.nn.relu(x)) / 400, tf.zeros_like(x)
  ),
  'relu_smooth_backward': tf.nn.relu,
  'celu:0.5': lambda x: keras.ops.celu(x, alpha=0.5),
  'elu:0.5': lambda x: keras.ops.elu(x, alpha=0.5),
  'parametric_softplus:2': lambda x: tf.nn.softplus(2 * x) / 2,
  'relu_smooth_backward:2': tf.nn.relu,
}
# Their derivative jumps at 0.
JUMPS = {'relu': (0, 1), 'relu6': (0, 1), 'elu:0.5': (0.5, 1)}


# Of one shape, so that operations are compiled once: the last two are beside 0.
GRID = np.array(
  [*np.linspace(-20, 20, 120), *np.linspace(-1.5, 1.5, 60), -1e4, -99, 99, 1e4]
  + [-1e-9, 1e-9]
)

pytestmark = pytest.mark.usefixtures('fast_compilation')


def of(name):
  """Returns the named activation with the first values of its parameters."""
  activation = activations.get_activation(name)
  return lambda x: activation.function(
    x, *(jnp.asarray(p, x.dtype) for p in activation.initial)
  )


def value_and_derivative(name, x):
  y, transpose = jax.vjp(of(name), x)
  (slope,) = transpose(jnp.ones_like(y))
  return y, slope


def test_every_activation_is_compared():
  assert {name.partition(':')[0] for name in THEIRS} == set(activations.ACTIVATIONS)


@pytest.mark.parametrize('name', THEIRS)
def test_values_and_derivatives_are_those_of_others(name):
  """In float32 TensorFlow's, in float64 those of finite differences."""
  variable = tf.Variable(GRID)
  with tf.GradientTape() as tape:
    expected = THEIRS[name](variable)
    # The backward function of the study has another one's derivative.
    backward = THEIRS[name.replace('relu_smooth_backward', 'parametric_softplus')]
    expected_slope = tape.gradient(backward(variable), variable)
  y, slope = value_and_derivative(name, jnp.asarray(GRID, jnp.float32))
  np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-6)
  # Far left, where gelu's is 0, XLA's tanh leaves 9e-6 with the emitters of conftest.py
  # and 3e-6 with the others. Whether the formula is right, float64 shows below.
  np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-5)

  with jax.enable_x64(True):
    x, h = jnp.asarray(GRID), 1e-6
    _, slope = value_and_derivative(name, x)
    difference = np.asarray((of(name)(x + h) - of(name)(x - h)) / (2 * h))
    below, above = np.asarray(slope)[-2:]
  if not name.startswith('relu_smooth_backward'):
    np.testing.assert_allclose(slope[:-2], difference[:-2], rtol=1e-5, atol=1e-6)
  if name in JUMPS:
    np.testing.assert_allclose([below, above], JUMPS[name], atol=1e-6)
  else:  # The derivative is continuous, at 0 as well.
    assert abs(above - below) < 1e-6


EXTREMES = [
  f'{name}:{alpha}'
  for name in ('celu', 'elu', 'parametric_softplus')
  for alpha in (activations.MIN_ALPHA, activations.MAX_ALPHA)
]


@pytest.mark.parametrize('name', [*THEIRS, *EXTREMES])
def test_no_value_and_no_derivative_is_nan(name):
  x = jnp.asarray([*GRID, -300, 300, 0, -0.0, 1e-30, -1e-30], jnp.bfloat16)
  y, slope = value_and_derivative(name, x)
  assert y.dtype == slope.dtype == jnp.bfloat16
  assert jnp.isfinite(y).all() and jnp.isfinite(slope).all()


def test_the_beta_of_smooth_relu_is_trained():
  x = jnp.linspace(0.1, 2, 20)
  smooth_relu = activations.smooth_relu

  def closed_form(beta):  # d/d(beta) of x - log(1 + beta^2 x) / beta^2.
    log = np.log1p(beta**2 * x)
    return (2 * log / beta**3 - 2 * x / (beta * (1 + beta**2 * x))).sum()

  slope = jax.jit(jax.grad(lambda beta: smooth_relu(x, beta).sum()))
  for beta in (20.0, 3.0, -1.0):
    np.testing.assert_allclose(slope(beta), closed_form(beta), rtol=1e-3)
  # At 0 it is no NaN: there the function vanishes.
  assert jnp.isfinite(slope(0.0))


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


@pytest.mark.parametrize(
  'name, message',
  [
    ('gellu', "'gellu'; .*allowed: .*relu.* silu"),
    ('silu:2', 'silu has no alpha; allowed: silu'),
    ('celu:', "'' is no alpha; allowed: 0.001 to 1000.0, as in 'celu:0.5'"),
    ('celu:1e-40', "'1e-40' is no alpha"),
    ('celu:nan', "'nan' is no alpha"),
  ],
)
def test_unknown_names_are_refused(name, message):
  with pytest.raises(errors.UserError, match=message):
    activations.get_activation(name)


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


def test_a_trained_parameter_has_its_gradient_also_in_bfloat16():
  layer = activations.Activate(activations.get_activation('smooth_relu'))
  x = jax.random.normal(jax.random.key(0), (8, 8, 8, 64))

  def slope(dtype):
    def loss(params):
      return layer.apply({'params': params}, x.astype(dtype)).astype(jnp.float32).mean()

    return jax.grad(loss)({'activation': jnp.array([20.0])})['activation'][0]

  np.testing.assert_allclose(slope(jnp.bfloat16), slope(jnp.float32), rtol=0.05)
