"""Tests ResNets against torchvision's: see golden_resnet.py."""

import json
import pathlib

import golden_resnet
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors, models
from advprop_jax.models import initializers, resnet

GOLDEN = json.loads((pathlib.Path(__file__).parent / 'golden_resnet.json').read_text())


def shapes(model, image_size=64):
  image = jnp.zeros((1, image_size, image_size, 3))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


def fill(variables):
  """Returns the arrays whose values are a function of their names."""

  def value(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return golden_resnet.value(name, x.shape)

  return jax.tree_util.tree_map_with_path(value, variables)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', GOLDEN['counts'])
def test_parameter_count_is_torchvisions(name):
  variables = shapes(models.create_model(name))
  total = count(variables['params']) + count(variables['norm'])
  assert total == GOLDEN['counts'][name]


def test_the_published_counts_are_among_them():
  """He et al. and Xie et al. give millions; the exact ones are torchvision's."""
  published = {'resnet_50': 25.6, 'resnet_101': 44.5, 'resnet_152': 60.2}
  published |= {'resnext_50_32x4d': 25.0}
  for name, millions in published.items():
    assert abs(GOLDEN['counts'][name] / 1e6 - millions) < 0.06
  assert GOLDEN['counts'].keys() == resnet.VARIANTS.keys() - {'resnet_tiny'}


@pytest.fixture(scope='module')
def networks():
  """Returns {name: (model, variables)} of the networks with golden logits."""
  result = {}
  for name, (stage_sizes, groups, group_width) in golden_resnet.NETWORKS.items():
    model = resnet.ResNet(
      golden_resnet.NUM_CLASSES, stage_sizes, groups, group_width, stem_features=64
    )
    result[name] = (
      model,
      jax.tree_util.tree_map_with_path(
        lambda path, x: golden_resnet.value(
          jax.tree_util.keystr(path, simple=True, separator='/'), x.shape
        ),
        shapes(model),
      ),
    )
  return result


@pytest.mark.parametrize('name', golden_resnet.NETWORKS)
def test_logits_equal_those_of_torchvision(name, networks, fast_compilation):
  model, variables = networks[name]

  @jax.jit
  def call(variables, image):
    inference = model.apply(variables, image, train=False)
    training, updated = model.apply(
      variables, image, train=True, mutable=['batch_stats']
    )
    return inference, training, updated['batch_stats']

  inference, training, stats = call(variables, golden_resnet.image())
  logits = GOLDEN['logits']
  # torchvision sums in another order.
  close = dict(rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(inference, logits[f'{name}/inference'], **close)
  np.testing.assert_allclose(training, logits[f'{name}/training'], **close)
  last = stats[f'blocks_{sum(golden_resnet.NETWORKS[name][0]) - 1}']
  np.testing.assert_allclose(
    last['bn_3']['mean'][:20], logits[f'{name}/running_mean'], **close
  )


def test_a_block_is_at_first_its_shortcut():
  model = models.create_model('resnet_tiny', num_classes=10)
  key = initializers.host_key(jax.random.key(0))
  image = jnp.zeros((1, 32, 32, 3))
  variables = jax.jit(lambda: model.init(key, image, train=False))()
  scales = {k: x['bn_3']['scale'] for k, x in variables['norm'].items() if 'bn_3' in x}
  assert len(scales) == 3 and not any(x.any() for x in scales.values())
  # Source: SAT, N(0, 0.01).
  assert abs(variables['params']['classifier']['kernel'].std() - 0.01) < 0.001


def test_every_site_has_the_activation_also_after_the_addition():
  """A trained activation has a parameter at each: of 3 blocks 3, and the stem's."""
  model = models.create_model('resnet_tiny', activation='smooth_relu')
  params = shapes(model)['params']
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree.leaves_with_path(params)
  ]
  sites = [path for path in paths if path.endswith('activation')]
  assert len(sites) == 3 * 3 + 1
  assert 'blocks_0/activation/activation' in sites


def test_too_small_an_image_is_refused():
  model = models.create_model('resnet_tiny')
  with pytest.raises(errors.UserError, match='31x32 is too small for ResNet'):
    model.init(jax.random.key(0), jnp.zeros((1, 31, 32, 3)), train=False)


def test_computing_again_and_native_operations_change_no_gradient(fast_compilation):
  image = jnp.asarray(golden_resnet.image()[:2, :32, :32])
  grads = {}
  for name, change in {
    'as it is': {},
    'remat': {'remat_blocks': True},
    'native': {'cpu_kernels': False},
  }.items():
    model = models.create_model('resnet_tiny', num_classes=5, **change)
    variables = fill(shapes(model))
    grads[name] = jax.jit(
      jax.grad(lambda x, m=model, v=variables: m.apply(v, x, train=False).sum())
    )(image)
  for other in ('remat', 'native'):
    np.testing.assert_allclose(grads[other], grads['as it is'], rtol=1e-3, atol=1e-5)
