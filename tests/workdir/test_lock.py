"""Tests that one training at a time holds a workdir, against util-linux's `flock`."""

import errno
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from etils import epath

from advprop_jax import errors
from advprop_jax.workdir import lock

HOLD = """
import sys
from etils import epath
from advprop_jax.workdir import lock

with lock.hold(epath.Path(sys.argv[1])):
  print('holds it', flush=True)
  sys.stdin.readline()
"""


def is_free(path):
  """Returns whether another program can lock a file."""
  command = [shutil.which('flock'), '--nonblock', path, 'true']
  return subprocess.run(command, check=False).returncode == 0


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
  monkeypatch.setattr(lock, '_WAIT_SECS', 0.0)


@pytest.mark.skipif(shutil.which('flock') is None, reason='needs the command flock')
def test_another_program_sees_the_lock(tmp_path):
  with lock.hold(epath.Path(tmp_path)):
    assert not is_free(tmp_path / 'lock')
  assert is_free(tmp_path / 'lock')


def test_a_second_training_is_told_of_the_first_and_goes_on_when_it_was_killed(
  tmp_path,
):
  words = [sys.executable, '-c', HOLD, tmp_path]
  pipe = subprocess.PIPE
  with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
    assert process.stdout.readline() == 'holds it\n'
    line = (
      f'another training writes to --workdir {tmp_path} (process {process.pid} on '
      f'{socket.gethostname()}): the same command goes on when that has ended'
    )
    with pytest.raises(errors.RestartError, match=f'^{re.escape(line)}$'):
      with lock.hold(epath.Path(tmp_path)):
        pass
    process.kill()
  with lock.hold(epath.Path(tmp_path)):
    assert f'process {os.getpid()} on' in (tmp_path / 'lock').read_text()


@pytest.mark.parametrize('is_made_anew', [False, True])
def test_a_workdir_that_was_deleted_is_another_one(tmp_path, is_made_anew):
  path = epath.Path(tmp_path / 'run')
  path.mkdir()
  with lock.hold(path) as check:
    check()
    (path / 'config.json').touch()
    (path / 'lock').rename(path / 'elsewhere')  # By people who take it for a left-over.
    check()
    (path / 'elsewhere').rename(path / 'lock')
    shutil.rmtree(path)
    if is_made_anew:
      path.mkdir()
      (path / 'lock').write_text('of another training')
    with pytest.raises(errors.UserError, match=f'--workdir {path} was deleted while '):
      check()


def test_a_full_disk_is_one_line_and_the_lock_is_free(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'pwrite', fail)
    with pytest.raises(errors.UserError, match='cannot write .*/lock: No space left'):
      with lock.hold(epath.Path(tmp_path)):
        pass
  with lock.hold(epath.Path(tmp_path)):
    pass


def test_a_lock_that_cannot_be_taken_for_now_is_tried_again(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

  monkeypatch.setattr(lock.fcntl, 'flock', fail)
  with pytest.raises(errors.RestartError, match='cannot be locked .Stale file handle.'):
    with lock.hold(epath.Path(tmp_path)):
      pass


def test_only_the_first_host_holds_it(tmp_path, monkeypatch):
  monkeypatch.setattr(lock.jax, 'process_index', lambda: 1)
  with lock.hold(epath.Path(tmp_path)), lock.hold(epath.Path(tmp_path)):
    assert not (tmp_path / 'lock').exists()


def test_a_link_in_its_place_is_not_followed(tmp_path):
  file = tmp_path / 'not ours'
  file.write_text('precious')
  (tmp_path / 'lock').symlink_to(file)
  with pytest.raises(errors.UserError, match='/lock is a link; allowed: '):
    with lock.hold(epath.Path(tmp_path)):
      pass
  assert file.read_text() == 'precious'


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_training_goes_on(tmp_path, monkeypatch, caplog, number):
  def fail(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(lock.fcntl, 'flock', fail)
  with lock.hold(epath.Path(tmp_path)):
    assert 'cannot be locked' in caplog.text


@pytest.mark.parametrize('is_there', [False, True])
def test_a_bucket_is_not_locked(monkeypatch, is_there):
  path = epath.Path('gs://bucket/run')
  monkeypatch.setattr(type(path), 'exists', lambda self: is_there)
  with lock.hold(path) as check:
    if is_there:
      check()
    else:
      with pytest.raises(errors.UserError, match='gs://bucket/run was deleted while'):
        check()
