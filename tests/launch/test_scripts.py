"""Tests what holds for all of launch/: shellcheck, --help, --dry_run, the image."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import stand_ins

ROOT = stand_ins.ROOT
SCRIPTS = sorted((ROOT / 'launch').glob('*.s*h'))
SHELLCHECK = shutil.which(
  'shellcheck',
  path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ['PATH']]),
)
ARGUMENTS = ['--', '--config=a b', "it's", '$HOME']
TPU = ['--name=b7', '--zone=us-central2-b', '--workdir=gs://bucket/b7']
QUEUED = [*TPU, '--spot', '--accelerator_type=v6e-16', '--runtime_version=v2']
GKE = ['--name=b7', '--image=image', '--accelerator=tpu-v6e-slice', '--topology=4x4']
GKE += ['--workdir=gs://bucket/b7', '--build']
# What each would do, in order, as the beginnings of commands.
COPY = [
  'git archive --format=tar.gz',
  'gcloud --quiet storage cp --no-clobber .git/launch.tar.gz gs://bucket/b7/code/',
]
START = [
  'gcloud --quiet compute tpus tpu-vm scp launch/tpu_worker.sh b7:tpu_worker.sh',
  'gcloud --quiet compute tpus tpu-vm ssh b7 --zone=us-central2-b --worker=all',
]
QUEUE = 'gcloud --quiet compute tpus queued-resources'
EXPECTED = {
  'gpu.sh': ([], ['source launch/setup.sh', 'exec .venv/bin/python main.py']),
  'slurm.sbatch': ([], ['srun --kill-on-bad-exit=1 ', 'scontrol requeue ']),
  'tpu_vm.sh': (TPU, [*COPY, *START]),
  'tpu_queued.sh': (
    QUEUED,
    [*COPY, f'{QUEUE} describe', f'{QUEUE} create', *START, f'{QUEUE} delete b7'],
  ),
  'gke.sh': (GKE, ['docker build', 'docker push image', 'kubectl apply']),
}

PYTHON = """
case $* in
  -c*) echo 3.12.1 ;;
  *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin ;;
  *pip*) sleep 0.3 ;;  # In which the other script would begin, too.
esac
"""


def test_shellcheck_finds_nothing():
  assert SHELLCHECK, 'shellcheck is missing: bash launch/test.sh installs it'
  assert {'tpu_vm.sh', 'slurm.sbatch', 'setup.sh'} <= {path.name for path in SCRIPTS}
  result = subprocess.run(
    [SHELLCHECK, '--external-sources', '--shell=bash', *SCRIPTS, '.ci/run'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize('script', EXPECTED)
def test_dry_run_prints_the_commands_and_runs_none(tmp_path, script):
  repository = stand_ins.copy_launch(tmp_path / 'repository')
  commands = stand_ins.StandIns(tmp_path / 'stand_ins')
  for name in ('gcloud', 'srun', 'scontrol', 'kubectl', 'docker', 'pip', 'nvidia-smi'):
    commands.add(name)
  flags, expected = EXPECTED[script]

  result = commands.run(script, '--dry_run', *flags, *ARGUMENTS, cwd=repository)

  assert result.returncode == 0, result.stderr
  found = stand_ins.commands(result.stdout)
  assert len(found) == len(expected)
  for command, beginning in zip(found, expected, strict=True):
    assert command.startswith(beginning)
  assert commands.calls() == []
  assert not (repository / '.venv').exists()


@pytest.mark.parametrize(
  'script', ['tpu_vm.sh', 'tpu_queued.sh', 'gke.sh', 'slurm.sbatch']
)
def test_help_is_the_header(tmp_path, script):
  result = stand_ins.StandIns(tmp_path).run(script, '--help', cwd=ROOT)
  assert f'  bash launch/{script} --' in result.stdout
  assert '--dry_run ' in result.stdout and 'set -euo' not in result.stdout
  assert 'SBATCH -' not in result.stdout


def test_two_scripts_at_once_install_once(tmp_path):
  repository = stand_ins.copy_launch(tmp_path / 'repository')
  commands = stand_ins.StandIns(tmp_path / 'stand_ins')
  commands.add('python', PYTHON)
  (repository / 'requirements.txt').write_text('jax')
  source = 'set -euo pipefail; source launch/setup.sh requirements.txt; echo ready'
  python = str(commands.path / 'python')
  scripts = [
    subprocess.Popen(
      ['bash', '-c', source],
      cwd=repository,
      env={**os.environ, 'PYTHON': python},
      stdout=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  assert [x.communicate(timeout=60)[0] for x in scripts] == ['ready\n', 'ready\n']
  assert len(commands.calls('venv')) == len(commands.calls('pip')) == 1


def test_the_image_is_made_of_files_that_exist():
  instructions = (ROOT / 'launch' / 'Dockerfile').read_text().splitlines()
  ignore = (ROOT / 'launch' / 'Dockerfile.dockerignore').read_text().splitlines()
  let_in = [line[1:] for line in ignore if line.startswith('!')]
  copied = [line.split()[1:-1] for line in instructions if line.startswith('COPY')]
  for hardware in ('tpu', 'cuda'):
    for source in (y.replace('$HARDWARE', hardware) for x in copied for y in x):
      assert (ROOT / source).exists()
      assert source == '.' or source.split('/')[0] in let_in
  assert all((ROOT / name).exists() for name in let_in)
  assert instructions[-1] == 'ENTRYPOINT ["python", "main.py"]'
