"""Tests convolutions, forward and backward, against flax's `nn.Conv`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors
from advprop_jax.models import activations, conv, norm

pytestmark = pytest.mark.usefixtures('fast_compilation')

# Height and width: even, odd, not square, smaller than the kernel, with rows that make
# whole runs of the weight gradient and rows that do not.
SIZES = [(8, 8), (7, 9), (14, 6), (33, 20), (19, 19), (2, 3), (1, 1)]
DEPTHWISE = [(3, 1), (3, 2), (5, 1), (5, 2), (3, 3)]
TOLERANCE = {'float32': 2e-6, 'bfloat16': 2e-2}


def ours_and_theirs(
  channels, features, kernel_size, stride, groups, dtype, cpu_kernels=True
):
  ours = conv.Conv(
    features,
    kernel_size,
    stride,
    groups,
    use_bias=True,
    dtype=dtype,
    cpu_kernels=cpu_kernels,
  )
  theirs = nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=stride,
    feature_group_count=groups,
    dtype=dtype,
  )
  return ours, theirs


def assert_same(size, channels, *settings, **kwargs):
  ours, theirs = ours_and_theirs(channels, *settings, **kwargs)
  dtype = ours.dtype
  rng = np.random.default_rng(0)

  def draw(like):
    return jnp.asarray(rng.normal(size=like.shape), like.dtype)

  x = draw(jax.ShapeDtypeStruct((2, *size, channels), dtype))
  shapes = jax.eval_shape(theirs.init, jax.random.key(1), x)
  # Same names, shapes and types: checkpoints are exchangeable.
  assert jax.eval_shape(ours.init, jax.random.key(1), x) == shapes
  variables = jax.tree.map(draw, shapes)
  g = draw(jax.eval_shape(theirs.apply, variables, x))

  def results(layer, variables, x, g):
    y, vjp = jax.vjp(layer.apply, variables, x)
    return jax.tree.leaves((y, vjp(g)))

  both = jax.jit(lambda *args: [results(layer, *args) for layer in (ours, theirs)])
  for a, b in zip(*both(variables, x, g), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.parametrize('kernel_size, stride', DEPTHWISE)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_depthwise_equals_flax(size, kernel_size, stride):
  assert_same(size, 6, 6, kernel_size, stride, 6, 'float32')


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_pointwise_equals_flax(size):
  assert_same(size, 6, 10, 1, 1, 1, 'float32')


@pytest.mark.parametrize('kernel_size, stride', [(3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_stem_equals_flax(size, kernel_size, stride):
  assert_same(size, 3, 8, kernel_size, stride, 1, 'float32')


@pytest.mark.parametrize('kernel_size, stride', [(3, 2), (1, 2)])
def test_other_convolutions_equal_flax(kernel_size, stride):
  assert_same((9, 8), 6, 10, kernel_size, stride, 1, 'float32')


@pytest.mark.parametrize(
  'channels, features, kernel_size, stride, groups',
  [(8, 16, 3, 1, 4), (8, 16, 3, 2, 4), (12, 6, 1, 1, 2), (4, 8, 3, 1, 4)],
)
def test_groups_equal_flax(channels, features, kernel_size, stride, groups):
  """ResNeXt's; the last has one channel a group, and two filters for each."""
  assert_same((9, 8), channels, features, kernel_size, stride, groups, 'float32')


def test_groups_must_divide_the_channels():
  with pytest.raises(errors.UserError, match='6 channels to 8 .* in 4 groups'):
    conv.Conv(8, groups=4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 6)))


@pytest.mark.parametrize(
  'channels, features, kernel_size, stride, groups',
  [
    (6, 6, 3, 1, 6),
    (6, 6, 5, 2, 6),
    (6, 10, 1, 1, 1),
    (3, 8, 3, 2, 1),
    (6, 9, 3, 1, 3),
  ],
)
def test_bfloat16_equals_flax(channels, features, kernel_size, stride, groups):
  assert_same((14, 17), channels, features, kernel_size, stride, groups, 'bfloat16')


