"""Tests the batch script of Slurm, with stand-ins for srun and scontrol."""

import os
import pathlib
import random
import sys

import pytest
import stand_ins
import test_train

from advprop_jax import model_config
from advprop_jax.workdir import directory
from configs import digits_vanilla

HERE = pathlib.Path(__file__).parent
MAIN = """
import os, signal, sys, time
task = os.environ['TASKS'].split(',')[int(os.environ['SLURM_PROCID'])]
def end(*_):
  time.sleep(0.2)  # As a save takes its time.
  open(f'saved_{os.environ["SLURM_PROCID"]}', 'w').close()
  sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if task == 'deaf' else end)
with open(f'arguments_{os.environ["SLURM_PROCID"]}', 'w') as f:
  f.write('|'.join([*sys.argv[1:], os.environ['JAX_PLATFORMS']]))
if task in ('wait', 'deaf'):
  time.sleep(60)
while not all(os.path.exists(f'arguments_{i}') for i in range(2)):
  time.sleep(0.01)
if task == 'kill':  # As by the kernel.
  os.kill(os.getpid(), signal.SIGKILL)
os._exit(int(task))
"""
SMALL_DATA = ('data_dir', 'train_split', 'eval_split', 'batch_size', 'eval_batch_size')
SMALL_DATA += ('image_size',)
JOB = {
  'SLURM_JOB_ID': str(random.Random(os.getpid()).randrange(4096)),  # Makes the port.
  'SLURM_NTASKS': '2',
  'SLURM_NTASKS_PER_NODE': '2',
  'SLURM_GPUS_ON_NODE': '2',
}


@pytest.fixture
def commands(tmp_path):
  commands = stand_ins.StandIns(tmp_path / 'stand_ins')
  commands.add('srun', f'exec {sys.executable} {HERE / "srun.py"} "$@"')
  commands.add('scontrol')
  return commands


@pytest.fixture
def repository(tmp_path):
  folder = stand_ins.copy_launch(tmp_path / 'repository', main_py=MAIN)
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  return folder


def submit(commands, repository, *args, **env):
  """Runs the script as Slurm does: a copy, in another folder, with its variables."""
  (copy := commands.folder / 'launch').mkdir(exist_ok=True)
  text = (repository / 'launch' / 'slurm.sbatch').read_text()
  (copy / 'slurm.sbatch').write_text(text)
  env = {**JOB, 'SLURM_SUBMIT_DIR': str(repository), **env}
  return commands.run('slurm.sbatch', *args, cwd=commands.folder, **env)


@pytest.mark.parametrize(
  'tasks, status, requeued',
  [
    ('0,0', 0, False),
    ('1,1', 1, False),
    ('143,143', 143, True),
    ('143,wait', 143, True),
    ('75,75', 75, True),
    # One is killed, crashes or runs out of memory, and the other one has lost it.
    ('kill,75', 75, True),
    ('75,139', 75, True),
    ('134,75', 75, True),
    ('kill,kill', 137, True),
    # The other one does not end in time after SIGTERM, and is killed.
    ('143,deaf', 137, True),
    # A mistake in one process: the others are stopped, and save.
    ('1,wait', 1, False),
    ('wait,1', 1, False),
    ('2,2', 2, False),
  ],
)
def test_status_decides_whether_the_job_is_requeued(
  commands, repository, monkeypatch, tasks, status, requeued
):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  result = submit(
    *(commands, repository, '--config=a b', "it's"), TASKS=tasks, KILL_WAIT='0.5'
  )
  assert result.returncode == status, result.stderr
  expected = [['scontrol', 'requeue', JOB['SLURM_JOB_ID']]] if requeued else []
  assert commands.calls('scontrol') == expected
  for task in range(2):
    arguments = (repository / f'arguments_{task}').read_text().split('|')
    assert arguments == ['--config=a b', "it's", 'cuda']
    if tasks.split(',')[task] == 'wait':
      assert (repository / f'saved_{task}').exists()
  (srun,) = commands.calls('srun')
  assert '--kill-on-bad-exit=1' in srun and '--gpu-bind=none' in srun


def test_requeued_no_more_often_than_allowed(commands, repository):
  for count, requeued in ((2, 1), (3, 1)):
    env = {'SLURM_RESTART_COUNT': str(count), 'MAX_RESTARTS': '3'}
    result = submit(commands, repository, TASKS='143,143', **env)
    assert result.returncode == 143
    assert len(commands.calls('scontrol')) == requeued
  assert 'MAX_RESTARTS=3 is reached: not started again' in result.stderr


def test_a_process_that_is_lost_again_and_again_is_given_up(commands, repository):
  env = {'MAX_FAILURES': '3', 'SLURM_NTASKS': '2'}
  for tasks, requeued in (('75,75', 1), ('75,75', 2), ('143,143', 3), ('75,75', 4)):
    submit(commands, repository, TASKS=tasks, **env)
    assert len(commands.calls('scontrol')) == requeued
  for requeued in (5, 5):
    result = submit(commands, repository, TASKS='75,139', **env)
    assert result.returncode == 75 and len(commands.calls('scontrol')) == requeued
  assert 'failure number MAX_FAILURES=3 in a row: not started again' in result.stderr


