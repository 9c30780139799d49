"""The checksums of a checkpoint: written with it, compared before it is read.

A checkpoint has the file SHA256SUMS, as `sha256sum` writes it, of all its files but the
mark of Orbax that the save has ended. It is our own since nothing of Orbax 0.12 covers
the arrays: it writes OCDBT, of which TensorStore checks the indexes (CRC-32C) and small
arrays inside them, and not the files of larger arrays; and of zarr3, where a codec
could check them, it sets `crc32c` on the index of shards alone.
"""

import concurrent.futures
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

import orbax.checkpoint as ocp
from etils import epath

from advprop_jax import errors, json_files
from advprop_jax.workdir import disk

FILE = 'SHA256SUMS'
_COMMITTED = ocp.path.atomicity.COMMIT_SUCCESS_FILE
_LINE = re.compile(r'([0-9a-f]{64})  (.+)')
_LAST_LINE = re.compile(r'# ([0-9a-f]{64}) of the lines above')
_CHUNK = 2**20  # Bytes.
_MAX_BYTES = 2**26  # Of the checksums: half a million files.
_OF_DAMAGE = {errno.EIO, errno.ELOOP, errno.ENOENT, errno.ENOTDIR}
_NUM_THREADS = 32  # Of a bucket, several files at a time are read faster.


class Report(NamedTuple):
  """What was found of a checkpoint."""

  problems: tuple[str, ...]  # 'model/d/0b5e...: its content has changed'
  has_checksums: bool  # False: nothing is known, since an older version saved it.
  num_files: int
  num_bytes: int


def seal(path: epath.Path):
  """Writes the checksums of all files of a directory, as they are now."""
  names = sorted(_files(path))
  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as executor:
    digests = executor.map(lambda name: _digest(path / name)[0], names)
    _write(path, [(x, name) for x, name in zip(digests, names, strict=True)])


def replace_file(path: epath.Path, name: str, content: bytes):
  """Replaces a file of a directory; a kill at any moment leaves it whole.

  Args:
    path: of the directory; an older one may have no checksums.
    name: of the file in it.
    content: the new one.

  Raises:
    UserError: the checksums are damaged, or it cannot be written.
  """
  with disk.writing(path / name):
    try:
      entries, damage = _read(path)
    except FileNotFoundError:
      disk.put(path / name, content)
      return
    if damage:
      raise errors.UserError(
        f'{path / FILE} {damage}; allowed: a checkpoint that is whole'
      )
    _replace(path, name, content, entries)


def _replace(path: epath.Path, name: str, content: bytes, entries):
  others = [(x, file) for x, file in entries if file != name]
  old = [(x, file) for x, file in entries if file == name]
  new = (hashlib.sha256(content).hexdigest(), name)
  _write(path, [*others, *old, new])  # Either content counts for this moment.
  disk.put(path / name, content)
  _write(path, [*others, new])


def check(
  path: epath.Path,
  *,
  items: Iterable[str] | None = None,
  part: int = 0,
  num_parts: int = 1,
) -> Report:
  """Compares the files of a checkpoint with their checksums, several at a time.

  Args:
    path: of the checkpoint.
    items: directories in it, of whose files alone it is asked, and those beside them;
      None: of all.
    part: which part of the files to read, of `num_parts`.
    num_parts: hosts that share the reading.

  Raises:
    UserError: a file cannot be read for now, or not by this user.
  """
  if not _is_directory(path):
    return Report((f'{path.name}: is no directory',), False, 0, 0)
  items = None if items is None else {*items}
  problem = _problem_of_kinds(path, items) or _problem_of_metrics(path, items)
  if problem:
    return Report((problem,), False, 0, 0)
  try:
    entries, damage = _read(path)
  except FileNotFoundError:
    is_there = any(_is_directory(path / item) for item in ('model', 'state'))
    return Report(() if is_there else ('model: is missing',), False, 0, 0)
  if damage:
    return Report((f'{FILE}: {damage}',), True, 0, 0)
  allowed: dict[str, set[str]] = {}
  for digest, name in entries:
    first, _, rest = name.partition('/')
    if items is None or not rest or first in items:
      allowed.setdefault(name, set()).add(digest)
  names = [*allowed][part::num_parts]
  with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as executor:
    found = [*executor.map(lambda name: _compare(path, name, allowed[name]), names)]
  problems = tuple(problem for problem, _ in found if problem is not None)
  return Report(problems, True, len(names), sum(size for _, size in found))


