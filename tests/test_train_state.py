"""Tests the state: its parts for a checkpoint, and what sees a broken number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TinyModel

from advprop_jax import optim, train_state


def create_state():
  tx = optim.rmsprop(
    lambda step: 0.1, momentum=0.9, decay=0.9, epsilon=1e-3, weight_decay=1e-5
  )
  return train_state.create_train_state(
    TinyModel(),
    tx,
    branch_names=('clean', 'adv'),
    image_size=8,
    seed=0,
    keep_ema=True,
  )


@pytest.fixture(scope='module')
def state():
  return create_state()


def test_the_first_state_is_computed_by_the_host():
  with jax.default_device(jax.devices()[1]):  # In the place of an accelerator.
    state = create_state()
  assert {x.device for x in jax.tree.leaves(state)} == {jax.devices('cpu')[0]}


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_broken_number_anywhere_is_seen(state, value):
  first = jax.jit(lambda state: state.first_nonfinite())
  assert first(state) == -1
  leaves, structure = jax.tree.flatten(state)
  places = [
    i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating) and x.size
  ]
  # Weights, two branches of norms and statistics, two moments, the averages.
  assert len(places) > 30
  for i in places:
    flat = np.array(leaves[i]).ravel()
    flat[-1] = value
    broken = flat.reshape(leaves[i].shape)
    changed = [*leaves[:i], broken, *leaves[i + 1 :]]
    broken_state = jax.tree.unflatten(structure, changed)
    name = state.name_of_array(int(first(broken_state)))
    found = {'ema': broken_state.ema, 'model': broken_state.model}
    found['opt_state'] = broken_state.opt_state
    names = [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, x in jax.tree_util.tree_leaves_with_path(found)
      if not np.isfinite(x).all()
    ]
    assert names == [name]


def test_parts_are_the_whole_state(state):
  restored = train_state.TrainState.from_parts(state.parts)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert all(
    a is b
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True)
  )
