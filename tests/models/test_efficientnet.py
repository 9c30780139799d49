"""Tests EfficientNet against published counts and against Keras's implementation."""

import functools
import os

os.environ.setdefault('KERAS_BACKEND', 'tensorflow')

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors, models
from advprop_jax.models import efficientnet, initializers

pytestmark = pytest.mark.usefixtures('fast_compilation')

# Trained values with 1000 classes: (all, those of one branch's norms).
# B0-B8 and L2: 5.29 / 7.79 / 9.11 / 12.23 / 19.34 / 30.39 / 43.04 / 66.35 / 87.41 /
# 480.31 M of timm's published results; exact B0-B7: google-research/sam.
PARAMETER_COUNTS = {
  'efficientnet_b0': (5_288_548, 42_016),
  'efficientnet_b1': (7_794_184, 62_048),
  'efficientnet_b2': (9_109_994, 67_568),
  'efficientnet_b3': (12_233_232, 87_296),
  'efficientnet_b4': (19_341_616, 125_200),
  'efficientnet_b5': (30_389_784, 172_736),
  'efficientnet_b6': (43_040_704, 224_432),
  'efficientnet_b7': (66_347_960, 310_720),
  'efficientnet_b8': (87_413_142, 380_032),
  'efficientnet_l0': (140_764_664, 493_904),
  'efficientnet_l1': (272_630_564, 693_920),
  'efficientnet_l2': (480_309_308, 1_090_688),
  # All: the weights published for PyTorch, lite3 and lite4 timm's 8.20 and 13.01 M.
  'efficientnet_lite0': (4_652_008, 42_016),
  'efficientnet_lite1': (5_416_680, 53_664),
  'efficientnet_lite2': (6_092_072, 58_096),
  'efficientnet_lite3': (8_197_096, 76_672),
  'efficientnet_lite4': (13_006_568, 112_368),
  # Source: keras, EfficientNet(0.25, 1.0, blocks_args=...) of the same blocks.
  'efficientnet_tiny': (336_280, 1_344),
}
# Channels of the stem, the seven stages and the head; blocks in all.
# Source: keras.applications and the official table.
CHANNELS = {
  'efficientnet_b3': (40, 24, 32, 48, 96, 136, 232, 384, 1536, 26),
  'efficientnet_b7': (64, 32, 48, 80, 160, 224, 384, 640, 2560, 55),
}


@functools.cache
def shapes(name, image_size=64, **kwargs):
  model = models.create_model(name, **kwargs)
  image = jnp.zeros((1, image_size, image_size, 3))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


def init(model, image_size=32):
  image = jnp.zeros((1, image_size, image_size, 3))
  key = initializers.host_key(jax.random.key(0))
  return jax.jit(lambda: model.init(key, image, train=False))()


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_every_size_has_a_golden_count():
  assert PARAMETER_COUNTS.keys() == efficientnet.VARIANTS.keys()


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      x, marks=[pytest.mark.large] * (x in ('efficientnet_l0', 'efficientnet_l2'))
    )
    for x in PARAMETER_COUNTS
  ],
)
def test_parameter_count_is_the_published_one(name):
  variables = shapes(name)
  total, norms = PARAMETER_COUNTS[name]
  assert count(variables['params']) + count(variables['norm']) == total
  assert count(variables['norm']) == norms
  assert count(variables['batch_stats']) == norms


@pytest.mark.parametrize('name', CHANNELS)
def test_channels_and_blocks_follow_the_rounding_rules(name):
  params = shapes(name)['params']
  num_blocks = sum(key.startswith('blocks_') for key in params)
  outputs = [
    params[f'blocks_{i}']['project_conv']['kernel'].shape[-1] for i in range(num_blocks)
  ]
  stages = tuple(dict.fromkeys(outputs))
  stem, head = (params[f'{x}_conv']['kernel'].shape[-1] for x in ('stem', 'head'))
  assert (stem, *stages, head, num_blocks) == CHANNELS[name]


