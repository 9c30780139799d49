"""Tests the script for GPUs, with stand-ins for Python and for NVIDIA's driver."""

import os
import shutil
import sys

import pytest
import stand_ins

PYTHON = f"""
case "$1 ${{2:-}}" in
  '-c '*) exec {sys.executable} "$@" ;;
  '-m venv') mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  'main.py '*) echo "platforms $JAX_PLATFORMS" && exit 143 ;;
esac
"""


@pytest.fixture
def commands(tmp_path):
  commands = stand_ins.StandIns(tmp_path / 'stand_ins')
  commands.add('python', PYTHON)
  return commands


@pytest.fixture
def repository(tmp_path):
  return stand_ins.copy_launch(tmp_path / 'repository', requirements_txt='jax==0.10.2')


def test_installs_once_and_runs_on_the_gpus(commands, repository, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  commands.add('nvidia-smi')
  python = str(commands.path / 'python')
  for number in range(2):
    result = commands.run('gpu.sh', '--config=a b', cwd=repository, PYTHON=python)
    assert result.returncode == 143, result.stderr
    assert 'platforms cuda' in result.stdout
    assert len(commands.calls('main.py', '--config=a b')) == number + 1
  installed = [call[-1] for call in commands.calls('pip')]
  assert installed == [
    f'--requirement={x}' for x in ('requirements.txt', 'launch/cuda.txt')
  ]


def test_without_a_driver_it_sets_up_and_does_not_train(commands, repository):
  path = os.environ['PATH']
  for name in ('bash', 'cat', 'cp', 'dirname', 'env', 'mkdir', 'rm'):
    (commands.path / name).symlink_to(shutil.which(name, path=path))
  env = {'PYTHON': str(commands.path / 'python'), 'PATH': str(commands.path)}
  result = commands.run('gpu.sh', '--config=x', cwd=repository, **env)
  assert result.returncode == 1 and commands.calls() == []
  assert 'no NVIDIA driver here (no command nvidia-smi); allowed: ' in result.stderr
  commands.run('gpu.sh', '--help', cwd=repository, **env)
  assert commands.calls('main.py', '--help') and commands.calls('pip')