@pytest.mark.parametrize('kernel_size, stride', [(3, 2), (5, 1)])
def test_bfloat16_image_gradient_of_the_stem_is_rounded_once(kernel_size, stride):
  rng = np.random.default_rng(1)
  x, kernel = (
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    for shape in ((2, 20, 20, 3), (kernel_size, kernel_size, 3, 32))
  )

  def image_grad(conv, dtype):
    y, vjp = jax.vjp(lambda x: conv(x, kernel.astype(dtype), stride), x.astype(dtype))
    g = np.random.default_rng(2).normal(size=y.shape)
    return np.asarray(vjp(jnp.asarray(g, jnp.bfloat16).astype(dtype))[0], np.float64)

  exact = image_grad(conv.native_conv, jnp.float32)
  error = image_grad(conv.patches_conv, jnp.bfloat16) - exact
  once = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64) - exact
  # When the sums were rounded tap by tap they were off by 1.6 and 3.8 times that.
  assert np.square(error).mean() < 1.05**2 * np.square(once).mean()


def test_bfloat16_sums_are_float32():
  # 0.01 vanishes beside 4 in bfloat16, and 24 times 0.01 does not.
  x = jnp.full((1, 5, 5, 1), 0.01, jnp.bfloat16).at[0, 0, 0, 0].set(4)
  kernel = jnp.ones((5, 5, 1, 1), jnp.bfloat16)
  y = conv.depthwise_conv(x, kernel, 1)[0, 2, 2, 0]
  np.testing.assert_allclose(np.float32(y), 4.24, atol=0.02)


# One for each kind.
KINDS = [(6, 6, 3, 2, 6), (6, 10, 1, 1, 1), (3, 8, 3, 2, 1), (6, 9, 3, 2, 3)]


@pytest.mark.parametrize(
  'channels, features, kernel_size, stride, groups', KINDS, ids=str
)
def test_native_convolutions_equal_flax(
  channels, features, kernel_size, stride, groups, monkeypatch
):
  """The path of TPU and GPU, gradients included, here on the CPU."""
  monkeypatch.setattr(
    conv.lax, 'platform_dependent', lambda *args, cpu, default: default(*args)
  )
  assert_same((9, 8), channels, features, kernel_size, stride, groups, 'float32')


@pytest.mark.parametrize(
  'channels, features, kernel_size, stride, groups', KINDS, ids=str
)
def test_without_cpu_kernels_the_convolution_is_native_and_has_all_derivatives(
  channels, features, kernel_size, stride, groups
):
  settings = (channels, features, kernel_size, stride, groups, 'float32')
  assert_same((9, 8), *settings, cpu_kernels=False)
  layer, theirs = ours_and_theirs(*settings, cpu_kernels=False)
  x = jax.random.normal(jax.random.key(0), (2, 9, 8, channels))
  variables = layer.init(jax.random.key(1), x)
  lowered = jax.jit(layer.apply).lower(variables, x).as_text()
  assert lowered.count('stablehlo.convolution') == 1
  forward = [
    jax.jvp(lambda x, f=f: f.apply(variables, x), (x,), (x * x,))[1]
    for f in (layer, theirs)
  ]
  np.testing.assert_allclose(*forward, atol=1e-5)


@pytest.mark.parametrize(
  'channels, features, kernel_size, stride, groups', KINDS, ids=str
)
def test_tpu_and_gpu_keep_native_convolutions(
  channels, features, kernel_size, stride, groups
):
  layer, _ = ours_and_theirs(channels, features, kernel_size, stride, groups, 'float32')
  x = jnp.zeros((2, 8, 8, channels))
  variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))
  grads = jax.grad(lambda v, x: layer.apply(v, x).sum(), argnums=(0, 1))

  def count(platform):
    lowered = jax.jit(grads).trace(variables, x).lower(lowering_platforms=(platform,))
    return lowered.as_text().count('stablehlo.convolution')

  # The gradients to image and to kernel; the forward pass is not needed for them.
  on_cpu = 2 if 1 < groups < channels else 0  # XLA has the groups between.
  assert (count('tpu'), count('cuda'), count('cpu')) == (2, 2, on_cpu)


def test_a_second_call_outside_jit_compiles_nothing():
  class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = conv.Conv(8, 3, stride=2)(x)
      x = conv.Conv(8, 5, groups=8)(x)
      x = norm.BatchNorm(0.9, 1e-3, activation=activations.ACTIVATIONS['silu'])(
        x, use_running_average=False
      )
      return conv.Conv(4)(x)

  x = jnp.ones((2, 14, 14, 3))
  variables = Layers().init(jax.random.key(0), x)
  compilations = []

  def listen(event, *args, **kwargs):
    if event.endswith('backend_compile_duration'):
      compilations.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    counts = []
    for _ in range(2):
      jax.grad(lambda v, x: Layers().apply(v, x).sum(), argnums=(0, 1))(variables, x)
      counts.append(len(compilations))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert 0 < counts[0] == counts[1]