def test_initial_weights_have_the_official_spread():
  params = init(models.create_model('efficientnet_b0'))['params']
  block = params['blocks_10']
  expected = {  # Standard deviations; conv: sqrt(2 / (k * k * out)).
    'expand_conv': np.sqrt(2 / 672),
    'depthwise_conv': np.sqrt(2 / 25),
    'project_conv': np.sqrt(2 / 112),
  }
  for name, std in expected.items():
    kernel = np.asarray(block[name]['kernel'])
    np.testing.assert_allclose(kernel.std(), std, rtol=0.03)
    assert np.abs(kernel).max() > 2.5 * std  # Truncation at 2 std would forbid it.
  dense = np.asarray(params['classifier']['kernel'])
  limit = 1 / np.sqrt(1000)
  assert 0.99 * limit < np.abs(dense).max() <= limit
  np.testing.assert_allclose(dense.std(), limit / np.sqrt(3), rtol=0.01)


def test_drop_connect_grows_linearly_over_the_rounded_number_of_blocks():
  model = models.create_model('efficientnet_b1', num_classes=2, width=0.25)
  rates = {}

  def record(next_fun, args, kwargs, context):
    if type(context.module).__name__ == 'MBConv' and context.method_name == '__call__':
      rates[context.module.name] = context.module.drop_rate
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(record):
    jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
  assert [rates[f'blocks_{i}'] for i in range(23)] == pytest.approx(
    [0.2 * i / 23 for i in range(23)]
  )


def small_model(**kwargs):
  model = models.create_model('efficientnet_tiny', num_classes=10, **kwargs)
  image = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3))
  return model, small_variables(), image


@functools.cache
def small_variables():
  """Returns initial weights; none of the options here is heard in them."""
  return init(models.create_model('efficientnet_tiny', num_classes=10))


TRAINING = {'train': True, 'mutable': ['batch_stats']}


def apply(model, variables, image, **kwargs):
  """Returns `model.apply`'s result as one program: op by op it takes far longer."""

  @jax.jit
  def run(variables, image):
    rngs = {'dropout': jax.random.key(2)}
    return model.apply(variables, image, rngs=rngs, **kwargs)

  return run(variables, image)


def test_normalisation_is_the_first_line_of_the_model():
  model, variables, image = small_model(mean=(0.5,) * 3, std=(0.5,) * 3)
  plain, *_ = small_model(mean=(0.0,) * 3, std=(1.0,) * 3)
  np.testing.assert_allclose(
    apply(model, variables, image, train=False),
    apply(plain, variables, image * 2 - 1, train=False),
    atol=1e-5,
  )


def test_bfloat16_keeps_state_and_logits_in_float32():
  model, variables, image = small_model(dtype='bfloat16')
  logits, updated = apply(model, variables, image, **TRAINING)
  assert {x.dtype for x in jax.tree.leaves((variables, logits, updated))} == {
    jnp.dtype('float32')
  }
  exact, *_ = small_model(dtype='float32')
  np.testing.assert_allclose(
    apply(model, variables, image, train=False),
    apply(exact, variables, image, train=False),
    atol=0.05,
  )


def test_reading_and_writing_statistics_are_two_switches():
  model, variables, image = small_model(dropout_rate=0.0, drop_connect_rate=0.0)
  batch_mode = apply(model, variables, image, train=False, use_running_average=False)
  train_mode, updated = apply(model, variables, image, **TRAINING)
  np.testing.assert_allclose(batch_mode, train_mode, atol=1e-6)
  _, untouched = apply(model, variables, image, train=False, mutable=['batch_stats'])
  old = variables['batch_stats']
  jax.tree.map(np.testing.assert_array_equal, untouched['batch_stats'], old)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), updated['batch_stats'], old)
  assert all(jax.tree.leaves(changed))


def outputs_in_training(name, batch_size=256, **rates):
  """Returns what the modules called `name`, and the norms, give in training."""
  model, variables, _ = small_model(**rates)
  image = jax.random.uniform(jax.random.key(1), (batch_size, 32, 32, 3))

  def is_wanted(module, method):
    return method == '__call__' and module.name in (name, 'project_bn')

  _, state = apply(
    model,
    variables,
    image,
    train=True,
    mutable=['batch_stats', 'intermediates'],
    capture_intermediates=is_wanted,
  )
  return jax.tree.map(np.asarray, state['intermediates'])


