"""Tests two processes, as on two hosts, against one: on the CPU, over gloo."""

import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent


def start(workdir, data_dir, num_hosts, index):
  env = {
    **os.environ,
    'PYTHONPATH': f'{HERE}:{HERE.parent}',
    'JAX_PLATFORMS': 'cpu',
    'SLURM_JOB_ID': str(random.Random(os.getpid()).randrange(4096)),  # Makes the port.
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(num_hosts),
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': '0',
  }
  script = [HERE / 'multi_host_run.py', workdir, data_dir, str(num_hosts)]
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


@pytest.mark.long
def test_two_hosts_train_as_one_and_resume(tmp_path, digits_dir):
  one, two = tmp_path / 'one', tmp_path / 'two'
  finish([start(one, digits_dir, 1, 0)])
  results = finish([start(two, digits_dir, 2, i) for i in range(2)])
  assert results[0] == results[1]  # Both hosts know the same numbers.

  states = [np.load(f'{path}.npz') for path in (f'{one}_step_0', f'{two}_step_0')]
  for name in states[0]:
    np.testing.assert_allclose(states[0][name], states[1][name], atol=1e-5)
  other = np.load(f'{two}_step_1.npz')
  for name in other:  # Both hosts hold the same state, bit for bit.
    np.testing.assert_array_equal(states[1][name], other[name])

  steps = sorted(p.name for p in (two / 'checkpoints').iterdir())
  assert steps == ['10', '12', '2', '4', '6', '8']
  assert len(list((two / 'tensorboard').iterdir())) == 2  # One writer in each run.
