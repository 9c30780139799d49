"""Tests two processes, as on two hosts, against one: on the CPU, over gloo."""

import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import test_train_step
from tiny_model import TinyModel

from advprop_jax import parallel

HERE = pathlib.Path(__file__).parent


def three_steps(index, num_hosts):
  """Returns the state after three steps on a host's part of the same batches."""
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = optax.sgd(0.1, momentum=0.9)
  streams = (test_train_step.clean(), test_train_step.adv())
  state = test_train_step.create_state(model, tx, streams)
  step = test_train_step.create_step(model, tx, streams)
  for i in range(3):
    batch = test_train_step.batch(i)
    part = len(batch['label']) // num_hosts
    batch = {k: x[index * part : (index + 1) * part] for k, x in batch.items()}
    state, _ = step(state, parallel.shard(batch))
  return jax.tree.leaves((state.params, state.norms, state.batch_stats))


def start(what, workdir, data_dir, num_hosts, index):
  env = {
    **os.environ,
    'PYTHONPATH': f'{HERE}:{HERE.parent}',
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': f'{workdir}_compilations',  # For the resumed run.
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'SLURM_JOB_ID': str(random.Random(os.getpid()).randrange(4096)),  # Makes the port.
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(num_hosts),
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': '0',
  }
  script = [HERE / 'multi_host_run.py', what, workdir, data_dir, str(num_hosts)]
  return subprocess.Popen(
    [sys.executable, *script],
    env=env,
    cwd=HERE.parent,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def finish(processes):
  """Returns the lines 'result ...' of all processes, without the process's number."""
  results = []
  for process in processes:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    results += [x.split(maxsplit=2)[2] for x in out.splitlines() if 'result' in x]
  return results


def test_three_steps_of_two_hosts_are_those_of_one(tmp_path, fast_compilation):
  hosts = [start('steps', tmp_path / 'state', '', 2, i) for i in range(2)]
  expected = three_steps(0, 1)
  finish(hosts)
  first, second = (np.load(tmp_path / f'state_{i}.npz') for i in range(2))
  for name, x in zip(first, expected, strict=True):
    np.testing.assert_allclose(first[name], x, atol=1e-5)
    # Both hosts hold the same state, bit for bit.
    np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.long
def test_two_hosts_train_and_resume(tmp_path, digits_dir):
  workdir = tmp_path / 'run'
  results = finish([start('run', workdir, digits_dir, 2, i) for i in range(2)])
  assert results[0] == results[1]  # Both hosts know the same numbers.
  steps = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
  assert steps == ['3', '6', '9']
  assert len(list((workdir / 'tensorboard').iterdir())) == 2  # One writer in each run.