def test_drop_connect_drops_whole_examples_with_the_rate_of_the_block():
  rate = 0.8
  outputs = outputs_in_training('drop_connect', drop_connect_rate=rate)
  with_shortcut = {x for x in outputs if 'drop_connect' in outputs[x]}
  assert with_shortcut == {'blocks_0', 'blocks_2'}  # Of four.
  for block in with_shortcut:
    (before,) = outputs[block]['project_bn']['__call__']
    (after,) = outputs[block]['drop_connect']['__call__']
    block_rate = rate * int(block[-1]) / 4
    kept = (after != 0).any((1, 2, 3))
    np.testing.assert_allclose(  # All of an example or nothing of it.
      after, before * kept[:, None, None, None] / (1 - block_rate), rtol=1e-5
    )
    # Within four standard deviations of 256 draws.
    assert abs(kept.mean() - (1 - block_rate)) <= 4 * np.sqrt(block_rate / 256)


def test_dropout_before_the_classifier_drops_single_values():
  outputs = outputs_in_training('dropout', batch_size=64, dropout_rate=0.25)
  (after,) = outputs['dropout']['__call__']
  assert after.shape == (64, 320)
  dropped = after == 0
  assert abs(dropped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / dropped.size)
  assert 0 < dropped.mean(0).min() and dropped.mean(0).max() < 1  # Not whole channels,
  assert 0 < dropped.mean(1).min() and dropped.mean(1).max() < 1  # nor whole examples.


def test_sides_may_be_symbolic():
  """One traced program for images of any size, as an export needs it."""
  model, variables, _ = small_model(cpu_kernels=False)
  shape = jax.export.symbolic_shape('b, h, w, 3', constraints=['h >= 32', 'w >= 32'])
  exported = jax.export.export(
    jax.jit(lambda x: model.apply(variables, x, train=False))
  )(jax.ShapeDtypeStruct(shape, jnp.float32))
  for size in ((32, 32), (45, 38)):
    image = jax.random.uniform(jax.random.key(1), (2, *size, 3))
    expected = apply(model, variables, image, train=False)
    np.testing.assert_allclose(exported.call(image), expected, atol=1e-5)


def test_without_cpu_kernels_the_network_is_the_same_and_plain():
  model, variables, image = small_model()
  plain, *_ = small_model(cpu_kernels=False)
  expected = apply(model, variables, image, **TRAINING)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    apply(plain, variables, image, **TRAINING),
    expected,
  )
  jaxpr = str(
    jax.make_jaxpr(lambda v, x: plain.apply(v, x, train=False))(variables, image)
  )
  assert 'custom_vjp' not in jaxpr and 'platform_index' not in jaxpr


def test_too_small_an_image_is_a_one_line_error():
  with pytest.raises(errors.UserError, match=r'31x31 is too small.*allowed: 32'):
    shapes('efficientnet_b0', image_size=31)


def test_unknown_names_list_the_known_ones():
  with pytest.raises(errors.UserError, match='efficientnet_b9.*efficientnet_b8'):
    models.create_model('efficientnet_b9')
  with pytest.raises(errors.UserError, match='gellu.*relu'):
    shapes('efficientnet_b0', activation='gellu')


# Keras's own names of the same layers.
KERAS_BLOCK = {
  'expand_conv': 'expand_conv',
  'expand_bn': 'expand_bn',
  'depthwise_conv': 'dwconv',
  'depthwise_bn': 'bn',
  'se_reduce': 'se_reduce',
  'se_expand': 'se_expand',
  'project_conv': 'project_conv',
  'project_bn': 'project_bn',
}


def keras_layer_names(variant):
  """Yields (path of our layer, name of Keras's layer)."""
  for part in ('conv', 'bn'):
    yield (f'stem_{part}',), f'stem_{part}'
    yield (f'head_{part}',), f'top_{part}'
  yield ('classifier',), 'predictions'
  index = 0
  for i, stage in enumerate(variant.stages):
    repeats = efficientnet.round_repeats(stage.repeats, variant.depth)
    for repeat in range(repeats):
      for ours, theirs in KERAS_BLOCK.items():
        if stage.expand_ratio != 1 or not ours.startswith('expand'):
          letter = chr(ord('a') + repeat)
          yield (f'blocks_{index}', ours), f'block{i + 1}{letter}_{theirs}'
      index += 1