@pytest.mark.parametrize('status, requeued', [(134, 0), (75, 1)])
def test_a_process_alone_is_started_again_where_that_helps(
  commands, repository, status, requeued
):
  (repository / 'main.py').write_text(f'import sys; sys.exit({status})')
  result = submit(
    *(commands, repository),
    **{'SLURM_NTASKS': '1', 'SLURM_NTASKS_PER_NODE': '1', 'SLURM_GPUS_ON_NODE': '1'},
  )
  assert result.returncode == status
  assert len(commands.calls('scontrol')) == requeued


def test_a_requeue_that_fails_is_told_and_keeps_the_status(commands, repository):
  commands.add('scontrol', 'exit 1')
  result = submit(commands, repository, TASKS='143,143')
  assert result.returncode == 143
  assert 'could not go back into the queue; the same command' in result.stderr


def test_cpus_of_the_job_are_those_of_its_processes(commands, repository):
  submit(commands, repository, TASKS='0,0', SLURM_CPUS_PER_TASK='7')
  assert '--cpus-per-task=7' in commands.calls('srun')[0]


@pytest.mark.parametrize(
  'env, message',
  [
    ({'SLURM_JOB_ID': ''}, 'not a job of Slurm; allowed: sbatch launch/slurm.sbatch, '),
    ({'SLURM_SUBMIT_DIR': '/'}, 'submitted from /; allowed: sbatch launch/slurm.sbatc'),
    (
      {'SLURM_GPUS_ON_NODE': '8'},
      '--ntasks-per-node is 2, of 8 GPUs; allowed: 8, one for each GPU',
    ),
    ({'MAX_RESTARTS': 'no'}, "MAX_RESTARTS is 'no'; allowed: whole numbers"),
    ({'MAX_RESTARTS': '08'}, "MAX_RESTARTS is '08'; allowed: whole numbers"),
    ({'MAX_FAILURES': '0'}, "MAX_FAILURES is '0'; allowed: whole numbers from 1 on"),
  ],
)
def test_a_mistake_is_one_line_and_starts_nothing(commands, repository, env, message):
  result = submit(commands, repository, **env)
  assert result.returncode == 1 and commands.calls() == []
  assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_packages_it_says_how_to_install_them(commands, repository):
  (repository / '.venv' / 'bin' / 'python').unlink()
  result = submit(commands, repository)
  assert result.returncode == 1 and commands.calls() == []
  assert 'needed once, where there is a network: bash launch/gpu.sh' in result.stderr


def test_options_of_the_job():
  text = (stand_ins.ROOT / 'launch' / 'slurm.sbatch').read_text()
  options = [x.split()[1] for x in text.splitlines() if x.startswith('#SBATCH')]
  gpus = dict(option.split('=') for option in options if '=' in option)
  assert gpus['--ntasks-per-node'] == gpus['--gpus-per-node']
  assert '--requeue' in options and gpus['--signal'] == 'TERM@300'
  assert gpus['--open-mode'] == 'append'


@pytest.mark.long
def test_a_preempted_job_ends_as_an_uninterrupted_one(
  tmp_path, commands, repository, digits_dir, monkeypatch
):
  """Two processes: one gets SIGTERM, both save, and the requeued job goes on."""
  broken, straight = tmp_path / 'broken', tmp_path / 'straight'
  program = f'import runpy, sys\nsys.argv.insert(1, {str(straight)!r})\n'
  program += f'runpy.run_path({str(HERE / "slurm_main.py")!r}, run_name="__main__")\n'
  (repository / 'main.py').write_text(program)
  config = test_train.small_config(digits_dir, digits_vanilla)
  values = {f'data.{key}': config.data[key] for key in SMALL_DATA}
  values |= {
    'num_epochs': 3.0,  # 18 steps: the signal comes in the middle of them.
    'log_every_steps': 1,
    'model.bn_scope': 'all',
    'eval.every_epochs': 1.0,
    'eval.suites': ('val',),
    'checkpoint.every_epochs': 1.0,
  }
  config.update_from_flattened_dict(values)
  args = [f'--config={stand_ins.ROOT}/configs/digits_vanilla.py:smoke']
  args += [f'--config.{key}={value}' for key, value in values.items()]
  args.append(f'--workdir={broken}')
  env = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compilations'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }

  # After saves, and an evaluation, which asks for signals more often than steps do.
  preempt = {'PREEMPT_AT': '8', 'PREEMPT_FILE': str(broken / 'results.jsonl')}
  result = submit(commands, repository, *args, **env, **preempt)
  assert result.returncode == 143, result.stderr
  requeues = [['scontrol', 'requeue', JOB['SLURM_JOB_ID']]]
  assert commands.calls('scontrol') == requeues
  step = directory.saved_steps(broken)[-1]
  assert 7 < step < 18
  result = submit(commands, repository, *args, **env, SLURM_RESTART_COUNT='1')
  assert result.returncode == 0, result.stderr
  assert f'resuming from step {step} of 18' in result.stderr
  assert commands.calls('scontrol') == requeues
  # One of the two processes writes, in each of the two starts.
  assert len(list((broken / 'tensorboard').glob('*.v2'))) == 2  # Starts.

  monkeypatch.setattr(model_config, 'create_model', test_train.TINY_MODEL)
  states = [test_train.load(config, path, 18) for path in (broken, straight)]
  test_train.assert_bit_identical(*states)
  losses = [test_train.training_losses(path) for path in (broken, straight)]
  assert losses[0] == losses[1] and len(losses[0]) == 18
