"""The log of a run: what of it is shown, progress, profiles, tables of weights."""

import logging as std_logging
import os
import sys
from collections.abc import Callable
from typing import Any

import clu
import jax
from absl import logging
from clu import parameter_overview, periodic_actions
from etils import epath

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