def copy_from_keras(keras_model, variant):
  """Returns our variables with the weights of a Keras model."""
  variables = {'params': {}, 'norm': {}, 'batch_stats': {}}

  def put(collection, path, **leaves):
    node = variables[collection]
    for key in path:
      node = node.setdefault(key, {})
    node.update({k: jnp.asarray(v) for k, v in leaves.items()})

  for path, name in keras_layer_names(variant):
    weights = keras_model.get_layer(name).get_weights()
    if path[-1].endswith('bn'):
      gamma, beta, mean, var = weights
      put('norm', path, scale=gamma, bias=beta)
      put('batch_stats', path, mean=mean, var=var)
    else:
      kernel = weights[0]
      if path[-1] == 'depthwise_conv':
        kernel = kernel.transpose(0, 1, 3, 2)
      put(
        'params', path, kernel=kernel, **({'bias': weights[1]} if weights[1:] else {})
      )
  return variables


def large(*args):
  return pytest.param(*args, marks=pytest.mark.large)


@pytest.mark.parametrize(
  'letter, image_size',
  [
    large('0', 65),
    large('1', 64),
    ('2', 75),
    large('0', 224),
    large('3', 96),
    large('4', 96),
    large('5', 96),
    large('6', 96),
    large('7', 96),
  ],
)
def test_logits_equal_those_of_keras(letter, image_size):
  import keras

  keras.utils.set_random_seed(int(letter))
  keras_model = getattr(keras.applications, f'EfficientNetB{letter}')(
    weights=None, input_shape=(image_size, image_size, 3), classifier_activation=None
  )
  # Random scales and biases, and statistics of the network's own activations: with any
  # others the signal dies or explodes on the way, and nothing could be told apart.
  rng = np.random.default_rng(0)
  for layer in keras_model.layers:
    if type(layer).__name__ == 'BatchNormalization':
      size = layer.gamma.shape
      layer.gamma.assign(rng.uniform(0.5, 1.5, size))
      layer.beta.assign(rng.normal(0, 0.1, size))
      layer.momentum = 0.0
  keras_model(rng.uniform(0, 255, (8, image_size, image_size, 3)), training=True)
  image = rng.uniform(0, 1, (2, image_size, image_size, 3)).astype(np.float32)
  expected = keras_model(image * 255, training=False).numpy()

  name = f'efficientnet_b{letter}'
  # Without pretrained weights Keras divides by 255 and normalises no further.
  model = models.create_model(name, mean=(0.0,) * 3, std=(1.0,) * 3)
  variables = copy_from_keras(keras_model, efficientnet.VARIANTS[name])
  jax.tree.map(  # Every weight of ours has been set, and has Keras's shape.
    lambda ours, theirs: np.testing.assert_equal(ours.shape, theirs.shape),
    shapes(name),
    variables,
  )
  logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
  scale = np.abs(expected).max()
  assert np.abs(expected[0] - expected[1]).max() > 0.1 * scale  # The image is heard.
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * scale)


def test_computing_again_saves_less_for_the_backward_pass():
  """XLA's CPU backend undoes it, so what is counted is what JAX hands over."""

  def saved_bytes(remat_blocks):
    model = models.create_model(
      'efficientnet_tiny', remat_blocks=remat_blocks, dtype=jnp.bfloat16
    )
    image = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.zeros(image.shape), train=False)
    )

    def residuals(variables, image):
      def logits(params, image):
        return model.apply({**variables, 'params': params}, image, train=False)

      return jax.vjp(logits, variables['params'], image)[1]

    saved = jax.eval_shape(residuals, variables, image)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(saved))

  assert saved_bytes(True) < 0.25 * saved_bytes(False)


def test_computing_again_changes_no_result():
  rng = np.random.default_rng(5)
  image = jnp.asarray(rng.uniform(size=(4, 32, 32, 3)), jnp.float32)

  def create(**changes):
    return models.create_model(
      'efficientnet_tiny', num_classes=10, drop_connect_rate=0.3, **changes
    )

  variables = small_variables()

  def gradients(model):
    def loss(params, image):
      logits, updated = model.apply(
        {**variables, 'params': params},
        image,
        train=True,
        rngs={'dropout': jax.random.key(1)},
        mutable=['batch_stats'],
      )
      return jnp.square(logits).sum(), updated

    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    return jax.device_get(jax.jit(grad)(variables['params'], image))

  expected = gradients(create())
  scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale),
    gradients(create(remat_blocks=True)),
    expected,
  )
