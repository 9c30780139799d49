"""Tests checkpoints: what comes back is what was saved, on any number of devices."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import TinyModel

from advprop_jax import errors, optim, parallel, train_state
from advprop_jax.workdir import checkpoint, restore


def create_state(seed=0, branch_names=('clean', 'adv'), **model_attributes):
  tx = optim.sgd(optax.constant_schedule(0.1), momentum=0.9, weight_decay=1e-4)
  state = train_state.create_train_state(
    TinyModel(**model_attributes),
    tx,
    branch_names=branch_names,
    image_size=8,
    seed=seed,
    keep_ema=True,
  )
  noise = iter(range(10_000))
  state = state.replace(  # Every leaf its own values.
    batch_stats=jax.tree.map(lambda x: x + jnp.float32(next(noise)), state.batch_stats)
  )
  return parallel.replicate(state)


def save(directory, state, steps=(3,), top1=None):
  with checkpoint.Checkpointer(directory, keep_last=1) as checkpointer:
    for i, step in enumerate(steps):
      checkpointer.save(
        step,
        state.parts,
        config={'seed': 0, 'streams': ({'name': 'clean'},)},
        examples_seen=step * 16,
        fingerprint={'num_files': 7},
        spent={'train': 2.5},
        metrics=None if top1 is None else {'val/clean_top1': top1[i]},
      )
    checkpointer.wait_until_finished()
    return checkpointer.steps()


def test_restores_state_config_and_data_position_bit_for_bit(tmp_path):
  state = create_state()
  save(tmp_path, state)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    template = jax.eval_shape(lambda: create_state(seed=1))
    parts, config, data = checkpointer.restore(3, template.parts)
  restored = train_state.TrainState.from_parts(parts)
  leaves, expected = jax.tree.leaves(restored), jax.tree.leaves(state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for x, y in zip(leaves, expected, strict=True):
    if jnp.issubdtype(y.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)
    assert x.dtype == y.dtype and x.sharding.is_fully_replicated
  assert config == {'seed': 0, 'streams': [{'name': 'clean'}]}
  assert data == {
    'examples_seen': 48,
    'process_count': 1,
    'fingerprint': {'num_files': 7},
    'since': [0, 0],
    'evaluation_due': False,
    'spent': {'train': 2.5},
  }


def test_keeps_the_last_and_the_best(tmp_path):
  state = create_state()
  assert save(tmp_path, state, (1, 2, 3, 4), (0.1, 0.9, 0.3, 0.2)) == [2, 4]
  with restore.Reader(tmp_path) as checkpointer:
    found = [checkpointer.find(which) for which in ('best', 'newest', '4', '2')]
    assert found == [2, 4, 4, 2]
    with pytest.raises(
      errors.UserError, match="'3' in .*; allowed: best, newest, 2, 4$"
    ):
      checkpointer.find('3')


def test_without_evaluations_there_is_no_best_checkpoint(tmp_path):
  with restore.Reader(tmp_path / 'none') as checkpointer:
    with pytest.raises(errors.UserError, match='allowed: a directory with checkpoints'):
      checkpointer.find('newest')
  save(tmp_path, create_state())
  with restore.Reader(tmp_path) as checkpointer:
    assert checkpointer.find('newest') == 3
    with pytest.raises(errors.UserError, match="'best' in .*; allowed: newest, 3$"):
      checkpointer.find('best')


def test_restores_on_another_number_of_devices(tmp_path):
  state = create_state()
  save(tmp_path, state)
  code = f"""
import jax
jax.config.update('jax_num_cpu_devices', 2)
import test_checkpoint
from advprop_jax.workdir import checkpoint, restore
with checkpoint.Checkpointer({str(tmp_path)!r}) as checkpointer:
  template = jax.eval_shape(test_checkpoint.create_state)
  parts, *_ = checkpointer.restore(3, template.parts)
kernel = parts['model']['params']['conv']['kernel']
assert len(kernel.sharding.device_set) == 2 and kernel.sharding.is_fully_replicated
print(float(kernel.sum()))
"""
  here = pathlib.Path(__file__).parent
  tests = here.parent
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tests.parent,
    env={**os.environ, 'PYTHONPATH': f'{here}:{tests}:{tests.parent}'},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert float(result.stdout.split()[-1]) == pytest.approx(
    float(state.params['conv']['kernel'].sum()), rel=1e-6
  )


@pytest.mark.parametrize(
  'other, leaf',
  [
    ({'num_classes': 7}, r'params/classifier/bias is \(5,\) there and \(7,\)'),
    ({'branch_names': ('clean',)}, 'adv.* absent in this config'),
    (
      {'branch_names': ('clean', 'adv', 'strong')},
      'strong/bn/.* is absent there',
    ),
  ],
)
def test_a_checkpoint_of_another_model_is_named_by_its_first_leaf(
  tmp_path, other, leaf
):
  save(tmp_path, create_state())
  before = sorted(tmp_path.rglob('*'))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    template = jax.eval_shape(lambda: create_state(**other))
    with pytest.raises(errors.UserError, match=leaf):
      checkpointer.restore(3, template.parts)
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('damage', ['empty', 'truncated'])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
  state = create_state()
  save(tmp_path, state, (3, 5), (0.9, 0.1))  # The best and the last.
  if damage == 'empty':
    shutil.rmtree(tmp_path / '5')
    (tmp_path / '5').mkdir()
  else:
    for path in (tmp_path / '5').rglob('*'):
      if path.is_file() and path.stat().st_size > 100:
        path.write_bytes(path.read_bytes()[:50])
  with checkpoint.Checkpointer(tmp_path, keep_last=2) as checkpointer:
    with pytest.raises(restore.DamagedError, match='/5 is damaged: .* steps 3$'):
      checkpointer.restore(5, jax.eval_shape(create_state).parts)


def test_read_only_makes_nothing(tmp_path):
  with restore.Reader(tmp_path / 'none') as checkpointer:
    assert checkpointer.steps() == []
  assert not (tmp_path / 'none').exists()
