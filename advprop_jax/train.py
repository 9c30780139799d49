"""Trains, evaluates and saves: the loop, from a config and a workdir to numbers."""

import contextlib

import jax
from absl import logging

from advprop_jax import (
  experiment,
  hosts,
  layer_rates,
  parallel,
  phases,
  preemption,
  run_setup,
  run_start,
  schema,
  train_log,
)
from advprop_jax.evaluation import pictures
from advprop_jax.workdir import directory, lock, logs, metric_writer, spent


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
      run = run_setup.set_up(
        config, workdir, start_from=start_from, timer=timer, stack=stack
      )
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
          run.save(
            step,
            state,
            metrics=val_metrics,
            evaluation_due=is_due,
            spent=timer.spent,
          )

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
