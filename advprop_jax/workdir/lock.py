"""Keeps two trainings from writing to one workdir at the same time.

And one from writing to a workdir that was deleted, and perhaps made anew by another.
"""

import contextlib
import errno
import fcntl
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator

import jax
from absl import logging
from etils import epath

from advprop_jax import errors
from advprop_jax.workdir import disk

FILE = 'lock'
_WAIT_SECS = 10.0  # For one that is just ending.
# Of a file system that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[Callable[[], None]]:
  """Holds the lock of a workdir, on the first host; the kernel frees it at an exit.

  In a bucket, and on a file system without locks, nothing is held.

  Args:
    workdir: existing directory.

  Yields:
    A function for after `directory.write_config`, which raises UserError on the first
    host if the workdir was deleted since.

  Raises:
    RestartError: another training holds it, or it cannot be locked for now.
    UserError: the file cannot be written.
  """
  path = os.path.join(workdir, FILE)
  if jax.process_index() != 0:
    yield lambda: None
    return
  if '://' in path:
    yield functools.partial(_check, workdir, None)
    return
  with contextlib.ExitStack() as stack:
    with disk.writing(path):
      # Not through a link, which may be to what is not ours.
      file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    stack.callback(os.close, file)
    try:
      _acquire(file, workdir)
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise _cannot_lock(path, e) from e
      logging.warning(
        '%s cannot be locked (%s): a second training in it would not be noticed',
        *(workdir, os.strerror(e.errno)),
      )
    else:
      # A forked process may have the file open for longer.
      stack.callback(_release, file)
    with disk.writing(path):
      os.ftruncate(file, 0)
      os.pwrite(file, f'process {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
    yield functools.partial(_check, workdir, file)


def _check(workdir: epath.Path, file: int | None):
  """Raises UserError if a workdir was deleted; `file` is its lock, opened before."""
  is_there = None
  if file is not None:
    with contextlib.suppress(FileNotFoundError):
      found = os.stat(os.path.join(workdir, FILE))
      is_there = os.path.samestat(found, os.fstat(file))
  if is_there is None:  # A bucket, or the lock alone was deleted.
    is_there = (workdir / 'config.json').exists()
  if not is_there:
    raise errors.UserError(
      f'--workdir {workdir} was deleted while the run wrote to it; allowed: one that '
      'stays during a run; the same command goes on from what is left in it'
    )


def _acquire(file: int, workdir: epath.Path):
  """Takes the lock of a file; RestartError if another process keeps it."""
  end = time.monotonic() + _WAIT_SECS
  while True:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    except BlockingIOError as e:
      if time.monotonic() > end:
        holder = os.pread(file, 200, 0).decode(errors='replace').strip()
        shown = holder if holder.isprintable() else repr(holder)
        raise errors.RestartError(
          f'another training writes to --workdir {workdir} ({shown}): the same command '
          'goes on when that has ended'
        ) from e
    time.sleep(0.2)


def _release(file: int):
  with contextlib.suppress(OSError):  # As of a file server that is gone.
    fcntl.flock(file, fcntl.LOCK_UN)


def _cannot_lock(path: str, e: OSError) -> Exception:
  if disk.can_pass(e):
    return errors.RestartError(
      f'{path} cannot be locked ({disk.reason(e)}): the same command goes on'
    )
  return disk.cannot_write(path, e)
