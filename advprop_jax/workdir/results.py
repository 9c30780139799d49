"""The files eval/<suite>.json: results that an interrupted evaluation goes on from."""

import copy
import datetime
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import numpy as np
from absl import logging
from etils import epath

from advprop_jax import errors, json_files
from advprop_jax.workdir import disk

FOLDER = 'eval'
# What `zipfile` raises for damaged archives, and for those of other programs.
_OF_ARCHIVES = (
  zipfile.BadZipFile,
  zlib.error,
  RuntimeError,
  struct.error,
)


class SuiteFile:
  """The file of a suite, whose cells are written one by one."""

  def __init__(
    self,
    workdir: epath.Path,
    suite: str,
    identity: dict[str, Any],
    problem_of: Callable[[dict[str, Any]], str],
  ):
    """Reads what is there of the same weights, evaluated in the same way.

    Args:
      workdir: of the run.
      suite: name of the suite.
      identity: what the results depend on, beside each cell's own images; JSON values.
        A file with another identity is kept under another name, and is taken up again
        when its weights are evaluated again.
      problem_of: returns which key of a file is not as it was written, or ''.
    """
    self._problem_of = problem_of
    self.path = workdir / FOLDER / f'{suite}.json'
    self._identity = identity
    self.content: dict[str, Any] = {'suite': suite, **identity, 'cells': {}}
    self._written: dict[str, Any] | None = None  # What this object knows to be there.
    self._taken_from: epath.Path | None = None  # A kept file of these weights.
    kept = self._place(identity)
    if self._is_same(there := self._read(self.path)):
      self.content, self._written = there, copy.deepcopy(there)
    elif self._is_same(there := self._read(kept)):
      self.content, self._taken_from = there, kept
    self._old = dict(self.content['cells'])

  def _read(self, path: epath.Path) -> dict[str, Any] | None:
    """Returns the results in a file; None if it is not there, or is damaged."""
    try:
      found = json_files.read_object(path)
    except FileNotFoundError:
      return None
    except json_files.UnreadableError as e:
      if path.is_dir():  # No file can take its place.
        raise errors.UserError(f'{path} {e}; allowed: a file, or no such thing') from e
      found = {}
    if self._problem_of(found) or 'step' not in found['checkpoint']:
      logging.warning('%s is damaged and is not used', path)
      return None
    return found

  def _is_same(self, content: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    return content is not None and self._identity_of(content) == self._identity

  def _identity_of(self, content: dict[str, Any]) -> dict[str, Any]:
    return {key: content.get(key) for key in self._identity}

  def _place(self, identity: dict[str, Any]) -> epath.Path:
    """Returns where results are kept that are not those of the last evaluation."""
    text = json.dumps(identity, sort_keys=True).encode()
    step = identity['checkpoint']['step']
    digest = hashlib.sha256(text).hexdigest()[:8]
    return self.path.with_name(f'{self.path.name}.step{step}-{digest}')

  def find(self, cell: str, about: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a cell's results if they are there, of the same images.

    Args:
      cell: its name.
      about: what the results say of their images; JSON values.
    """
    old = self._old.get(cell)
    if old is None or {key: old.get(key) for key in about} != about:
      return None
    return old

  def save(self):
    """Writes the content if it is not there yet; on the first of several hosts."""
    if jax.process_index() == 0 and self.content != self._written:
      with disk.writing(self.path):
        self._save()

  def _save(self):
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self._written is None:  # Another evaluation may have written since the start.
      there = self._read(self.path)
      if there is not None and not self._is_same(there):
        place = self._place(self._identity_of(there))
        self.path.replace(place)
        logging.info(
          '%s is of other weights, data, crop, network or attack: it is kept as %s',
          *(self.path, place.name),
        )
    if self._taken_from is not None:
      now = datetime.datetime.now(datetime.UTC)
      self.content['taken_up'] = now.isoformat(timespec='seconds')
    new = self.path.with_name(f'{self.path.name}.{os.getpid()}.new')
    new.write_text(json.dumps(self.content, indent=1, allow_nan=False) + '\n')
    new.replace(self.path)
    self._written = copy.deepcopy(self.content)
    if self._taken_from is not None:
      logging.info('results of %s are taken up again', self._taken_from)
      self._taken_from.unlink(missing_ok=True)
      self._taken_from = None


class ExamplesFile:
  """The file of what became of each example of a suite, of this host."""

  def __init__(self, workdir: epath.Path, suite: str, identity: dict[str, Any]):
    """Finds the file.

    Args:
      workdir: of the run.
      suite: name of the suite.
      identity: what the results depend on, JSON values; each has a file of its own.
    """
    self._identity = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(self._identity.encode()).hexdigest()[:8]
    host = f'.{jax.process_index()}' if jax.process_count() > 1 else ''
    self.path = workdir / FOLDER / f'{suite}.examples.{digest}{host}.npz'

  def read(self) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays and the text that were saved last; none, and '', if none."""
    try:
      content = io.BytesIO(json_files.read_bytes(self.path))
      with zipfile.ZipFile(content) as archive:  # A small one may say it is large.
        size = sum(x.file_size for x in archive.infolist())
      if size > json_files.MAX_BYTES:
        raise ValueError(f'{size} bytes')
      with np.load(content, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
      identity, text = (str(arrays.pop(key)) for key in ('identity', 'text'))
    except FileNotFoundError:
      return {}, ''
    # As many errors as there are parts of a zip archive; the third, of an array that
    # says it is large.
    except (ValueError, KeyError, MemoryError, EOFError, OSError, *_OF_ARCHIVES):
      logging.warning('%s is damaged and is not used', self.path)
      return {}, ''
    return (arrays, text) if identity == self._identity else ({}, '')

  def save(self, arrays: dict[str, np.ndarray], text: str):
    """Replaces the file at once."""
    buffer = io.BytesIO()
    values: dict[str, Any] = {'identity': self._identity, 'text': text, **arrays}
    np.savez_compressed(buffer, **values)
    new = self.path.with_name(f'{self.path.name}.{os.getpid()}.new')
    with disk.writing(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      new.write_bytes(buffer.getvalue())
      new.replace(self.path)