def _files(path: epath.Path, prefix: str = '') -> Iterable[str]:
  """Yields the names of all files below a directory, but for Orbax's last mark."""
  for entry in path.iterdir():
    name = f'{prefix}{entry.name}'
    if entry.is_dir():
      yield from _files(entry, f'{name}/')
    elif name not in (FILE, _COMMITTED):
      yield name


def _write(path: epath.Path, entries: list[tuple[str, str]]):
  lines = ''.join(f'{digest}  {name}\n' for digest, name in entries)
  last = f'# {hashlib.sha256(lines.encode()).hexdigest()} of the lines above\n'
  disk.put(path / FILE, (lines + last).encode())


def _read(path: epath.Path) -> tuple[list[tuple[str, str]], str | None]:
  """Returns the lines of the checksums, and in words what is wrong with them."""
  try:
    content = json_files.read_bytes(path / FILE, _MAX_BYTES)
  except json_files.UnreadableError as e:
    _raise_unreadable(e.__cause__, path / FILE)
    return [], str(e)
  lines, _, last = content.removesuffix(b'\n').rpartition(b'\n')
  found = _LAST_LINE.fullmatch(last.decode(errors='replace'))
  if not found or hashlib.sha256(lines + b'\n').hexdigest() != found[1]:
    return [], 'is damaged itself'
  text = lines.decode(errors='replace')
  entries = [_LINE.fullmatch(x) for x in text.split('\n')]
  return [(x[1], x[2]) for x in entries if x], None


def _compare(path: epath.Path, name: str, digests: set[str]):
  """Returns what is wrong with a file, or None, and its size in bytes."""
  if '..' in name.split('/') or name.startswith('/') or not name.isprintable():
    return f'{FILE}: names {name!r}, which is not in the checkpoint', 0
  try:
    if not json_files.is_file(path / name):
      return f'{name}: is no file', 0
    digest, size = _digest(path / name)
  except FileNotFoundError:
    return f'{name}: is missing', 0
  except OSError as e:
    _raise_unreadable(e, path / name)
    return f'{name}: cannot be read: {os.strerror(e.errno or 0)}', 0
  return None if digest in digests else f'{name}: its content has changed', size


def _raise_unreadable(e: BaseException | None, path=None):
  """Raises UserError if an error says that what cannot be read may be whole.

  Nothing is to be done about such a file. It is not so of a bad sector (EIO), of a link
  in a circle, and of what is not there.

  Args:
    e: the error; None, or none of a file system: it says nothing.
    path: of the file; None: the error has it.
  """
  if isinstance(e, OSError) and e.errno not in _OF_DAMAGE:
    raise disk.cannot_read(path or e.filename, e) from e


def _is_directory(path: epath.Path) -> bool:
  return path.is_dir() if '://' in os.fspath(path) else stat.S_ISDIR(_mode(path))


def _mode(path) -> int:
  """Returns the mode of what a local path leads to; 0: there is nothing."""
  try:
    return os.stat(path).st_mode
  except OSError as e:
    _raise_unreadable(e, path)
    return 0


def _problem_of_kinds(path: epath.Path, items: set[str] | None) -> str | None:
  """Returns what neither is a file nor a directory, if there is such a thing.

  A device or a pipe would not end, whether it has a checksum or not.
  """
  if '://' in os.fspath(path):  # A bucket has neither.
    return None
  for root, folders, files in os.walk(path, onerror=_raise_unreadable):
    place = os.path.relpath(root, path)
    if place == '.' and items is not None:
      folders[:] = [x for x in folders if x in items]
    for name in (*folders, *files):
      full = os.path.join(root, name)
      shown = name if place == '.' else f'{place}/{name}'
      if name in folders and os.path.islink(full):
        return f'{shown!r}: is a link to a directory'
      if name in files and not stat.S_ISREG(_mode(full)):
        return f'{shown}: is no file'
  return None


def _problem_of_metrics(path: epath.Path, items: set[str] | None) -> str | None:
  """Returns what keeps Orbax from reading the metrics, if anything."""
  if items is not None and 'metrics' not in items:
    return None
  name = 'metrics/metrics'
  try:
    json_files.read_object(path / name)
  except FileNotFoundError:
    return None
  except json_files.UnreadableError as e:
    _raise_unreadable(e.__cause__, path / name)
    return f'{name}: {e}'
  return None


def _digest(path: epath.Path) -> tuple[str, int]:
  """Returns the SHA-256 of a file, and its size in bytes."""
  digest, size = hashlib.sha256(), 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)  # Without Python's lock: files are hashed in parallel.
      size += len(chunk)
  return digest.hexdigest(), size
