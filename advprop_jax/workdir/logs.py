"""Where the numbers go: TensorBoard, `results.jsonl` and the log.

Names are `{split}/{stream or branch}_{quantity}`: train/adv_loss, val/clean_top1.
"""

import contextlib
import json
import logging as std_logging
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import clu
import jax
import numpy as np
from absl import logging
from clu import metric_writers, parameter_overview, periodic_actions
from etils import epath
from PIL import Image

from advprop_jax import json_files
from advprop_jax.workdir import disk

# Of what a run has spent, beside the seconds of its phases: hours times devices, and of
# them those of work that a start had to do again.
DEVICE_HOURS, LOST_DEVICE_HOURS = 'device_hours', 'lost_device_hours'
LOST_STEPS = 'lost_steps'
# What CLU logs beside the metrics: the whole config in one line, shapes of pictures,
# that there is a profile.
NOISE = (
  *('[Hyperparameters]', '[%d]%s Got', 'Created artifact'),
  # What Orbax adds to the error of a workdir that was deleted.
  *('Unable to find the step', 'Metadata file does not exist'),
)


def log_for_people(*sources: str):
  """Logs what these sources and CLU say, and everybody's warnings, with the time.

  Orbax alone would say fifty lines about each checkpoint.

  Args:
    *sources: beginnings of the paths of source files.
  """
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  shown = (*sources, os.path.dirname(clu.__file__))
  handler.addFilter(
    lambda record: (
      (record.levelno > std_logging.INFO or record.pathname.startswith(shown))
      and not str(record.msg).startswith(NOISE)
      # CLU and Orbax raise in the main thread what they log of theirs.
      and not (record.exc_info and not record.pathname.startswith(sources))
    )
  )
  leave_out_late_callbacks()


