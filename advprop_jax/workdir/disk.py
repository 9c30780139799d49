"""Errors of file systems: which may pass, and in one line what each means for a run."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from advprop_jax import errors

# What does not pass by itself. Others may, on a file system of a network.
LASTING = {
  *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG),
  *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
}
# Words of errors that have no number. Source: the status codes of gRPC and HTTP, in
# which TensorStore and Google's storage report.
_TRANSIENT = re.compile(
  r'\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|Service Unavailable|Too Many Requests|'
  r'HTTP response code: (429|5\d\d))\b'
)
# What TensorFlow and others write of the number.
_WORDS = {
  os.strerror(x): x
  for x in (*LASTING, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)
}
# TensorStore: "... No space left on device [os_error_code='28']".
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


@contextlib.contextmanager
def writing(path) -> Iterator[None]:
  """Turns errors of a file system inside the `with` block into one line.

  Args:
    path: what is written, for the message.

  Raises:
    UserError: it cannot be written.
  """
  try:
    yield
  except OSError as e:
    raise cannot_write(path, e) from e


def put(path, content: bytes):
  """Writes a file as a whole, in the place of the one that is there.

  Args:
    path: of `etils.epath` or `pathlib`.
    content: of the file.
  """
  new = path.with_name(f'{path.name}.new')
  new.unlink(missing_ok=True)  # It may be a link to what is not ours, or a pipe.
  new.write_bytes(content)
  new.replace(path)


def cannot_write(path, e: BaseException) -> errors.UserError:
  """Returns the error that says in one line that something cannot be written."""
  if number(e) == errno.ELOOP:
    return errors.UserError(
      f'{path} is a link; allowed: what a run has written, or no such thing'
    )
  if number(e) == errno.ENOENT:
    return errors.UserError(
      f'cannot write {path}: its directory was deleted; allowed: a --workdir that '
      'stays during a run; the same command goes on from what is left in it'
    )
  return errors.UserError(
    f'cannot write {path}: {reason(e)}; allowed: a disk with room for it, that may be '
    'written to; what was saved before is whole, and the same command goes on from it'
  )


def cannot_read(path, e: BaseException) -> errors.UserError:
  """Returns the error that says in one line that something cannot be read."""
  return errors.UserError(
    f'cannot read {path}: {reason(e)}; allowed: files that you may read'
  )


def is_of_disk(e: BaseException) -> bool:
  """Returns whether an error is of a file system, and not of the program."""
  return number(e) is not None or _TRANSIENT.search(str(e)) is not None


def can_pass(e: BaseException) -> bool:
  """Returns whether the cause of an error may be gone at the next attempt."""
  return is_of_disk(e) and number(e) not in LASTING


def reason(e: BaseException) -> str:
  """Returns in a few words what was wrong."""
  if (found := number(e)) is not None:
    return os.strerror(found)
  lines = str(e).splitlines() or ['']
  return lines[0].rstrip('.') or type(e).__name__


def number(e: BaseException | None) -> int | None:
  """Returns the `errno` of an error or of what has caused it; None: it has none."""
  while e is not None:
    if isinstance(e, OSError) and e.errno is not None:
      return e.errno
    if found := _OS_ERROR.search(str(e)):
      return int(found[1])
    if words := next((x for x in _WORDS if x in str(e)), None):
      return _WORDS[words]
    e = e.__cause__ or e.__context__
  return None
