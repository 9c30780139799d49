"""Tests that gradients taken branch by branch are those of the sum, for less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import branches

pytestmark = pytest.mark.usefixtures('fast_compilation')

CHANNELS, LAYERS = 16, 8


def loss_fn(params, norm, x):
  """A deep network of pointwise layers; returns (loss, auxiliary)."""
  y = x['image'] * norm['scale']
  for kernel in params['kernels']:
    y = jnp.tanh(y @ kernel)
  return x['weight'] * jnp.square(y).mean(), {'mean': y.mean(), 'last': y[-1]}


def arguments(sizes):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  names = ('clean', 'adv', 'strong')[: len(sizes)]
  params = {'kernels': [0.3 * draw(CHANNELS, CHANNELS) for _ in range(LAYERS)]}
  norms = {name: {'scale': draw(CHANNELS)} for name in names}
  inputs = {
    name: {'image': draw(size, CHANNELS), 'weight': jnp.float32(1 + i)}
    for i, (name, size) in enumerate(zip(names, sizes, strict=True))
  }
  return params, norms, inputs


def of_the_sum(params, norms, inputs):
  def joint(trained):
    losses = {
      name: loss_fn(trained['params'], trained['norms'][name], x)
      for name, x in inputs.items()
    }
    return sum(x[0] for x in losses.values()), {k: v[1] for k, v in losses.items()}

  return jax.grad(joint, has_aux=True)({'params': params, 'norms': norms})


def one_by_one(params, norms, inputs):
  return branches.sum_gradients(loss_fn, params, norms, inputs)


@pytest.mark.parametrize('sizes', [(5,), (5, 5), (4, 4, 4), (5, 3), (4, 4, 2)])
def test_gradients_are_those_of_the_sum(sizes):
  actual = jax.jit(one_by_one)(*arguments(sizes))
  expected = of_the_sum(*arguments(sizes))

  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    actual,
    expected,
  )


def test_branches_may_differ_in_type():
  params, norms, inputs = arguments((5, 5))
  inputs['adv'] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs['adv'])

  def in_float32(params, norm, x):
    return loss_fn(params, norm, jax.tree.map(lambda y: y.astype(jnp.float32), x))

  actual, _ = branches.sum_gradients(in_float32, params, norms, inputs)
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
  expected, _ = of_the_sum(params, norms, rounded)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    actual,
    expected,
  )


@pytest.mark.parametrize('num_branches', [2, 3])
def test_memory_is_that_of_one_branch(num_branches):
  def temp_bytes(function, sizes):
    compiled = jax.jit(function).lower(*arguments(sizes)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  size = 4096
  one = temp_bytes(of_the_sum, (size,))
  sizes = (size,) * num_branches
  # Besides, the images of all branches stand side by side.
  assert temp_bytes(one_by_one, sizes) < one + 2 * num_branches * size * CHANNELS * 4
  assert temp_bytes(of_the_sum, sizes) > 0.9 * num_branches * one
