"""Tests the step: what each branch sees, and that devices add up to one large batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import TinyModel

from advprop_jax import branches, losses, optim, parallel, train_state
from advprop_jax.attacks import gradient
from advprop_jax.models import norm
from advprop_jax.streams import Stream
from advprop_jax.train_step import make_train_step

pytestmark = pytest.mark.usefixtures('fast_compilation')

IMAGE_SIZE, NUM_CLASSES, BATCH_SIZE = 8, 5, 16


def pgd(**changes):
  settings = {
    'num_classes': NUM_CLASSES,
    'epsilon': 8 / 255,
    'step_size': 4 / 255,
    'num_steps': 3,
    'targeted': False,
    'prob_start_from_clean': 1.0,
  }
  return gradient.make_pgd(**{**settings, **changes})


def clean():
  return Stream('clean', 'image', 'label', None, 'running', 'clean', 1.0)


def adv(branch='adv', weight=1.0, statistics='running', **changes):
  return Stream('adv', 'image', 'label', pgd(**changes), statistics, branch, weight)


def batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.uniform(size=(BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)).astype('f'),
    'label': rng.integers(0, NUM_CLASSES, BATCH_SIZE).astype(np.int32),
    'mask': np.ones(BATCH_SIZE, bool),
  }


def create_state(model, tx, streams):
  return parallel.replicate(
    train_state.create_train_state(
      model,
      tx,
      branch_names=tuple(dict.fromkeys(s.branch for s in streams)),
      image_size=IMAGE_SIZE,
      seed=0,
      keep_ema=True,
    )
  )


def create_step(model, tx, streams, **kwargs):
  settings = {'label_smoothing': 0.1, 'ema_decay': 0.9} | kwargs
  step = make_train_step(model, tx, streams, **settings)
  return parallel.data_parallel(step, split=(False, True), donate_state=True)


def run(streams, num_steps=1, model=None, **kwargs):
  """Returns (state, metrics) after some steps on all four devices."""
  model = model or TinyModel(**parallel.statistics_scope('all'))
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=1e-3)
  step = create_step(model, tx, streams, **kwargs)
  state = create_state(model, tx, streams)
  for i in range(num_steps):
    state, metrics = step(state, parallel.shard(batch(i)))
  return state, jax.device_get(metrics)


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_trees_close(a, b, atol):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def by_hand(streams, num_steps, statistics):
  """Returns the state's trees after plain AdvProp on one device, written out.

  The paper's algorithm 1 with flax and optax alone: no stream, no `make_train_step`.
  """
  model = TinyModel()
  tx = optax.chain(
    optax.add_decayed_weights(1e-3, mask={'params': True, 'norms': False}),
    optax.sgd(0.1, momentum=0.9, nesterov=True),
  )

  def logits_of(trained, stats, branch, x, **mode):
    variables = {
      'params': trained['params'],
      'norm': trained['norms'][branch],
      'batch_stats': stats[branch],
    }
    return model.apply(variables, x, **mode, mutable=['batch_stats'])

  def ce(logits, y, smoothing):
    target = optax.smooth_labels(jax.nn.one_hot(y, NUM_CLASSES), smoothing)
    return optax.softmax_cross_entropy(logits, target)

  @jax.jit
  def step(trained, stats, opt_state, x, y):
    def attacked(z):
      mode = {'train': False, 'use_running_average': statistics == 'running'}
      return ce(logits_of(trained, stats, 'adv', z, **mode)[0], y, 0.0).sum()

    x_adv = x
    for _ in range(3):
      x_adv = x_adv + 4 / 255 * jnp.sign(jax.grad(attacked)(x_adv))
      x_adv = jnp.clip(jnp.clip(x_adv, x - 8 / 255, x + 8 / 255), 0, 1)

    def joint(trained):
      clean_logits, clean_new = logits_of(trained, stats, 'clean', x, train=True)
      adv_logits, adv_new = logits_of(trained, stats, 'adv', x_adv, train=True)
      loss = ce(clean_logits, y, 0.1).mean() + ce(adv_logits, y, 0.1).mean()
      return loss, {'clean': clean_new['batch_stats'], 'adv': adv_new['batch_stats']}

    grads, stats = jax.grad(joint, has_aux=True)(trained)
    updates, opt_state = tx.update(grads, opt_state, trained)
    return optax.apply_updates(trained, updates), stats, opt_state

  first = create_state(model, tx, streams)
  trained = {'params': first.params, 'norms': first.norms}
  stats, opt_state = first.batch_stats, first.opt_state
  for i in range(num_steps):
    x, y = batch(i)['image'], batch(i)['label']
    trained, stats, opt_state = step(trained, stats, opt_state, x, y)
  return trained['params'], trained['norms'], stats


@pytest.mark.parametrize('statistics', ['running', 'batch'])
def test_four_devices_equal_one_large_batch_written_out_by_hand(statistics):
  streams = (clean(), adv(statistics=statistics))
  state, _ = run(streams, num_steps=3)
  params, norms, stats = by_hand(streams, num_steps=3, statistics=statistics)
  assert_trees_close(
    (state.params, state.norms, state.batch_stats), (params, norms, stats), atol=1e-5
  )
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_clean_statistics_do_not_depend_on_the_attack():
  weak, _ = run((clean(), adv(epsilon=1 / 255)))
  strong, _ = run((clean(), adv(epsilon=64 / 255, step_size=64 / 255)))
  assert_trees_equal(weak.batch_stats['clean'], strong.batch_stats['clean'])
  differs = jax.tree.map(
    lambda a, b: bool((a != b).all()),
    weak.batch_stats['adv'],
    strong.batch_stats['adv'],
  )
  assert all(jax.tree.leaves(differs))


def test_without_an_attack_both_branches_agree():
  state, metrics = run((clean(), adv(epsilon=0.0)), num_steps=2)
  assert_trees_equal(state.batch_stats['clean'], state.batch_stats['adv'])
  assert_trees_equal(state.norms['clean'], state.norms['adv'])
  assert metrics['clean_loss'] == metrics['adv_loss']


@pytest.mark.parametrize('statistics', ['running', 'batch'])
def test_the_attack_raises_the_loss_it_attacks(statistics):
  _, metrics = run((clean(), adv(statistics=statistics)))
  assert metrics['adv_loss'] > metrics['clean_loss']


def test_the_attack_goes_through_the_norm_of_its_stream():
  # The clean branch's norm is made blind; an attack through it could find no gradient.
  streams = (clean(), adv(num_steps=1))
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = optim.sgd(optax.constant_schedule(0.0), momentum=0.0, weight_decay=0.0)
  state = create_state(model, tx, streams)
  blind = jax.tree.map(jnp.zeros_like, state.norms['clean'])
  state = state.replace(norms={'clean': blind, 'adv': state.norms['adv']})
  logits = TinyModel().apply(
    branches.variables(state.params, state.norms, state.batch_stats, 'adv'),
    batch()['image'],
    train=False,
    use_running_average=False,
  )
  unattacked = losses.cross_entropy(logits, batch()['label']).mean()
  step = create_step(model, tx, streams, label_smoothing=0.0)
  _, metrics = step(state, parallel.shard(batch()))
  assert float(metrics['adv_loss']) > float(unattacked) + 1e-3


@pytest.mark.parametrize('statistics', ['running', 'batch'])
def test_a_stream_of_weight_zero_changes_no_shared_weight(statistics):
  # So the attack itself leaves no trace: no gradient, no statistics of the clean norm.
  vanilla, _ = run((clean(),), num_steps=2)
  with_attack, _ = run((clean(), adv(weight=0.0, statistics=statistics)), num_steps=2)
  assert_trees_close(vanilla.params, with_attack.params, atol=1e-7)
  assert_trees_close(
    vanilla.batch_stats['clean'], with_attack.batch_stats['clean'], atol=1e-7
  )


def test_streams_of_one_norm_are_normalised_as_one_batch():
  # The baseline of the paper: the shared norm sees the mixture, once per step.
  state, _ = run((clean(), adv(branch='clean', epsilon=0.0)))
  alone, _ = run((clean(),))
  # The mixture of a batch with itself has the statistics of the batch.
  assert list(state.batch_stats) == ['clean']
  assert_trees_close(state.batch_stats, alone.batch_stats, atol=1e-6)
  mixed, _ = run((clean(), adv(branch='clean', epsilon=64 / 255, step_size=64 / 255)))
  assert not np.allclose(
    mixed.batch_stats['clean']['bn']['mean'], state.batch_stats['clean']['bn']['mean']
  )


def test_any_number_of_branches_can_be_trained():
  third = adv(branch='strong', weight=0.5, epsilon=32 / 255)._replace(name='strong')
  state, metrics = run((clean(), adv(), third), num_steps=2)
  assert set(state.batch_stats) == set(state.norms) == {'clean', 'adv', 'strong'}
  assert metrics['loss'] == pytest.approx(
    metrics['clean_loss'] + metrics['adv_loss'] + 0.5 * metrics['strong_loss'], rel=1e-5
  )
  means = [np.asarray(s['bn']['mean']) for s in state.batch_stats.values()]
  assert not np.allclose(means[0], means[1]) and not np.allclose(means[1], means[2])


def test_random_numbers_differ_between_devices_and_steps():
  def draw(rng, step, x):
    return jax.random.uniform(parallel.device_rng(rng, step), x.shape)

  step = parallel.data_parallel(draw, split=(False, False, True), split_outputs=True)
  rng, x = jax.random.key(0), np.zeros((4, 3))
  numbers = np.concatenate([np.asarray(step(rng, np.int32(i), x)) for i in range(3)])
  assert len(np.unique(numbers)) == 4 * 3 * 3


def test_moving_average_covers_weights_norms_and_statistics():
  state, _ = run((clean(), adv()), ema_decay=0.0)
  assert_trees_equal(
    state.ema,
    {'params': state.params, 'norms': state.norms, 'batch_stats': state.batch_stats},
  )
  slow, _ = run((clean(), adv()), ema_decay=0.9)
  # With the first step the weight of the old value is (1 + 1) / (10 + 1).
  first = create_state(TinyModel(), optax.identity(), (clean(), adv()))
  expected = jax.tree.map(
    lambda old, new: (2 * old + 9 * new) / 11, first.batch_stats, slow.batch_stats
  )
  assert_trees_close(slow.ema['batch_stats'], expected, atol=1e-6)


def test_nothing_is_compiled_after_the_first_step():
  model = TinyModel(dropout_rate=0.1)
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.0)
  streams = (clean(), adv(targeted=True, prob_start_from_clean=0.2))
  step = create_step(model, tx, streams)
  state = create_state(model, tx, streams)
  state, _ = step(state, parallel.shard(batch(0)))
  compilations = []

  def listen(event, secs, **kwargs):
    if 'compile' in event or 'trac' in event:
      compilations.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for i in range(1, 4):
      state, _ = step(state, parallel.shard(batch(i)))
    assert compilations == []
    jax.jit(lambda x: x + 1)(np.float32(i))
    assert compilations  # The listener does hear of compilations.
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_state_is_donated():
  model, tx = TinyModel(), optim.sgd(lambda s: 0.1, momentum=0.9, weight_decay=0.0)
  streams = (clean(), adv())
  state = create_state(model, tx, streams)
  step = create_step(model, tx, streams)
  step(state, parallel.shard(batch()))
  donated = [x.is_deleted() for x in jax.tree.leaves((state.params, state.norms))]
  assert all(donated)


def draws_of_attacks(**options):
  """Returns what a stand-in for the attack draws, of every device, step and part."""
  drawn = []

  def noise(logits_fn, image, label, rng):
    x = jax.random.uniform(rng, image.shape)
    jax.debug.callback(lambda v: drawn.append(float(v)), x.mean())
    return x

  run((clean(), adv()._replace(attack=noise)), **options)
  jax.effects_barrier()
  return drawn


def test_the_step_draws_anew_on_every_device_and_at_every_step():
  drawn = draws_of_attacks(num_steps=2)
  assert len(drawn) == 8 and len(set(drawn)) == 8


def test_dropout_acts_in_training():
  scope = parallel.statistics_scope('all')
  without, _ = run((clean(),), model=TinyModel(**scope))
  with_dropout, _ = run((clean(),), model=TinyModel(dropout_rate=0.5, **scope))
  name = ('classifier', 'kernel')
  a, b = (s.params[name[0]][name[1]] for s in (without, with_dropout))
  assert not np.allclose(a, b, atol=1e-5)


def test_metrics_are_those_of_the_whole_batch():
  _, metrics = run((clean(),), label_smoothing=0.0)
  model = TinyModel()
  state = create_state(model, optax.identity(), (clean(),))
  logits = model.apply(
    branches.variables(state.params, state.norms, state.batch_stats, 'clean'),
    batch(0)['image'],
    train=False,
    use_running_average=False,
  )
  label = batch(0)['label']
  expected = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
  np.testing.assert_allclose(metrics['clean_loss'], expected, rtol=1e-5)
  assert metrics['clean_top1'] == np.mean(np.asarray(logits).argmax(-1) == label)


def test_streams_may_have_images_and_labels_of_their_own():
  other = {'few': batch(5)['image'][:8], 'few_label': batch(5)['label'][:8]}
  second = clean()._replace(name='few', image_key='few', label_key='few_label')
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = optax.sgd(0.1)
  state = create_state(model, tx, (clean(), second))
  step = create_step(model, tx, (clean(), second))
  _, metrics = step(state, parallel.shard({**batch(0), **other}))
  assert (
    np.isfinite(metrics['few_loss']) and metrics['few_loss'] != metrics['clean_loss']
  )


def with_one_nan(tree):
  """Returns the tree with NaN as one element of its last array of floats."""
  leaves, structure = jax.tree.flatten(tree)
  i = max(i for i, x in enumerate(leaves) if x.dtype == jnp.float32)
  leaves[i] = leaves[i].at[(0,) * leaves[i].ndim].set(np.nan)
  return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize('place', ['nowhere', 'image', 'batch_stats', 'opt_state'])
def test_a_nan_is_seen_also_where_the_loss_is_finite(place):
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=1e-3)
  state, examples = create_state(model, tx, (clean(),)), batch()
  if place == 'image':
    examples['image'][3, 2, 1, 0] = np.nan
  elif place != 'nowhere':
    state = state.replace(**{place: with_one_nan(getattr(state, place))})
  _, metrics = create_step(model, tx, (clean(),))(state, parallel.shard(examples))
  assert bool(metrics['all_finite']) == (place == 'nowhere')
  # In training neither running statistics nor momentum enter the loss.
  assert place == 'image' or np.isfinite(metrics['loss'])


class UncoupledModel(nn.Module):
  """Normalises with running statistics also in training: no example sees another."""

  num_classes: int = NUM_CLASSES

  @nn.compact
  def __call__(self, image, *, train, use_running_average=None):
    x = nn.Conv(8, (3, 3), strides=2, name='conv')(image - 0.5)
    bn = norm.BatchNorm(momentum=0.9, epsilon=1e-3, name='bn')
    x = nn.silu(bn(x, use_running_average=True)).mean((1, 2))
    return nn.Dense(self.num_classes, name='classifier')(x)


@pytest.mark.parametrize('num_parts', [2, 4])
def test_parts_of_a_batch_are_the_batch_where_norms_do_not_couple(num_parts):
  streams = (clean(), adv())
  whole, whole_metrics = run(streams, 2, model=UncoupledModel())
  parts, metrics = run(streams, 2, model=UncoupledModel(), accumulate_steps=num_parts)
  assert_trees_close((parts.params, parts.norms), (whole.params, whole.norms), 1e-6)
  assert parts.step == whole.step == 2
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_every_part_of_a_batch_has_statistics_of_its_own():
  state, _ = run((clean(),), accumulate_steps=2)
  model = TinyModel()
  first = create_state(model, optax.identity(), (clean(),))
  variables = first.variables('clean')
  # Two images a device and part: the first and the second half of each device's four.
  image = batch()['image'].reshape((4, 2, 2) + batch()['image'].shape[1:])
  for part in range(2):
    _, updated = model.apply(
      variables,
      image[:, part].reshape((-1,) + image.shape[3:]),
      train=True,
      rngs={'dropout': jax.random.key(0)},
      mutable=['batch_stats'],
    )
    variables = {**variables, **updated}
  assert_trees_close(state.batch_stats['clean'], variables['batch_stats'], atol=1e-6)


def test_parts_of_a_batch_draw_differently():
  drawn = draws_of_attacks(accumulate_steps=2)
  assert len(drawn) == 8 and len(set(drawn)) == 8


def test_no_norm_sees_gradients_of_another_branchs_images():
  weak, _ = run((clean(), adv(epsilon=1 / 255)))
  strong, _ = run((clean(), adv(epsilon=64 / 255, step_size=64 / 255)))
  assert_trees_equal(weak.norms['clean'], strong.norms['clean'])
  assert not np.allclose(
    weak.norms['adv']['bn']['bias'], strong.norms['adv']['bn']['bias'], atol=1e-6
  )


def test_without_a_weight_for_attacks_the_clean_branch_is_vanilla():
  """Its norm bit for bit; the shared weights but for the last bit.

  They are a sum over two branches, the second of zeros, in another program.
  """
  vanilla, vanilla_metrics = run((clean(),))
  advprop, metrics = run((clean(), adv(weight=0.0)))
  for name in ('clean_loss', 'clean_top1', 'loss'):
    assert metrics[name] == vanilla_metrics[name]
  for name in ('norms', 'batch_stats'):
    assert_trees_equal(getattr(vanilla, name)['clean'], getattr(advprop, name)['clean'])
  vanilla, _ = run((clean(),), num_steps=3)
  advprop, _ = run((clean(), adv(weight=0.0)), num_steps=3)
  for name in ('norms', 'batch_stats'):
    pair = getattr(vanilla, name)['clean'], getattr(advprop, name)['clean']
    assert_trees_close(*pair, atol=1e-7)
  assert_trees_close(vanilla.params, advprop.params, atol=1e-7)


def test_a_view_goes_through_the_norm_of_its_stream():
  plain = clean()._replace(image_key='plain_image')
  augmented = clean()._replace(name='augmented', branch='augmented')
  model, tx = TinyModel(**parallel.statistics_scope('all')), optax.sgd(0.1)
  streams = (plain, augmented, adv())
  both = {**batch(0), 'plain_image': batch(1)['image']}
  state, _ = create_step(model, tx, streams)(
    create_state(model, tx, streams), parallel.shard(both)
  )
  for branch, image in [('augmented', batch(0)), ('clean', batch(1))]:
    single, _ = create_step(model, tx, (clean(),))(
      create_state(model, tx, (clean(),)), parallel.shard(image)
    )
    assert_trees_close(
      state.batch_stats[branch], single.batch_stats['clean'], atol=1e-6
    )


class SwitchedModel(nn.Module):
  """Multiplies its derivatives by a factor, and leaves its values as they are."""

  factor: float = 1.0

  @nn.compact
  def __call__(self, image, *, train, use_running_average=None):
    @jax.custom_jvp
    def scaled(x):
      return x

    scaled.defjvp(lambda primals, tangents: (primals[0], tangents[0] * self.factor))
    tiny = TinyModel(**parallel.statistics_scope('all'), name='tiny')
    return scaled(tiny(image, train=train, use_running_average=use_running_average))


def test_attack_and_update_have_derivatives_of_their_own():
  """A negative factor makes an attack lower the loss, and an update raise it."""
  streams = (adv(branch='clean'),)

  def run_with(of_update, of_attack):
    models = SwitchedModel(of_update), SwitchedModel(of_attack)
    return run(streams, model=models[0], attacked_model=models[1])

  first = create_state(SwitchedModel(), optax.identity(), streams)
  normal, normal_metrics = run_with(1.0, 1.0)
  _, weak_metrics = run_with(1.0, -1.0)
  assert weak_metrics['adv_loss'] < normal_metrics['adv_loss'] - 1e-3
  raised, raised_metrics = run_with(-1.0, 1.0)
  assert raised_metrics['adv_loss'] == normal_metrics['adv_loss']
  bias = [x.norms['clean']['tiny']['bn']['bias'] for x in (first, normal, raised)]
  np.testing.assert_allclose(bias[2] - bias[0], bias[0] - bias[1], atol=1e-6)
