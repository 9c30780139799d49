"""Tests two processes, as on two hosts, against one: on the CPU, over gloo."""

import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import optax
import test_train_step
from tiny_model import TinyModel

from advprop_jax import parallel
from advprop_jax.attacks import ensembles, worst_case
from advprop_jax.evaluation import robustness

HERE = pathlib.Path(__file__).parent


def three_steps(index, num_hosts):
  """Returns the state after three steps on a host's part of the same batches.

  And after one more, which is skipped, since an image of the last host is not finite.
  """
  model = TinyModel(**parallel.statistics_scope('all'))
  tx = optax.sgd(0.1, momentum=0.9)
  streams = (test_train_step.clean(), test_train_step.adv())
  state = test_train_step.create_state(model, tx, streams)
  step = test_train_step.create_step(model, tx, streams, skip_nonfinite=True)
  for i in range(4):
    if i == 3:
      before = arrays(state)
    batch = test_train_step.batch(i)
    part = len(batch['label']) // num_hosts
    batch = {k: x[index * part : (index + 1) * part] for k, x in batch.items()}
    if i == 3 and index == num_hosts - 1:
      batch['image'][-1, 0, 0, 0] = np.nan
    state, metrics = step(state, parallel.shard(batch))
  assert not metrics['all_finite']
  jax.tree.map(np.testing.assert_array_equal, arrays(state), before)
  return before


def arrays(state):
  """Returns all of a state: weights, averages, moments, key and step."""
  return jax.device_get(
    jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng)))
  )


def attack(index, num_hosts):
  """Returns what attacks do to a host's part of the same examples, and the counts.

  Of 22 examples the second of two hosts has 5, so it has fewer batches.
  """
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(22, 4, 4, 3)).astype(np.float32)
  weights = rng.standard_normal((48, 4)).astype(np.float32)

  def logits_of(weights, image):
    return (image - 0.5).reshape(len(image), -1) @ weights

  label = logits_of(weights, image).argmax(-1).astype(np.int32)
  part = slice(17) if index == 0 else slice(17, 22)
  examples = worst_case.Examples(image, label, np.arange(22, dtype=np.int32))
  members = {
    name: member._replace(section={**member.section, **size})
    for name, size in (('apgd-ce', {'num_steps': 5}), ('square', {'num_queries': 9}))
    for member in (ensembles.VERSIONS['standard'][name],)
  }
  stages = ensembles.stages(members, epsilon=0.03, norm='linf', num_classes=4)
  saved = []
  outcome = robustness.evaluate(
    logits_of,
    parallel.replicate(weights),
    None,
    num_classes=4,
    eval_batch_size=12,
    seed=0,
    examples=examples
    if num_hosts == 1
    else worst_case.Examples(*(x[part] for x in examples)),
    work=robustness.Work(tuple(stages), 'linf', (stages[0]._replace(epsilon=0.01),)),
    found=robustness.Found(),
    save=saved.append,
    log=lambda name, state: None,
    log_checks=lambda found: None,
    progress=lambda num_left: None,
  )
  worst, curve = outcome.found
  assert len(saved) == 3
  return {
    'fallen_at': worst.fallen_at,
    'robust': (*worst.robust, *curve.robust),
    'checks': [x.passed for x in outcome.checks],
  }


def start(words, num_hosts, index, **variables):
  env = {
    **os.environ,
    'PYTHONPATH': f'{HERE}:{HERE.parent}',
    'JAX_PLATFORMS': 'cpu',
    'SLURM_JOB_ID': str(random.Random(os.getpid()).randrange(4096)),  # Makes the port.
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(num_hosts),
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': '0',
    **variables,
  }
  return subprocess.Popen(
    [sys.executable, *words],
    env=env,
    cwd=HERE.parent,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


JOIN = """
import sys
from advprop_jax import hosts

hosts._JOIN_SECS = float(sys.argv[1])
if message := sys.argv[2]:
  hosts.end_before_joining(message, wanted=None)
hosts.run_to_end(hosts.join_hosts)
"""


def join(num_hosts, index, *, secs, num_devices=1, message=''):
  """Starts a process that joins others, and does no more."""
  words, count = ['-c', JOIN, str(secs), message], str(num_devices)
  return start(words, num_hosts, index, JAX_NUM_CPU_DEVICES=count)


def finish(processes):
  """Waits for the end of all processes."""
  for process in processes:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def test_three_steps_of_two_hosts_are_those_of_one(tmp_path, fast_compilation):
  words = [HERE / 'multi_host_run.py', tmp_path / 'state', '2']
  hosts = [start(words, 2, i) for i in range(2)]
  expected, attacked = three_steps(0, 1), attack(0, 1)
  finish(hosts)
  first, second = (np.load(tmp_path / f'state_{i}.npz') for i in range(2))
  assert [*first['fallen_at'], *second['fallen_at']] == attacked['fallen_at'].tolist()
  assert len(set(attacked['robust'])) == 3  # Some fall at each radius.
  for key in ('robust', 'checks'):
    assert first[key].tolist() == second[key].tolist() == list(attacked[key])
  for host in (first, second):
    assert host['texts'].tolist() == ['été', 'étéété']
    assert host['message'] == (
      'hosts differ in the config: num_epochs is 0 on host 0 and 1 on host 1; allowed: '
      'the same on all of them'
    )
  names = [x for x in first if x not in attacked and x not in ('texts', 'message')]
  for name, x in zip(names, expected, strict=True):
    np.testing.assert_allclose(first[name], x, atol=1e-5)
    # Both hosts hold the same state, bit for bit.
    np.testing.assert_array_equal(first[name], second[name])


def test_a_process_whose_peers_do_not_come_ends_with_75():
  for process in [join(3, i, secs=1) for i in (0, 1)]:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.splitlines() == [
      'the other processes were not all here within 1 s: the same command goes on when '
      'they are'
    ]


def test_a_mistake_in_a_command_stays_one_if_the_peers_do_not_come():
  process = join(2, 1, secs=1, message='error: a typo')
  _, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (1, 'error: a typo\n')


def test_different_numbers_of_devices_are_one_line():
  for process in [join(2, i, secs=60, num_devices=i + 1) for i in range(2)]:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines() == [
      'error: hosts have different numbers of devices: host 0 has 1 and host 1 has 2; '
      'allowed: as many on all of them'
    ]
