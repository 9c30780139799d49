"""Checkpoints in parts: the model, what training goes on from, the config, the data.

A checkpoint is `<directory>/<step>/` with the items

  model     {'params', 'norms', 'batch_stats'}: all that a network consists of
  ema       averages of the three; absent if none are kept
  training  {'step', 'rng', 'opt_state'}: what only training needs
  config    the resolved config, JSON, with the names of the classes
  data      {'examples_seen': N, 'process_count': P, 'fingerprint': {...}}: with the
            seed and files of this fingerprint they determine every batch to come;
            and the step and number of examples since which batches have their size
  metrics   those of an evaluation at that very step; empty if there was none

The file SHA256SUMS beside them tells whether all are as they were written, see
`integrity.py`. Arrays are whole, so any number of devices restores them. Whoever wants
the network reads `ema` or `model` alone, and needs no optimizer for it.
"""

import functools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from advprop_jax import errors, hosts, parallel
from advprop_jax.workdir import checksums, disk, integrity, manager, restore

# How long to wait after each failure in a row of a save; after one more it is given up.
RETRY_SECS = (1, 5, 30)


class Checkpointer(restore.Reader):
  """Saves and restores the checkpoints of one directory; a context manager.

  Keeps the newest `keep_last` and the best by `manager.BEST_METRIC`. Saving is
  asynchronous; leaving the context waits for it.
  """

  def __init__(self, directory, *, keep_last: int = 1, whole: Iterable[int] = ()):
    """Opens a directory; makes it, and drops what a killed save left.

    Args:
      directory: path or str.
      keep_last: how many of the newest checkpoints to keep.
      whole: steps of which all files have been compared, see `verify`.
    """
    self._last: tuple[int, Callable[[], Any]] | None = None  # Step and its save.
    self._num_failed = 0  # Saves in a row.
    super().__init__(
      directory,
      whole=whole,
      open_manager=functools.partial(manager.open_to_save, keep_last=keep_last),
    )

  def __exit__(self, exc_type, *exc_info):
    try:
      self._manager.close()
    except Exception as e:
      if exc_type is not None:
        return  # The error that is under way says more.
      if not disk.is_of_disk(e):
        raise
      raise disk.cannot_write(self._manager.directory, e) from e

  def save(
    self,
    step: int,
    parts: dict[str, Any],
    *,
    config: dict,
    examples_seen: int,
    fingerprint: dict,
    since: tuple[int, int] = (0, 0),
    metrics=None,
    evaluation_due: bool = False,
    spent: dict[str, float] | None = None,
  ):
    """Saves in the background; the arrays may be donated as soon as this returns.

    Args:
      step: of training.
      parts: items and their arrays, see above.
      config: of the run.
      examples_seen: by all hosts, from the start.
      fingerprint: of the training images.
      since: step and `examples_seen` from which on batches have the size of `config`.
      metrics: of the evaluation of this step, if there was one.
      evaluation_due: whether there is still one to be, see `add_metrics`.
      spent: on the run so far, see `spent.PhaseTimer`.

    Raises:
      UserError: this checkpoint or the one before it cannot be written.
    """
    parts = {
      item: ocp.args.StandardSave(part)
      for item, part in parallel.to_saveable(parts).items()
    }
    position = {
      'examples_seen': examples_seen,
      'process_count': jax.process_count(),
      'fingerprint': fingerprint,
      'since': list(since),
      'evaluation_due': evaluation_due,
      'spent': spent or {},
    }
    args = ocp.args.Composite(
      **parts, config=ocp.args.JsonSave(config), data=ocp.args.JsonSave(position)
    )
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      # Of the save before, which is not repeated, since this one replaces it.
      self._check_failure(e)
    else:
      self._num_failed = 0
    save = functools.partial(self._manager.save, step, args=args, metrics=metrics or {})
    self._last = step, save
    self._try_to_save()

  def wait_until_finished(self):
    """Waits for the save under way; repeats it if it fails and may succeed.

    The arrays of the last save must not have been donated.

    Raises:
      UserError: it cannot be written.
    """
    while True:
      try:
        self._manager.wait_until_finished()
        self._num_failed = 0
        return
      except Exception as e:
        self._check_failure(e)
      self._try_to_save()

  def _try_to_save(self):
    """Begins the last save, as often as is allowed."""
    assert self._last is not None
    while True:
      try:
        self._last[1]()
        return
      except Exception as e:
        self._check_failure(e)

  def _check_failure(self, e: Exception):
    """Waits a little after a save has failed; raises if it would fail again."""
    assert self._last is not None
    step = self._last[0]
    if not disk.is_of_disk(e):
      raise e  # A defect of a program, whose traceback is needed.
    self._num_failed += 1
    if not disk.can_pass(e) or self._num_failed > len(RETRY_SECS):
      raise disk.cannot_write(f'the checkpoint {self._path(step)}', e) from e
    if jax.process_count() > 1:  # The others would have to repeat it, too.
      raise errors.RestartError(
        f'the checkpoint of step {step} could not be written ({disk.reason(e)}): the '
        'same command goes on'
      ) from e
    self._manager.reload()  # Orbax has left out already what it was to replace.
    secs = RETRY_SECS[self._num_failed - 1]
    logging.warning(
      'the checkpoint of step %d could not be written (%s): again in %d s',
      *(step, disk.reason(e), secs),
    )
    time.sleep(secs)

  def add_metrics(self, step: int, metrics: dict[str, float]):
    """Adds the metrics of an evaluation to a checkpoint that has none."""
    if jax.process_index() == 0:
      content = json.dumps(metrics).encode()
      checksums.replace_file(self._path(step), 'metrics/metrics', content)
    hosts.wait_for_hosts('metrics added')
    self._manager.reload()

  def set_aside(self, step: int, problem: str, *, instead: int):
    """Moves a damaged checkpoint out of the directory; see `integrity.set_aside`."""
    integrity.set_aside(self._path(step), problem, instead=instead)
    self._manager.reload()
