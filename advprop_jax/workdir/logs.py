"""Where the numbers go: TensorBoard, `results.jsonl` and the log.

Names are `{split}/{stream or branch}_{quantity}`: train/adv_loss, val/clean_top1.
"""

import contextlib
import json
import logging as std_logging
import math
import os
import re
import time

import clu
import jax
import numpy as np
from absl import logging
from clu import metric_writers, parameter_overview, periodic_actions
from etils import epath
from PIL import Image

DEVICE_HOURS = 'device_hours'  # Beside the seconds of the phases.
# What CLU logs beside the metrics: the whole config in one line, shapes of pictures.
NOISE = ('[Hyperparameters]', '[%d]%s Got')


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
    )
  )


def create_progress(
  num_steps: int, *, every_steps: int | None = None, every_secs: float | None = None
):
  """Returns `report(step)`, which logs the progress with the time left, by CLU."""
  return periodic_actions.ReportProgress(
    num_train_steps=num_steps, every_steps=every_steps, every_secs=every_secs
  )


def create_profiler(
  workdir: epath.Path, *, num_steps: int, first_step: int, last_step: int
):
  """Returns `profile(step)`, which records some steps for TensorBoard, by CLU.

  The first steps compile and fill the pipeline: the third is the earliest recorded.

  Args:
    workdir: of the run; what is recorded lies in its tensorboard/.
    num_steps: to record; 0: none.
    first_step: of this start of the run.
    last_step: of the run.
  """
  first = min(first_step + 2, last_step - num_steps)
  if not num_steps:
    return lambda step: None
  if first < first_step:
    logging.warning(
      'profile_steps is %d, and from step %d on are %d: nothing is profiled',
      *(num_steps, first_step, last_step - first_step + 1),
    )
    return lambda step: None
  logging.info(
    'steps %d to %d are profiled: tensorboard --logdir=%s, with the plugin of '
    '`pip install xprof`',
    *(first + 1, first + num_steps, workdir),
  )
  return periodic_actions.Profile(
    logdir=workdir / 'tensorboard',
    num_profile_steps=num_steps,
    profile_duration_ms=None,
    first_profile=first,
    every_secs=None,
  )


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
    self._clu = metric_writers.create_default_writer(
      workdir / 'tensorboard', just_logging=not self._is_first_host
    )
    self._results = workdir / 'results.jsonl'
    self._pictures = workdir / 'pictures'
    if self._is_first_host and self._results.exists():
      self._mend_results(resume_step)

  def _mend_results(self, resume_step: int | None):
    """Drops the lines that will come again, and ends half a line of a killed run."""
    # Bytes: what a full disk or a crash left need not be text.
    lines = self._results.read_bytes().split(b'\n')
    if resume_step is None:
      kept = lines[:-1] if not lines[-1] else lines
    else:
      kept = [line for line in lines if line and _step(line) <= resume_step]
    new = self._results.with_name('results.jsonl.new')
    new.write_bytes(b''.join(line + b'\n' for line in kept))
    new.replace(self._results)

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *exc_info):
    self._clu.close()

  def write_scalars(
    self, step: int, scalars: dict[str, float], *, about: dict | None = None
  ):
    """Writes one line of results and the same numbers to TensorBoard and the log.

    Args:
      step: of training.
      scalars: {name: number}.
      about: what the numbers are of, JSON values; in the line alone.
    """
    self._clu.write_scalars(step, scalars)
    if self._is_first_host:
      with self._results.open('a') as f:
        # JSON has no NaN and no infinity: an untrained model may have such a loss.
        finite = {k: x if math.isfinite(x) else None for k, x in scalars.items()}
        f.write(json.dumps({'step': step, **(about or {}), **finite}) + '\n')

  def write_image(self, step: int, name: str, image: np.ndarray):
    """Writes uint8 [H, W, 3] to TensorBoard and `pictures/`, a file for each step."""
    self._clu.write_images(step, {name: image[None]})
    if self._is_first_host:
      self._pictures.mkdir(exist_ok=True)
      # The part of the name before the last '/', which may be a path itself.
      stem = re.sub(r'[^\w.-]+', '_', name.rpartition('/')[0]).strip('_')
      with (self._pictures / f'{stem}_step_{step:07d}.png').open('wb') as f:
        Image.fromarray(image).save(f, format='PNG')

  def write_hparams(self, hparams: dict):
    """Writes the flat config to TensorBoard's table of hyper-parameters."""
    self._clu.write_hparams(hparams)


def _step(line: bytes) -> float:
  """Returns the step of a line of results; infinity for half a line of a killed run."""
  try:
    return float(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError, RecursionError):
    return math.inf


class PhaseTimer:
  """Adds up the seconds spent in each named phase of a run."""

  def __init__(self):
    self.secs: dict[str, float] = {}
    self._earlier_device_hours = 0.0
    self._start = time.monotonic()

  @property
  def spent(self) -> dict[str, float]:
    """Returns what all starts of the run have spent, to go on from: JSON values."""
    return {**self.secs, DEVICE_HOURS: self.device_hours}

  @property
  def device_hours(self) -> float:
    """Returns the hours of the run, times its devices; idle ones count, too."""
    hours = (time.monotonic() - self._start) / 3600
    return self._earlier_device_hours + hours * jax.device_count()

  def add(self, spent: dict[str, float]):
    """Adds what earlier starts of the run have spent, up to the checkpoint."""
    for phase, secs in spent.items():
      if phase == DEVICE_HOURS:
        self._earlier_device_hours += secs
      else:
        self.secs[phase] = self.secs.get(phase, 0.0) + secs

  @contextlib.contextmanager
  def __call__(self, phase: str):
    """Counts the time inside the `with` block towards `phase`."""
    start = time.monotonic()
    yield
    self.secs[phase] = self.secs.get(phase, 0.0) + time.monotonic() - start

  def __str__(self):
    return ', '.join(f'{phase} {secs:.1f} s' for phase, secs in self.secs.items())
