"""The files eval/<suite>.json: results that an interrupted evaluation goes on from."""

import json
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
        A file with another identity is kept under another name.
    """
    self.path = workdir / FOLDER / f'{suite}.json'
    self._keep_as: epath.Path | None = None  # A file of other weights.
    self.content: dict[str, Any] = {'suite': suite, **identity, 'cells': {}}
    try:
      saved = json.loads(self.path.read_text())
      if {key: saved.get(key) for key in identity} == identity:
        if not all(isinstance(x, dict) for x in saved['cells'].values()):
          raise TypeError('a cell that is no object')
        self.content = saved
      else:
        day = str(saved['date']).replace(':', '')
        self._keep_as = self.path.with_name(f'{self.path.name}.{day}')
        logging.info(
          '%s is of other weights (step %s), network or attack: it is kept as %s',
          *(self.path, saved['checkpoint']['step'], self._keep_as.name),
        )
    except FileNotFoundError:
      pass
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      logging.warning('%s is damaged and is written anew', self.path)
    self._old = dict(self.content['cells'])

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
    """Writes the content; on the first of several hosts."""
    if jax.process_index() != 0:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self._keep_as is not None:
      self.path.replace(self._keep_as)
      self._keep_as = None
    new = self.path.with_name(f'{self.path.name}.new')
    new.write_text(json.dumps(self.content, indent=1, allow_nan=False) + '\n')
    new.replace(self.path)