def leave_out_late_callbacks():
  """Keeps TensorStore from printing an error of its own after each that it raises.

  When a file cannot be written, Orbax closes the event loop of the save, and those that
  are written meanwhile find it closed.
  """
  show = sys.unraisablehook

  def show_others(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      show(unraisable)

  sys.unraisablehook = show_others


def create_progress(
  num_steps: int, *, every_steps: int | None = None, every_secs: float | None = None
):
  """Returns `report(step)`, which logs the progress with the time left, by CLU."""
  return periodic_actions.ReportProgress(
    num_train_steps=num_steps, every_steps=every_steps, every_secs=every_secs
  )


def create_profiler(
  workdir: epath.Path, *, num_steps: int, first_step: int, last_step: int
) -> Callable[[int, Any], None] | None:
  """Returns `profile(step, outputs)`, which records some steps for TensorBoard, by CLU.

  To be called after every step. Those after the first, which compiles, are recorded; in
  a run that is shorter they are all that are left. None: there is nothing to record.

  Args:
    workdir: of the run; what is recorded lies in its tensorboard/.
    num_steps: to record; 0: none.
    first_step: of this start of the run.
    last_step: of the run.
  """
  if not num_steps:
    return None
  last = min(first_step + num_steps, last_step)
  if last == first_step:
    logging.warning('step %d is the only one left: nothing is profiled', last)
    return None
  logdir = workdir / 'tensorboard'
  record = periodic_actions.Profile(
    logdir=logdir,
    num_profile_steps=last - first_step,
    profile_duration_ms=None,
    first_profile=first_step,
    every_secs=None,
  )

  def profile(step, outputs):
    if step in (first_step, last):  # The profile has whole steps.
      jax.block_until_ready(outputs)
    record(step)
    if step == last:
      logging.info(
        'steps %d to %d are profiled: pip install xprof, then tensorboard --logdir=%s',
        *(first_step + 1, last, logdir),
      )

  return profile


def log_parameters(params):
  """Logs a table of the weights: name, shape, size, mean, standard deviation."""
  parameter_overview.log_parameter_overview(params, msg='shared weights:')


def log_shapes(params):
  """Logs a table of the weights of which only shapes and types are there."""
  table = parameter_overview.get_parameter_overview(params, include_stats=False)
  logging.info('shared weights:\n%s', table)


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
        run that was stopped after its last checkpoint, are dropped: they will come
        again. None: every line stays.
    """
    self._is_first_host = jax.process_index() == 0
    self._tensorboard = workdir / 'tensorboard'
    with self._writing_tensorboard():
      self._clu = metric_writers.create_default_writer(
        self._tensorboard, just_logging=not self._is_first_host
      )
    self._results = workdir / 'results.jsonl'
    self._pictures = workdir / 'pictures'
    # The last line of training that was dropped; None: there was none.
    self.dropped: dict | None = None
    if self._is_first_host and self._results.exists():
      with disk.writing(self._results):
        self._mend_results(resume_step)

  @contextlib.contextmanager
  def _writing_tensorboard(self):
    """Turns errors of CLU, which may be of an earlier call, into one line."""
    try:
      yield
    except Exception as e:
      raise disk.cannot_write(self._tensorboard, e) from e

  def _mend_results(self, resume_step: int | None):
    """Drops the lines that will come again, and ends half a line of a killed run."""
    # Bytes: what a full disk or a crash left need not be text.
    lines = self._results.read_bytes().split(b'\n')
    if resume_step is None:
      kept = lines[:-1] if not lines[-1] else lines
    else:
      kept = [line for line in lines if line and _step(line) <= resume_step]
      later = [_parse(x) for x in lines if resume_step < _step(x) < math.inf]
      self.dropped = next((x for x in reversed(later) if _has_number(x)), None)
    new = self._results.with_name('results.jsonl.new')
    new.unlink(missing_ok=True)  # It may be a link to what is not ours.
    new.write_bytes(b''.join(line + b'\n' for line in kept))
    new.replace(self._results)

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, exc_type, *exc_info):
    try:
      self._clu.close()
    except Exception as e:
      if exc_type is None:
        raise disk.cannot_write(self._tensorboard, e) from e
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


def _step(line: bytes) -> float:
  """Returns the step of a line of results; infinity for half a line of a killed run."""
  found = _parse(line)
  return found['step'] if _has_number(found, 'step') else math.inf


def _has_number(line: dict, key: str = DEVICE_HOURS) -> bool:
  return isinstance(line.get(key), int | float) and abs(line[key]) < math.inf


def _parse(line: bytes) -> dict:
  """Returns a line of results; {} of what is none."""
  try:
    return json_files.parse_object(line)
  except json_files.UnreadableError:
    return {}


class PhaseTimer:
  """Adds up the seconds spent in each named phase of a run since its last start."""

  def __init__(self):
    self.secs: dict[str, float] = {}
    self._earlier: dict[str, float] = {LOST_DEVICE_HOURS: 0.0, LOST_STEPS: 0}
    self._start = time.monotonic()

  @property
  def spent(self) -> dict[str, float]:
    """Returns what all starts of the run have spent, to go on from: JSON values.

    They are the seconds of each phase, for work that was kept; the hours of the run
    times its devices, idle ones, too; and of these the hours of work that was lost.
    """
    hours = (time.monotonic() - self._start) / 3600
    now = {**self.secs, DEVICE_HOURS: hours * jax.device_count()}
    earlier = self._earlier
    return earlier | {key: earlier.get(key, 0.0) + x for key, x in now.items()}

  def scalars(self) -> dict[str, float]:
    """Returns what was spent, by the names that it has in results."""
    totals = (DEVICE_HOURS, LOST_DEVICE_HOURS, LOST_STEPS)
    return {k if k in totals else f'secs/{k}': x for k, x in self.spent.items()}

  def add(self, spent: dict[str, float]):
    """Adds what earlier starts of the run have spent, up to the checkpoint."""
    self._earlier |= spent

  def add_lost(self, line: dict[str, float], *, resume_step: int):
    """Adds what was spent after the checkpoint, to be done again.

    Args:
      line: of results, the last of the start that was stopped. What came after it is
        not known.
      resume_step: of the checkpoint.
    """
    known = self._earlier.get(DEVICE_HOURS, 0.0)
    lost = max(0.0, line[DEVICE_HOURS] - known)
    self._earlier[DEVICE_HOURS] = known + lost
    self._earlier[LOST_DEVICE_HOURS] += lost
    self._earlier[LOST_STEPS] += line['step'] - resume_step

  @contextlib.contextmanager
  def __call__(self, phase: str):
    """Counts the time inside the `with` block towards `phase`."""
    start = time.monotonic()
    yield
    self.secs[phase] = self.secs.get(phase, 0.0) + time.monotonic() - start

  def __str__(self):
    return ', '.join(f'{phase} {secs:.1f} s' for phase, secs in self.secs.items())
