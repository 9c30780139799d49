"""Tests batch norm against flax's and the official grouping of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors, parallel
from advprop_jax.models import activations, norm

pytestmark = pytest.mark.usefixtures('fast_compilation')

SETTINGS = {'momentum': 0.9, 'epsilon': 1e-3}


def variables(channels):
  rng = np.random.default_rng(0)
  draw = lambda low, high: jnp.asarray(  # noqa: E731
    rng.uniform(low, high, channels), jnp.float32
  )
  return {
    'norm': {'scale': draw(0.5, 1.5), 'bias': draw(-1, 1)},
    'batch_stats': {'mean': draw(-1, 1), 'var': draw(0.5, 2)},
  }


@pytest.mark.parametrize('use_running_average', [True, False])
@pytest.mark.parametrize('shape', [(4, 5, 6, 8), (4, 7, 7, 8), (1, 17, 1, 8), (4, 8)])
def test_equals_flax_batch_norm(shape, use_running_average):
  x = 3 + 2 * jax.random.normal(jax.random.key(0), shape)
  ours = variables(8)
  theirs = {'params': ours['norm'], 'batch_stats': ours['batch_stats']}
  y, updated = norm.BatchNorm(**SETTINGS).apply(
    ours, x, use_running_average=use_running_average, mutable=['batch_stats']
  )
  expected, expected_updated = nn.BatchNorm(
    use_running_average=use_running_average, **SETTINGS
  ).apply(theirs, x, mutable=['batch_stats'])
  np.testing.assert_allclose(y, expected, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, expected_updated
  )


@pytest.mark.parametrize('use_running_average', [True, False])
@pytest.mark.parametrize(
  ('activation', 'flax_activation'),
  [
    (activations.IDENTITY, lambda x: x),
    (activations.ACTIVATIONS['silu'], nn.silu),
    (activations.ACTIVATIONS['relu'], nn.relu),
  ],
  ids=['none', 'silu', 'relu'],
)
@pytest.mark.parametrize(
  'shape, cpu_kernels',
  [
    ((4, 5, 6, 8), True),
    ((4, 7, 7, 8), True),
    ((1, 17, 1, 8), True),
    ((4, 5, 6, 8), False),
  ],
)
def test_gradients_equal_those_of_flax_batch_norm(
  shape, cpu_kernels, activation, flax_activation, use_running_average
):
  x = 3 + 2 * jax.random.normal(jax.random.key(0), shape)
  g = jax.random.normal(jax.random.key(1), shape)
  ours = variables(8)
  layer = norm.BatchNorm(activation=activation, cpu_kernels=cpu_kernels, **SETTINGS)
  y, vjp = jax.vjp(
    lambda trained, x: layer.apply(
      {'norm': trained, 'batch_stats': ours['batch_stats']},
      x,
      use_running_average=use_running_average,
    ),
    ours['norm'],
    x,
  )

  def flax_layer(trained, x):
    layer = nn.BatchNorm(use_running_average=use_running_average, **SETTINGS)
    variables = {'params': trained, 'batch_stats': ours['batch_stats']}
    return flax_activation(layer.apply(variables, x, mutable=['batch_stats'])[0])

  expected, expected_vjp = jax.vjp(flax_layer, ours['norm'], x)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
    vjp(g),
    expected_vjp(g),
  )


@pytest.mark.parametrize('use_running_average', [True, False])
def test_nothing_but_the_input_is_kept_for_the_backward_pass(use_running_average):
  layer = norm.BatchNorm(activation=activations.ACTIVATIONS['silu'], **SETTINGS)
  x = jax.ShapeDtypeStruct((4, 32, 32, 8), jnp.bfloat16)

  def normalise(x):
    return layer.apply(variables(8), x, use_running_average=use_running_average)

  residuals = jax.eval_shape(lambda x: jax.vjp(normalise, x)[1], x)
  saved = [y for y in jax.tree.leaves(residuals) if y.ndim > 1]
  assert saved and all(y == x for y in saved)  # The same, for one function or two.


SOFTPLUS = activations.Activation(lambda x, a: nn.softplus(a * x) / a, (2.0,))


@pytest.mark.parametrize('cpu_kernels', [True, False])
def test_the_activation_may_train_a_parameter(cpu_kernels):
  """Softplus(a x) / a: its derivative to x is sigmoid(a x)."""
  layer = norm.BatchNorm(activation=SOFTPLUS, cpu_kernels=cpu_kernels, **SETTINGS)
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 8))
  g = jax.random.normal(jax.random.key(1), x.shape)
  alpha = jnp.array([1.5])
  first = layer.init(jax.random.key(2), x, use_running_average=True)
  np.testing.assert_array_equal(first['params']['activation'], [2.0])

  def loss(alpha, trained, x):
    state = {**variables(8), 'norm': trained, 'params': {'activation': alpha}}
    return (g * layer.apply(state, x, use_running_average=False)).sum()

  trained = variables(8)['norm']
  grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(alpha, trained, x)

  # By hand, in float64.
  x64, g64, a = np.float64(x), np.float64(g), 1.5
  mean, var = x64.mean((0, 1, 2)), x64.var((0, 1, 2))
  normalised = (x64 - mean) / np.sqrt(var + 1e-3)
  y = normalised * np.float64(trained['scale']) + np.float64(trained['bias'])
  sigmoid = 1 / (1 + np.exp(-a * y))
  expected = (g64 * (y * sigmoid / a - np.log1p(np.exp(a * y)) / a**2)).sum()
  np.testing.assert_allclose(grads[0], [expected], rtol=1e-4)
  np.testing.assert_allclose(
    grads[1]['bias'], (g64 * sigmoid).sum((0, 1, 2)), rtol=1e-4
  )
  np.testing.assert_allclose(
    grads[1]['scale'], (g64 * sigmoid * normalised).sum((0, 1, 2)), rtol=1e-4
  )
  step = 1e-3 * g
  numeric = (loss(alpha, trained, x + step) - loss(alpha, trained, x - step)) / 2
  np.testing.assert_allclose((grads[2] * step).sum(), numeric, rtol=2e-2)


@pytest.mark.parametrize('use_running_average', [True, False])
def test_without_cpu_kernels_there_are_forward_mode_derivatives(use_running_average):
  layer = norm.BatchNorm(activation=SOFTPLUS, cpu_kernels=False, **SETTINGS)
  x = jax.random.normal(jax.random.key(0), (4, 3, 3, 8))
  state = {**variables(8), 'params': {'activation': jnp.array([2.0])}}

  def normalise(x):
    return layer.apply(state, x, use_running_average=use_running_average)

  direction = jax.random.normal(jax.random.key(1), x.shape)
  _, tangent = jax.jvp(normalise, (x,), (direction,))
  _, vjp = jax.vjp(normalise, x)  # <J d, J d> = <J' J d, d>
  np.testing.assert_allclose(
    jnp.vdot(tangent, tangent), jnp.vdot(vjp(tangent)[0], direction), rtol=1e-4
  )


@pytest.mark.parametrize('cpu_kernels', [True, False])
@pytest.mark.parametrize('mean, rtol', [(100.0, 2e-5), (1000.0, 2e-3)])
def test_variance_of_values_far_from_zero(mean, rtol, cpu_kernels):
  """Around the running mean; of E[x^2] - E[x]^2 up to 18 % would be wrong."""
  x = np.random.default_rng(0).normal(mean, 1, (32, 14, 14, 8)).astype(np.float32)
  state = variables(8)
  state['batch_stats']['mean'] = jnp.full(8, mean + 0.5)
  layer = norm.BatchNorm(momentum=0.0, epsilon=1e-3, cpu_kernels=cpu_kernels)
  _, updated = layer.apply(state, x, use_running_average=False, mutable=['batch_stats'])
  exact = np.float64(x)
  stats = updated['batch_stats']
  np.testing.assert_allclose(stats['mean'], exact.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(stats['var'], exact.var((0, 1, 2)), rtol=rtol)


@pytest.mark.parametrize('cpu_kernels', [True, False])
def test_a_constant_image_keeps_the_variance_at_0_or_above(cpu_kernels):
  layer = norm.BatchNorm(momentum=0.0, epsilon=1e-3, cpu_kernels=cpu_kernels)
  for value in (1e3, 1234.567, 3e4):
    x = jnp.full((4, 9, 9, 8), value)
    y, updated = layer.apply(
      variables(8), x, use_running_average=False, mutable=['batch_stats']
    )
    assert (updated['batch_stats']['var'] >= 0).all()
    assert jnp.isfinite(y).all()


def test_batch_statistics_can_be_read_without_writing_the_running_ones():
  x = jax.random.normal(jax.random.key(0), (4, 5, 6, 8))
  layer = norm.BatchNorm(**SETTINGS)
  read = layer.apply(variables(8), x, use_running_average=False)  # Nothing mutable.
  written, _ = layer.apply(
    variables(8), x, use_running_average=False, mutable=['batch_stats']
  )
  np.testing.assert_array_equal(read, written)


def test_bfloat16_input_keeps_float32_statistics():
  # The mean of squares of 100 +- 1 in bfloat16 would be off by more than the variance.
  x = 100 + jax.random.normal(jax.random.key(0), (64, 8, 8, 4))
  layer = norm.BatchNorm(**SETTINGS)
  y, updated = layer.apply(
    variables(4),
    x.astype(jnp.bfloat16),
    use_running_average=False,
    mutable=['batch_stats'],
  )
  assert y.dtype == jnp.bfloat16
  assert updated['batch_stats']['var'].dtype == jnp.float32
  rounded = np.asarray(x.astype(jnp.bfloat16)).astype(np.float64)
  expected = 0.9 * variables(4)['batch_stats']['var'] + 0.1 * rounded.var((0, 1, 2))
  np.testing.assert_allclose(updated['batch_stats']['var'], expected, rtol=0.02)


@pytest.mark.parametrize(
  'groups, parts', [(None, [[0, 1, 2, 3]]), (((0, 1), (2, 3)), [[0, 1], [2, 3]])]
)
def test_devices_of_a_group_share_statistics(groups, parts):
  layer = norm.BatchNorm(axis_name=parallel.AXIS, axis_index_groups=groups, **SETTINGS)
  x = jax.random.normal(jax.random.key(0), (4, 2, 3, 3, 8)) * jnp.arange(
    1.0, 5
  ).reshape(4, 1, 1, 1, 1)
  step = parallel.data_parallel(
    lambda v, x: layer.apply(v, x, use_running_average=False),
    split=(False, True),
    split_outputs=True,
  )
  y = step(variables(8), x)
  alone = norm.BatchNorm(**SETTINGS)
  for part in parts:
    together = x[jnp.array(part)].reshape((-1,) + x.shape[2:])
    expected = alone.apply(variables(8), together, use_running_average=False)
    np.testing.assert_allclose(
      np.asarray(y)[part].reshape(expected.shape), expected, atol=1e-5
    )


@pytest.mark.parametrize(
  'num_devices, size', [(1, None), (8, None), (16, 8), (32, 8), (128, 16), (512, 64)]
)
def test_tpu_groups_follow_the_official_rule(num_devices, size):
  groups = parallel.device_groups(num_devices)
  if size is None:
    assert groups is None
  else:
    assert [i for group in groups for i in group] == list(range(num_devices))
    assert {len(group) for group in groups} == {size}


@pytest.mark.parametrize('num_devices', [12, 20, 100])
def test_groups_of_unequal_size_are_refused(num_devices):
  with pytest.raises(errors.UserError, match=f'{num_devices} devices make no even'):
    parallel.device_groups(num_devices)


def test_unknown_scope_lists_the_known_ones():
  with pytest.raises(errors.UserError, match="'galaxy'.*all, device, tpu_group"):
    parallel.statistics_scope('galaxy')
