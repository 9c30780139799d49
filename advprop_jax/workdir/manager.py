"""Orbax's manager of the checkpoints of a directory, opened to read or to save."""

import contextlib
import math

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from advprop_jax.workdir import contents, integrity

BEST_METRIC = 'val/clean_top1'
_ARRAYS = ('model', 'ema', 'training')
ITEMS = (*_ARRAYS, *contents.JSON_ITEMS, 'metrics')
# When one of several hosts cannot save, the others wait for it so long. Orbax's default
# is 1200.
_HOSTS_SECS = 300


class Manager(ocp.CheckpointManager):
  """A manager which leaves JAX's preemption service to `hosts.py`.

  Orbax asks it at each save, by the number of the step, and hosts agree on where to
  stop by the highest number that one of them has asked with: there can be one sequence.
  """

  def reached_preemption(self, step: int) -> bool:
    """Returns that no signal has come."""
    return False


def open_to_read(path: epath.Path) -> Manager:
  """Opens a directory of checkpoints, and changes nothing in it."""
  with _only_errors():
    return _open(
      path,
      read_only=True,
      create=False,
      cleanup_tmp_directories=False,
      # The metrics of all checkpoints are for the decision which to keep.
      lightweight_initialize=True,
    )


def open_to_save(path: epath.Path, *, keep_last: int) -> Manager:
  """Opens a directory of checkpoints; makes it, and drops what a killed save left.

  Args:
    path: of the directory.
    keep_last: how many of the newest to keep, beside the best.
  """
  policies = ocp.checkpoint_managers
  asynchronous = {}
  if jax.process_count() > 1:
    asynchronous['async_options'] = ocp.AsyncOptions(timeout_secs=_HOSTS_SECS)
  return _open(
    path,
    cleanup_tmp_directories=True,
    temporary_path_class=integrity.temporary_path_class(path),
    preservation_policy=policies.AnyPreservationPolicy(
      [policies.LatestN(keep_last), policies.BestN(get_metric_fn=metric, n=1)]
    ),
    **asynchronous,
  )


def _open(path: epath.Path, **options) -> Manager:
  return Manager(
    path,
    item_handlers={
      **{item: ocp.StandardCheckpointHandler() for item in _ARRAYS},
      **{item: ocp.JsonCheckpointHandler() for item in contents.JSON_ITEMS},
    },
    options=ocp.CheckpointManagerOptions(best_fn=metric, **options),
  )


def metric(metrics) -> float:
  """Returns BEST_METRIC of the metrics of a checkpoint; -inf if it is no number."""
  value = metrics.get(BEST_METRIC)
  is_number = isinstance(value, int | float) and abs(value) < math.inf
  return value if is_number else -math.inf


@contextlib.contextmanager
def _only_errors():
  """Leaves out what Orbax warns of a directory that is opened to be read."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
