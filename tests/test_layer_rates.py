"""Tests what is frozen, and the rates of layers, against optimizers of one layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_train_step
from tiny_model import TinyModel

from advprop_jax import errors, layer_rates, models, optim, parallel

RMSPROP = dict(momentum=0.9, decay=0.9, epsilon=1e-3, weight_decay=0.5)
SGD = dict(momentum=0.9, weight_decay=0.5)


def make_tx(optimizer, factor=1.0):
  def schedule(step):
    return factor * 0.1 / (1.0 + jnp.asarray(step, jnp.float32))

  return optimizer(schedule, **(SGD if optimizer is optim.sgd else RMSPROP))


def array(seed, size=3):
  return jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)


def create_trained(seed=0, num_blocks=11):
  """Returns numbers with the names of a network; the tenth block follows the ninth."""
  tops = ['stem_conv', *(f'blocks_{i}' for i in range(num_blocks)), 'head_conv']
  params = {x: {'kernel': array(seed + i)} for i, x in enumerate(tops)}
  params['classifier'] = {'kernel': array(seed + 50), 'bias': array(seed + 51)}
  norms = {
    branch: {'stem_bn': {'scale': array(seed + i)}, 'blocks_0': {'bn': array(i)}}
    for i, branch in enumerate(['clean', 'adv'], start=60)
  }
  return {'params': params, 'norms': norms}


@jax.jit
def gradients(trained, seed):
  """Returns gradients that depend on the values."""
  return jax.tree.map(lambda x: jnp.sin(3.0 * x + jnp.float32(seed)), trained)


def train(tx, trained, num_steps=3):
  state = tx.init(trained)
  for i in range(num_steps):
    updates, state = tx.update(gradients(trained, i), state, trained)
    trained = optax.apply_updates(trained, updates)
  return trained, state


def by_name(tree):
  return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize('optimizer', [optim.sgd, optim.rmsprop])
def test_what_is_frozen_stays_and_the_rest_learns_as_without(optimizer):
  start = create_trained()
  patterns = ('stem_*', 'blocks_0/*', 'classifier/bias')
  found, state = train(layer_rates.freeze(make_tx(optimizer), patterns), start)
  expected, whole_state = train(make_tx(optimizer), start)
  frozen = {
    name for name, x in by_name(start).items() if (x == by_name(found)[name]).all()
  }
  words = ('stem_', 'blocks_0', 'bias')
  assert frozen == {name for name in by_name(start) if any(x in name for x in words)}
  assert {name for name in frozen if 'norms' in name} == {
    f"['norms']['{branch}']{name}"
    for branch in ('clean', 'adv')
    for name in ("['stem_bn']['scale']", "['blocks_0']['bn']")
  }
  for name in by_name(start).keys() - frozen:
    np.testing.assert_array_equal(by_name(found)[name], by_name(expected)[name])
  num_values = [sum(x.size for x in jax.tree.leaves(s)) for s in (state, whole_state)]
  num_moments = 1 if optimizer is optim.sgd else 2
  assert num_values[1] - num_values[0] == num_moments * 3 * len(frozen)


def test_nothing_frozen_and_no_decay_are_the_optimizer_itself():
  tx = make_tx(optim.sgd)
  assert layer_rates.decay(layer_rates.freeze(tx, ()), 1.0) is tx


@pytest.mark.parametrize('optimizer', [optim.sgd, optim.rmsprop])
def test_a_layer_learns_as_with_a_rate_of_its_own(optimizer):
  start = create_trained(num_blocks=2)
  found, state = train(layer_rates.decay(make_tx(optimizer), 0.75), start)
  above = {'stem': 4, 'blocks_0': 3, 'blocks_1': 2, 'head': 1, 'classifier': 0}
  for layer, num_above in above.items():
    alone, _ = train(make_tx(optimizer, 0.75**num_above), start)
    names = [x for x in by_name(start) if f"['{layer}" in x]
    assert names
    for name in names:
      change = by_name(found)[name] - by_name(start)[name]
      expected = by_name(alone)[name] - by_name(start)[name]
      np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-7)
  # A run can go on with another value.
  assert jax.tree.structure(state) == jax.tree.structure(make_tx(optimizer).init(start))


@pytest.mark.parametrize('optimizer', [optim.sgd, optim.rmsprop])
def test_one_update_is_exactly_the_factor_times_the_one_without(optimizer):
  start = create_trained()
  tx, slow = make_tx(optimizer), layer_rates.decay(make_tx(optimizer), 0.5)
  updates, _ = tx.update(gradients(start, 0), tx.init(start), start)
  slower, _ = slow.update(gradients(start, 0), slow.init(start), start)
  factors = layer_rates.factors(start, 0.5)
  # Stem, eleven blocks, head and classifier: 13 layers lie above the stem.
  assert factors['norms']['adv']['stem_bn']['scale'] == 0.5**13
  assert factors['params']['blocks_10']['kernel'] == 0.25
  jax.tree.map(
    lambda a, factor, b: np.testing.assert_array_equal(a * np.float32(factor), b),
    *(updates, factors, slower),
  )


def abstract(name, image_size=32):
  model = TinyModel() if name == 'tests' else models.create_model(name, num_classes=5)
  image = jnp.zeros([1, image_size, image_size, 3])
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  return {'params': variables['params'], 'norms': {'clean': variables['norm']}}


@pytest.mark.parametrize(
  'name, expected',
  [
    (
      'efficientnet_tiny',
      {'stem_conv': 6, 'stem_bn': 6, 'head_conv': 1, 'head_bn': 1, 'classifier': 0}
      | {f'blocks_{i}': 5 - i for i in range(4)},
    ),
    (
      'resnet_tiny',
      {'stem_conv': 4, 'stem_bn': 4, 'classifier': 0}
      | {f'blocks_{i}': 3 - i for i in range(3)},
    ),
    ('tests', {'conv': 1, 'bn': 1, 'classifier': 0}),
  ],
)
def test_the_order_of_the_layers_is_that_of_the_network(name, expected):
  factors = layer_rates.factors(abstract(name), 0.5)
  found = {}
  for layers in (factors['params'], *factors['norms'].values()):
    for layer, tree in layers.items():
      found.setdefault(layer, set()).update(jax.tree.leaves(tree))
  assert found == {layer: {0.5**above} for layer, above in expected.items()}


@pytest.mark.parametrize(
  'patterns, message',
  [
    (('*/scale', 'stem'), "has 'stem', which .* such as .*; did you mean 'stem_bn/"),
    (('blocks_1',), "did you mean 'blocks_1/\\*'\\? allowed: patterns of the names in"),
    (('norms/*',), ' in stem_bn, stem_conv, blocks_0 ... blocks_10, head_conv, clas'),
    (('*/scale', '*/kernel', '*/bias', '*/bn'), 'and nothing is left to train; allow'),
  ],
)
def test_patterns_that_cannot_be_meant_are_one_line(patterns, message):
  with pytest.raises(errors.UserError, match=message) as e:
    layer_rates.check_frozen(create_trained(), patterns)
  assert '\n' not in str(e.value)


def test_what_is_special_is_described():
  trained = create_trained()
  assert layer_rates.describe(trained, (), 1.0) == []
  layer_rates.check_frozen(trained, ('stem_*', '*/bias'))
  assert layer_rates.describe(trained, ('stem_*', '*/bias'), 0.5) == [
    'frozen by optim.freeze: 12 of 57 values',
    'the learning rate is multiplied by 0.000244 in the lowest layer that is trained, '
    'by 1 in the uppermost',
  ]


def test_a_frozen_network_costs_no_backward_pass_to_its_weights():
  """The convolution's weights have one convolution of three, the image's none."""
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    parallel.shard(test_train_step.batch(0)),
  )
  streams, costs = (test_train_step.clean(),), []
  for patterns in ((), ('conv/*', 'bn/*')):
    tx = layer_rates.freeze(make_tx(optim.sgd), patterns)
    state = jax.eval_shape(
      lambda tx=tx: test_train_step.create_state(TinyModel(), tx, streams)
    )
    step = test_train_step.create_step(TinyModel(), tx, streams, frozen=patterns)
    compiled = step.lower(state, batch).compile()
    costs.append(
      (compiled.cost_analysis()['flops'], compiled.as_text().count(' convolution('))
    )
  assert [x for _, x in costs] == [2, 1] and costs[1][0] < 0.6 * costs[0][0]
