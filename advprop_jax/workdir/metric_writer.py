"""Where the numbers go: TensorBoard, `results.jsonl` and the log.

Names are `{split}/{stream or branch}_{quantity}`: train/adv_loss, val/clean_top1.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterable

import jax
import numpy as np
from clu import metric_writers
from etils import epath
from PIL import Image
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer import record_writer

from advprop_jax import json_files
from advprop_jax.workdir import disk, spent


class MetricWriter:
  """Writes metrics of one run into its workdir; a context manager.

  TensorBoard files lie in `<workdir>/tensorboard`, written by CLU in the background;
  `<workdir>/results.jsonl` has one object a line, {'step': 3, 'val/clean_top1': 0.9};
  null stands for what is not finite; pictures lie in `<workdir>/pictures` as well.
  Only the first of several hosts writes files; all of them log.
  """

  def __init__(self, workdir: epath.Path, *, resume_step: int | None = None):
    """Opens the files of `workdir`, to append to them.

    Args:
      workdir: existing directory.
      resume_step: the step that training goes on from; lines of later steps, left by a
        run that was stopped after its last checkpoint, are dropped, and TensorBoard
        leaves out their points: they will come again. None: all stays.
    """
    self._is_first_host = jax.process_index() == 0
    self._tensorboard = workdir / 'tensorboard'
    with self._writing_tensorboard():
      if self._is_first_host and resume_step is not None and self._tensorboard.exists():
        _leave_out_after(resume_step, self._tensorboard)
      self._clu = metric_writers.create_default_writer(
        self._tensorboard, just_logging=not self._is_first_host
      )
    self._results = workdir / 'results.jsonl'
    self._pictures = workdir / 'pictures'
    # The last line of training that was dropped; None: there was none.
    self.dropped: dict | None = None
    # The last line, kept or not, that says what was lost before a start.
    self.last_start: dict | None = None
    if self._is_first_host and self._results.exists():
      with disk.writing(self._results):
        self._mend_results(resume_step)

  @contextlib.contextmanager
  def _writing_tensorboard(self):
    """Turns errors of CLU, which may be of an earlier call, into one line."""
    try:
      yield
    except Exception as e:
      if not disk.is_of_disk(e):
        raise
      raise disk.cannot_write(self._tensorboard, e) from e

  def _mend_results(self, resume_step: int | None):
    """Drops the lines that will come again, and ends half a line of a killed run."""
    # Bytes: what a full disk or a crash left need not be text.
    content = self._results.read_bytes()
    if resume_step is None:
      if content and not content.endswith(b'\n'):
        with self._results.open('ab') as f:  # A training may be adding lines.
          f.write(b'\n')
      return
    lines = content.split(b'\n')
    kept = [line for line in lines if line and _step(line) <= resume_step]
    start = max(0, resume_step)
    later = [_parse(x) for x in reversed(lines) if start <= _step(x) < math.inf]
    self.last_start = _first_with(later, *spent.TOTALS)
    trained = (x for x in later if x['step'] > start)
    self.dropped = _first_with(trained, spent.DEVICE_HOURS)
    disk.put(self._results, b''.join(line + b'\n' for line in kept))

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, exc_type, *exc_info):
    try:
      with self._writing_tensorboard():
        self._clu.close()
    except Exception:
      if exc_type is None:
        raise
      # The error that is under way says more.

  def write_scalars(
    self, step: int, scalars: dict[str, float], *, about: dict | None = None
  ):
    """Writes one line of results and the same numbers to TensorBoard and the log.

    Args:
      step: of training.
      scalars: {name: number}.
      about: what the numbers are of, JSON values; in the line alone.
    """
    with self._writing_tensorboard():
      self._clu.write_scalars(step, scalars)
    if self._is_first_host:
      with disk.writing(self._results), self._results.open('a') as f:
        # JSON has no NaN and no infinity: an untrained model may have such a loss.
        finite = {k: x if math.isfinite(x) else None for k, x in scalars.items()}
        f.write(json.dumps({'step': step, **(about or {}), **finite}) + '\n')

  def write_image(self, step: int, name: str, image: np.ndarray):
    """Writes uint8 [H, W, 3] to TensorBoard and `pictures/`, a file for each step."""
    with self._writing_tensorboard():
      self._clu.write_images(step, {name: image[None]})
    if self._is_first_host:
      # The part of the name before the last '/', which may be a path itself.
      stem = re.sub(r'[^\w.-]+', '_', name.rpartition('/')[0]).strip('_')
      path = self._pictures / f'{stem}_step_{step:07d}.png'
      with disk.writing(path):
        self._pictures.mkdir(exist_ok=True)
        with path.open('wb') as f:
          Image.fromarray(image).save(f, format='PNG')

  def write_hparams(self, hparams: dict):
    """Writes the flat config to TensorBoard's table of hyper-parameters."""
    with self._writing_tensorboard():
      self._clu.write_hparams(hparams)


def _leave_out_after(step: int, folder: epath.Path):
  """Tells TensorBoard to leave out the points of later steps, of earlier files.

  Source: `_CheckForRestartAndMaybePurge` of TensorBoard 2.21. It takes the first START
  of a run for its beginning, hence two of them.
  """
  log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  start = event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=log)
  version = event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2')
  # TensorBoard reads files by name: this one before that of CLU of the same second.
  name = f'events.out.tfevents.{int(time.time())}.-resumed'
  with (folder / name).open('wb') as file:
    writer = record_writer.RecordWriter(file)
    for event in (version, start, start):
      writer.write(event.SerializeToString())


def _step(line: bytes) -> float:
  """Returns the step of a line of results; infinity for half a line of a killed run."""
  found = _parse(line)
  return found['step'] if _has_numbers(found, 'step') else math.inf


def _first_with(lines: Iterable[dict], *keys: str) -> dict | None:
  """Returns the first line that has numbers for these keys, if there is one."""
  return next((x for x in lines if _has_numbers(x, *keys)), None)


def _has_numbers(line: dict, *keys: str) -> bool:
  found = [line.get(key) for key in keys]
  return all(isinstance(x, int | float) and abs(x) < math.inf for x in found)


def _parse(line: bytes) -> dict:
  """Returns a line of results; {} of what is none."""
  try:
    return json_files.parse_object(line)
  except json_files.UnreadableError:
    return {}
