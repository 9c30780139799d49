"""Tests that a step that is not finite is skipped without a trace, or ends the run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_train_step
from tiny_model import TinyModel

from advprop_jax import bad_steps, errors, nonfinite, optim, parallel, update


@pytest.fixture(scope='module')
def trained():
  """Returns (step that skips, state after one step, both on all devices)."""
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=1e-3)
  streams = (test_train_step.clean(), test_train_step.adv())
  step = test_train_step.create_step(model, tx, streams, skip_nonfinite=True)
  state = test_train_step.create_state(model, tx, streams)
  state, metrics = step(state, parallel.shard(test_train_step.batch(0)))
  assert metrics['all_finite'] and metrics['nonfinite'] == -1
  return step, jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def on_devices(state):
  return parallel.replicate(state.replace(rng=jax.random.wrap_key_data(state.rng)))


def bits(state):
  """Returns the bytes of every array."""
  arrays = jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))
  return jax.tree.map(lambda x: np.asarray(x).tobytes(), arrays)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_bad_step_leaves_every_bit_of_the_state(trained, value):
  step, saved = trained
  before = bits(on_devices(saved))
  examples = test_train_step.batch(1)
  examples['image'][-1, 2, 1, 0] = value  # On the last of four devices.
  state, metrics = step(on_devices(saved), parallel.shard(examples))
  assert bits(state) == before
  assert not metrics['all_finite']
  name, is_in_state = update.describe(state, int(metrics['nonfinite']), frozen=())
  assert name.startswith('statistics/') and not is_in_state
  # And what comes next is as if the step had not been.
  good = parallel.shard(test_train_step.batch(2))
  after, _ = step(state, good)
  expected, _ = step(on_devices(saved), good)
  assert bits(after) == bits(expected) and bits(after) != before


def test_a_broken_average_is_not_a_step_to_skip(trained):
  step, saved = trained
  broken = jax.tree.map(np.copy, saved)
  leaves, structure = jax.tree.flatten(broken.norms)
  leaves[0] = np.full_like(leaves[0], np.nan)
  state = broken.replace(norms=jax.tree.unflatten(structure, leaves))
  new, metrics = step(on_devices(state), parallel.shard(test_train_step.batch(1)))
  assert not metrics['all_finite'] and bits(new) == bits(on_devices(state))


TREE = {
  'a': np.zeros(3, np.float32),
  'b': np.zeros((100, 100), np.float32),
  'c': np.zeros((), np.int32),
  'd': {'e': np.zeros((2, 2), np.float32), 'f': np.zeros((70, 70), np.float32)},
}


@pytest.mark.parametrize(
  'places',
  [(), ('a',), ('b',), ('d/e',), ('d/f',), ('b', 'd/e'), ('a', 'd/f'), ('d/f', 'd/e')],
)
def test_the_first_array_is_named(places):
  def put(path, x):
    key = jax.tree_util.keystr(path, simple=True, separator='/')
    x = np.copy(x)
    if key in places:
      x.reshape(-1)[-1] = np.inf
    return x

  tree = jax.tree_util.tree_map_with_path(put, TREE)
  found = int(jax.jit(nonfinite.first)(tree))
  assert (nonfinite.name(tree, found) if found >= 0 else '') == min(places, default='')


def watch(policy, **options):
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=1e-3)
  streams = (test_train_step.clean(),)
  state = jax.eval_shape(lambda: test_train_step.create_state(TinyModel(), tx, streams))
  return bad_steps.BadSteps(policy, state, **options), state


def look(bad, step, place):
  bad.look_at(
    step,
    {'all_finite': jnp.bool_(place < 0), 'nonfinite': jnp.int32(place)},
    batch_size=8,
    num_seen=80,
    saved=lambda: [4, 8],
  )


def test_one_bad_step_stops_a_run():
  bad, _ = watch('stop')
  look(bad, 10, -1)
  with pytest.raises(
    errors.UserError,
    match='statistics/clean/bn/mean is not finite at step 11; its images are number 80 '
    'to 87 of the run, and --replay_step=11 makes .* checkpoint is of step 8; ',
  ):
    look(bad, 11, 0)


def test_bad_steps_are_skipped_and_counted_up_to_a_bound(caplog):
  bad, _ = watch('skip', num_skipped=3)
  for step in range(9):
    look(bad, step, 2)
  assert bad.num_skipped == 12 and 'at step 8, which is skipped' in caplog.text
  look(bad, 9, -1)  # A good one in between.
  for step in range(10, 19):
    look(bad, step, 2)
  with pytest.raises(errors.UserError, match='at step 19, the last of 10 in a row; '):
    look(bad, 19, 2)


def test_a_state_that_is_broken_itself_stops_the_run():
  bad, state = watch('skip')
  count = len(jax.tree.leaves((state.trained, state.batch_stats))) + 2
  with pytest.raises(errors.UserError, match='diverged: ema/.* is not finite at'):
    look(bad, 5, count)
