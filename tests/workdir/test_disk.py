"""Tests what is said of a disk that fails, and which saves are tried again."""

import errno
import os
import re

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorstore
from jax.experimental import multihost_utils
from test_integrity import parts, restore_item, save

from advprop_jax import errors
from advprop_jax.workdir import checkpoint, checksums, disk


def with_cause(cause):
  error = ValueError('RESOURCE_EXHAUSTED: a save has failed')
  error.__cause__ = cause
  return error


TENSORSTORE = ValueError(
  'RESOURCE_EXHAUSTED: Error writing local file "/x": Failed to write 1387 bytes to '
  "file 8: No space left on device [os_error_code='28']"
)


@pytest.mark.parametrize(
  'error, number, can_pass',
  [
    (OSError(errno.ENOSPC, 'full'), errno.ENOSPC, False),
    (OSError(errno.EROFS, 'read-only'), errno.EROFS, False),
    (OSError(errno.EIO, 'bus'), errno.EIO, True),
    (OSError(errno.ESTALE, 'NFS'), errno.ESTALE, True),
    (TENSORSTORE, errno.ENOSPC, False),
    (with_cause(with_cause(OSError(errno.EDQUOT, 'quota'))), errno.EDQUOT, False),
    (ValueError('UNAVAILABLE: try again'), None, True),
    (OSError('HTTP response code: 503 with body'), None, True),
  ],
)
def test_the_cause_is_found_and_some_pass(error, number, can_pass):
  assert disk.is_of_disk(error)
  assert disk.number(error) == number and disk.can_pass(error) == can_pass
  words = str(error) if number is None else os.strerror(number)
  message = str(disk.cannot_write('/a/b', error))
  assert message.startswith(f'cannot write /a/b: {words}; allowed: a disk with room')


def test_an_error_of_tensorflow_is_understood(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(tf.errors.OpError) as found:
    tf.io.write_file(f'{tmp_path}/file/events', 'x')
  assert disk.number(found.value) == errno.ENOTDIR


@pytest.mark.parametrize(
  'error', [TypeError('no array'), AssertionError(), ValueError('Step already exists')]
)
def test_a_defect_of_a_program_is_not_of_the_disk(saver, monkeypatch, error):
  assert not disk.is_of_disk(error) and not disk.can_pass(error)
  failing(saver, monkeypatch, error, times=1)
  save(saver, 4)
  with pytest.raises(type(error)):
    saver.wait_until_finished()
  assert saver.waits == []


def test_an_error_of_tensorstore_itself_is_understood(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  spec = {'driver': 'file', 'path': f'{tmp_path}/file/'}
  store = tensorstore.KvStore.open(spec).result()
  with pytest.raises(ValueError) as found:
    store.write('array', b'1').result()
  assert disk.number(found.value) == errno.ENOTDIR


@pytest.fixture
def saver(tmp_path, monkeypatch):
  """Returns a checkpointer whose waits between attempts are noted instead."""
  waits = []
  monkeypatch.setattr(checkpoint.time, 'sleep', waits.append)
  with checkpoint.Checkpointer(tmp_path / 'checkpoints') as saver:
    saver.waits = waits
    yield saver


def failing(saver, monkeypatch, error, times):
  """Makes the next saves of files fail, where Orbax writes in the background."""
  count = 0
  finalize = checksums.seal

  def seal(path):
    nonlocal count
    count += 1
    if count <= times:
      raise error
    finalize(path)

  monkeypatch.setattr(checksums, 'seal', seal)


def test_a_save_whose_cause_passes_is_repeated(saver, tmp_path, monkeypatch, caplog):
  failing(saver, monkeypatch, OSError(errno.EIO, 'bus'), times=2)
  save(saver, 4)
  saver.wait_until_finished()
  assert saver.steps() == [4] and saver.waits == list(checkpoint.RETRY_SECS[:2])
  assert 'of step 4 could not be written (Input/output error): again in 5 s' in (
    caplog.text
  )
  restored, _, _ = restore_item(tmp_path, 4)
  jax.tree.map(np.testing.assert_array_equal, restored['model'], parts(4)['model'])


def test_each_save_may_fail_anew(saver, monkeypatch):
  """Failures count in a row, not over the weeks of a run."""
  for step in range(1, 6):
    failing(saver, monkeypatch, OSError(errno.EIO, 'bus'), times=1)
    save(saver, step)  # In the place of the one before, which has failed.
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint.time, 'sleep', saver.waits.append)
    save(saver, step + 100)
    save(saver, step + 200)
  saver.wait_until_finished()
  assert set(saver.waits) == {1}


def test_after_a_failed_save_the_one_before_is_still_known(saver, monkeypatch):
  save(saver, 4)
  saver.wait_until_finished()
  failing(saver, monkeypatch, OSError(errno.EIO, 'bus'), times=1)
  save(saver, 8)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.time, 'sleep', lambda _: found.append(saver.steps()))
    found = []
    saver.wait_until_finished()
  assert found == [[4]] and saver.steps() == [8]


def test_one_of_several_hosts_does_not_repeat_a_save_alone(saver, monkeypatch):
  failing(saver, monkeypatch, OSError(errno.EIO, 'bus'), times=1)
  save(saver, 4)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(
    errors.RestartError, match='of step 4 could not be written .Input'
  ):
    saver._check_failure(OSError(errno.EIO, 'bus'))
  with pytest.raises(errors.UserError, match='No space left on device'):
    saver._check_failure(OSError(errno.ENOSPC, 'full'))
  monkeypatch.undo()
  monkeypatch.setattr(checkpoint.time, 'sleep', saver.waits.append)
  saver.wait_until_finished()


def test_orbax_leaves_the_preemption_service_alone(saver, monkeypatch):
  """Its calls, by the number of the step, would mix with those of the loop."""
  calls = []
  monkeypatch.setattr(
    multihost_utils, 'reached_preemption_sync_point', lambda i: calls.append(i) or False
  )
  save(saver, 4)
  saver.wait_until_finished()
  assert saver.steps() == [4] and calls == []


def test_the_next_save_stands_in_for_one_that_has_failed(saver, monkeypatch):
  failing(saver, monkeypatch, OSError(errno.EIO, 'bus'), times=1)
  save(saver, 4)
  save(saver, 8)
  saver.wait_until_finished()
  assert saver.steps() == [8] and saver.waits == [1]


@pytest.mark.parametrize('number, num_waits', [(errno.EIO, 3), (errno.ENOSPC, 0)])
def test_a_save_is_given_up(saver, tmp_path, monkeypatch, number, num_waits):
  save(saver, 4)
  saver.wait_until_finished()
  failing(saver, monkeypatch, OSError(number, ''), times=99)
  save(saver, 8)
  words = re.escape(f'/checkpoints/8: {os.strerror(number)}; allowed: ')
  with pytest.raises(errors.UserError, match=f'cannot write the checkpoint .*{words}'):
    saver.wait_until_finished()
  assert len(saver.waits) == num_waits
  restore_item(tmp_path, 4)
