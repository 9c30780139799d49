"""Trains, evaluates and saves: the loop, from a config and a workdir to numbers."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import logging

from advprop_jax import (
  experiment,
  hosts,
  layer_rates,
  parallel,
  phases,
  preemption,
  run_start,
  schema,
  train_log,
)
from advprop_jax.evaluation import pictures
from advprop_jax.workdir import (
  checkpoint,
  directory,
  integrity,
  lock,
  logs,
  metric_writer,
  spent,
)


def train_and_evaluate(config, workdir: str) -> dict[str, float]:
  """Trains to the config's last step, from the newest checkpoint of the workdir if any.

  The workdir receives config.json, results.jsonl, tensorboard/, pictures/ and
  checkpoints/; of a config with phases, a directory for each of them does.

  Args:
    config: see `schema.read`.
    workdir: directory, local or `gs://`; made if it does not exist.

  Returns:
    The metrics of the last evaluation; empty if there was nothing left to train.

  Raises:
    UserError: the config or the workdir cannot be used, or training diverges.
    RestartError: another training writes to the workdir, or another host is lost.
    Preempted: a signal has stopped the training, and its step is saved.
  """
  config = schema.read(config)
  run_start.check_hosts(config, workdir)
  runs = phases.split(config)
  run_start.check_trained(workdir)
  for phase in runs:
    experiment.check(phase)
  for phase in runs[1:]:  # A mistake in the last is not to be found after the first.
    experiment.create_experiment(phase)
  if not config.phases:
    return _train(runs[0], workdir, is_last=True)
  metrics: dict[str, float] = {}
  last = None
  with lock.hold(directory.open_workdir(workdir)):
    for i, phase in enumerate(runs):
      hosts.stop_if_preempted()
      logging.info('phase %d of %d: %s', i, len(runs), dict(config.phases[i]))
      path = directory.phase_workdir(workdir, i)
      metrics = _train(phase, path, start_from=last, is_last=phase is runs[-1])
      last = path
  return metrics


class _Run(NamedTuple):
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


def _set_up(
  config: schema.Section,
  workdir: str,
  *,
  start_from: str | None,
  timer: spent.PhaseTimer,
  stack: contextlib.ExitStack,
) -> _Run | None:
  """Returns the run of a config and workdir; None: there is nothing left to train.

  Args:
    config: of the run.
    workdir: of the run.
    start_from: the workdir whose weights it begins with; None: of no other phase.
    timer: receives what was spent before.
    stack: closes what the run has opened.

  Raises:
    UserError: see `train_and_evaluate`.
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
  return _Run(
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


def _train(
  config: schema.Section,
  workdir: str,
  *,
  is_last: bool,
  start_from: str | None = None,
) -> dict[str, float]:
  """Trains one run, and returns the metrics of its last evaluation.

  Args:
    config: of the run.
    workdir: of the run.
    is_last: whether it is the last phase.
    start_from: the workdir whose weights it begins with; None: of no other phase.
  """
  timer = spent.PhaseTimer()
  # `finishing` lasts until the files are closed: a signal is not to cut that off.
  with contextlib.ExitStack() as until_closed, contextlib.ExitStack() as stack:
    logging.info('setting up: data, model, state ...')
    with timer('set-up'):
      run = _set_up(config, workdir, start_from=start_from, timer=timer, stack=stack)
      if run is None:
        if is_last:
          preemption.end_as_done()
        return {}
      exp, config, start, state = run.exp, run.exp.config, run.start, run.start.state
      first_step = start.step
      device_batches = parallel.prefetch(run.batches)
      _log_overview(exp, state)
    val_metrics: dict[str, float] = {}
    if start.evaluation_due:
      with timer('eval'):
        val_metrics = _evaluate(exp, state, run.writer, step=first_step)
      if first_step == exp.total_steps:  # It is the end, and files are to be closed.
        until_closed.enter_context(preemption.finishing())
      run.checkpointer.add_metrics(first_step, val_metrics)
    elif config.init_from and run.has_trained_classifier:
      with timer('eval'):
        _evaluate(exp, state, run.writer, step=0)  # What the weights are worth.
    if first_step < exp.total_steps:
      logging.info('compiling the step: a minute or more, unless it is in the cache')

    # A short run is reported, too: at least ten times.
    log_steps = min(config.log_every_steps, max(1, exp.total_steps // 10))
    report_progress = logs.create_progress(exp.total_steps, every_steps=log_steps)
    eval_steps = _steps_before_end(config.eval.every_epochs, exp)
    save_steps = _steps_before_end(config.checkpoint.every_epochs, exp)
    log = train_log.TrainLog(
      exp,
      start,
      run.writer,
      timer,
      num_bad=lambda: run.batches.num_bad,
      saved=run.checkpointer.steps,
    )
    profile = logs.create_profiler(
      run.path,
      num_steps=config.profile_steps,
      first_step=first_step + 1,
      last_step=exp.total_steps,
    )

    for step in range(first_step + 1, exp.total_steps + 1):
      is_first, is_last = step == first_step + 1, step == exp.total_steps
      with timer('compile' if is_first else 'train'):
        state, step_metrics = exp.train_step(state, next(device_batches))
        log.add(step, step_metrics)
      if is_first:
        logging.info('compiled and made the first step in %s', timer)
        until_closed.enter_context(preemption.finishing())
      report_progress(step)
      if profile is not None:
        with timer('profile'):
          profile(step, state)

      is_stopped = hosts.reached_preemption()
      if step % log_steps == 0 or is_last or is_stopped:
        run.check_path()
        log.write(step)

      val_metrics, is_due = {}, step in eval_steps
      if is_due and not is_stopped:
        log.look_at(up_to=step)  # A state that is not finite is not worth it.
        try:
          with timer('eval'):
            val_metrics = _evaluate(exp, state, run.writer, step=step)
          is_due = False
        except preemption.Preempted:
          is_stopped = True
          log.write(step)
      # After each evaluation, so that the best can be kept.
      if step in save_steps or step in eval_steps or is_stopped:
        with timer('save'):
          # A broken state must not push a good one out of the directory.
          log.look_at(up_to=step)
          _save(run, state, step, timer, metrics=val_metrics, evaluation_due=is_due)

      if is_stopped:
        run.checkpointer.wait_until_finished()
        raise preemption.Preempted(
          f'{preemption.cause()}: step {step} of {exp.total_steps} is saved'
        )

    with timer('save'):
      run.checkpointer.wait_until_finished()
    run.writer.write_scalars(exp.total_steps, timer.scalars())
    if is_last:
      until_closed.callback(preemption.end_as_done)  # Before `finishing` ends.
  logging.info('finished %s: %s', run.path, timer)
  return val_metrics


def _save(
  run: _Run,
  state,
  step: int,
  timer: spent.PhaseTimer,
  *,
  metrics: dict[str, float],
  evaluation_due: bool,
):
  """Begins to save the state after a step; see `Checkpointer.save`."""
  run.check_path()  # Orbax would make it anew.
  num_steps = step - run.start.step
  run.checkpointer.save(
    step,
    state.parts,
    config=run.exp.config,
    examples_seen=run.start.examples_seen + num_steps * run.exp.config.data.batch_size,
    fingerprint=run.fingerprint,
    since=run.start.since,
    metrics=metrics,
    evaluation_due=evaluation_due,
    spent=timer.spent,
  )


def _evaluate(
  exp, state, writer: metric_writer.MetricWriter, *, step: int
) -> dict[str, float]:
  """Evaluates a state, and writes the metrics, which it returns, and the pictures."""
  logging.info('evaluating step %d', step)
  found = exp.evaluation.run(state.eval_variables)
  metrics: dict[str, float] = {}
  for name, result in found.items():
    metrics |= {f'{name}/{key}': x for key, x in result.metrics.items()}
  writer.write_scalars(step, metrics)
  for name, result in found.items():
    if result.pictures is not None:
      names = exp.evaluation.cells[name].space.class_names
      grid = pictures.adversarial_grid(**result.pictures._asdict(), class_names=names)
      writer.write_image(step, f'{name}/clean_pgd', grid)
  return metrics


def _steps_before_end(every_epochs: float, exp) -> range:
  """Returns the steps to act at: the last, and back from it in even strides."""
  stride = max(1, round(every_epochs * exp.steps_per_epoch))
  return range(exp.total_steps, 0, -stride)


def _log_overview(exp, state):
  config = exp.config
  logs.log_parameters(state.params)
  logging.info(
    'norms %s, %d trained values each; streams %s',
    list(state.norms),
    sum(x.size for x in jax.tree.leaves(next(iter(state.norms.values())))),
    list(exp.method.names),
  )
  rates = layer_rates.describe(
    state.trained, config.optim.freeze, config.optim.layer_decay
  )
  for note in (*rates, *exp.method.notes):
    logging.info('%s', note)
  if exp.method.unused:
    logging.info(
      'of no effect in this run: config.%s', ', config.'.join(exp.method.unused)
    )
  logging.info(
    '%s: %d images to train on, %d to evaluate; %d classes: %s',
    exp.dataset.name,
    exp.dataset.num_examples(config.data.train_split),
    exp.dataset.num_examples(config.data.eval_split),
    exp.dataset.num_classes,
    ', '.join(exp.dataset.class_names[:10]),
  )
  logging.info(
    '%d steps of %d images, %d per device on %d %s devices; %.1f steps an epoch',
    exp.total_steps,
    config.data.batch_size,
    config.data.batch_size // jax.device_count(),
    jax.device_count(),
    jax.default_backend(),
    exp.steps_per_epoch,
  )
  for note in exp.dataset.notes:
    logging.warning('%s', note)
