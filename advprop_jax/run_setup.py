"""Sets a run up: its workdir, its experiment, and what it goes on from."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging

from advprop_jax import experiment, hosts, run_start, schema
from advprop_jax.workdir import (
  checkpoint,
  directory,
  integrity,
  lock,
  metric_writer,
  spent,
)


class Run(NamedTuple):
  """A run that is set up, and goes on from `start`."""

  exp: experiment.Experiment
  path: Any  # Of `etils.epath`.
  check_path: Callable[[], None]  # Raises UserError if it was deleted.
  checkpointer: checkpoint.Checkpointer
  writer: metric_writer.MetricWriter
  batches: Any
  start: run_start.Start
  fingerprint: dict  # Of the training images.
  has_trained_classifier: bool  # In the weights that it begins with.

  def save(
    self,
    step: int,
    state,
    *,
    metrics: dict[str, float],
    evaluation_due: bool,
    spent: dict[str, float],
  ):
    """Begins to save the state after a step; see `Checkpointer.save`."""
    self.check_path()  # Orbax would make it anew.
    num_images = (step - self.start.step) * self.exp.config.data.batch_size
    self.checkpointer.save(
      step,
      state.parts,
      config=self.exp.config,
      examples_seen=self.start.examples_seen + num_images,
      fingerprint=self.fingerprint,
      since=self.start.since,
      metrics=metrics,
      evaluation_due=evaluation_due,
      spent=spent,
    )


def set_up(
  config: schema.Section,
  workdir: str,
  *,
  start_from: str | None,
  timer: spent.PhaseTimer,
  stack: contextlib.ExitStack,
) -> Run | None:
  """Returns the run of a config and workdir; None: there is nothing left to train.

  Args:
    config: of the run.
    workdir: of the run.
    start_from: the workdir whose weights it begins with; None: of no other phase.
    timer: receives what was spent before.
    stack: closes what the run has opened.

  Raises:
    UserError: see `train.train_and_evaluate`.
    RestartError: another training writes to the workdir.
  """
  # If there is no directory yet, a config that cannot be used does not make it.
  opened = _open(workdir, stack) if directory.exists(workdir) else None
  whole = integrity.set_damaged_aside(workdir)
  exp = experiment.create_experiment(
    run_start.with_trained_classes(config, workdir, start_from)
  )
  config = exp.config
  weights = run_start.read_weights(exp, workdir, start_from)
  path, check_path = opened or _open(workdir, stack)
  checkpointer = stack.enter_context(
    checkpoint.Checkpointer(
      path / 'checkpoints', keep_last=config.checkpoint.keep_last, whole=whole
    )
  )
  fingerprint = exp.dataset.fingerprint(config.data.train_split)
  hosts.check_same_on_hosts('the training images', fingerprint)
  start = run_start.restore_or_create(exp, checkpointer, fingerprint, weights)
  if start.step >= exp.total_steps and not start.evaluation_due:
    logging.info(
      '%s has a checkpoint of step %d and the config ends at step %d: nothing to '
      'train. Raise num_epochs, or choose another --workdir',
      path,
      start.step,
      exp.total_steps,
    )
    return None
  directory.write_config(path, config)
  # The evaluation before the first step comes again, if no later step was saved.
  writer = stack.enter_context(
    metric_writer.MetricWriter(path, resume_step=start.step or -1)
  )
  timer.add(start.spent)
  timer.add_start(writer.last_start, resume_step=start.step)
  if writer.dropped is not None:
    timer.add_lost(writer.dropped, resume_step=start.step)
  # In a line, should it be stopped again before it saves; that of step 0 was dropped.
  if writer.dropped is not None or (writer.last_start is not None and start.step == 0):
    writer.write_scalars(start.step, timer.totals())
  writer.write_hparams(directory.flatten(config))
  batches = experiment.create_train_batches(
    config, exp, examples_seen=start.examples_seen
  )
  has_classifier = weights is not None and weights.has_classifier
  return Run(
    exp,
    path,
    check_path,
    checkpointer,
    writer,
    batches,
    start,
    fingerprint,
    has_classifier,
  )


def _open(workdir: str, stack: contextlib.ExitStack):
  """Returns the directory of a workdir, locked until the stack is closed.

  And the function that `lock.hold` yields.
  """
  path = directory.open_workdir(workdir)
  check_path = stack.enter_context(lock.hold(path))
  directory.check_writable(path)
  return path, check_path
