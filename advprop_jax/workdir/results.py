"""The files eval/<suite>.json: results that an interrupted evaluation goes on from."""

import copy
import hashlib
import json
import os
from typing import Any

import jax
from absl import logging
from etils import epath

FOLDER = 'eval'


class SuiteFile:
  """The file of a suite, whose cells are written one by one."""

  def __init__(self, workdir: epath.Path, suite: str, identity: dict[str, Any]):
    """Reads what is there of the same weights, evaluated in the same way.

    Args:
      workdir: of the run.
      suite: name of the suite.
      identity: what the results depend on, beside the images of each cell; JSON values.
        A file with another identity is kept under another name, and is taken up again
        when its weights are evaluated again.
    """
    self.path = workdir / FOLDER / f'{suite}.json'
    self._kept_as: epath.Path | None = None  # Where a file of other weights goes.
    self._written: dict[str, Any] | None = None  # What stands in the file.
    self.content: dict[str, Any] = {'suite': suite, **identity, 'cells': {}}
    there = _read(self.path)
    if there is not None and _identity(there, identity) != identity:
      self._kept_as = self._place(_identity(there, identity))
      there = None
    elif there is not None:
      self._written = copy.deepcopy(there)
    self._taken_from: epath.Path | None = None  # A kept file of these weights.
    if there is None:
      there = _read(self._place(identity))
      self._taken_from = self._place(identity) if there is not None else None
    if there is not None and _identity(there, identity) == identity:
      self.content = there
    self._old = dict(self.content['cells'])

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
    if jax.process_index() != 0 or self.content == self._written:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self._kept_as is not None:
      self.path.replace(self._kept_as)
      logging.info(
        '%s is of other weights, data, crop, network or attack: it is kept as %s',
        *(self.path, self._kept_as.name),
      )
      self._kept_as = None
    new = self.path.with_name(f'{self.path.name}.{os.getpid()}.new')
    new.write_text(json.dumps(self.content, indent=1, allow_nan=False) + '\n')
    new.replace(self.path)
    self._written = copy.deepcopy(self.content)
    if self._taken_from is not None:
      logging.info('results of %s are taken up again', self._taken_from)
      self._taken_from.unlink(missing_ok=True)
      self._taken_from = None


def _read(path: epath.Path) -> dict[str, Any] | None:
  """Returns the results in a file; None if it is not there, or is damaged."""
  try:
    found = json.loads(path.read_text())
    int(found['checkpoint']['step'])
    if not all(isinstance(x, dict) for x in found['cells'].values()):
      raise TypeError('a cell that is no object')
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    logging.warning('%s is damaged and is not used', path)
    return None
  return found


def _identity(content: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
  return {key: content.get(key) for key in like}
