"""Trains, evaluates, draws and saves: from a config and a workdir to numbers."""

import contextlib
import json

import jax
import numpy as np
from absl import logging
from clu import parameter_overview, periodic_actions
from etils import epath
from PIL import Image

from advprop_jax import checkpoint, errors, experiment, metrics, parallel, pictures


def train_and_evaluate(config, workdir: str) -> dict[str, float]:
  """Trains to the config's last step, from the newest checkpoint of the workdir if any.

  The workdir receives config.json, results.jsonl, tensorboard/, pictures/ and
  checkpoints/.

  Args:
    config: with the keys of `configs/default.py`.
    workdir: directory, local or `gs://`; made if it does not exist.

  Returns:
    The metrics of the last evaluation; empty if there was nothing left to train.

  Raises:
    UserError: the config or the workdir cannot be used, or training diverges.
  """
  timer = metrics.PhaseTimer()
  with contextlib.ExitStack() as stack:
    logging.info('setting up: data, model, state ...')
    with timer('set-up'):
      exp = experiment.create_experiment(config)
      workdir = open_workdir(workdir)
      checkpointer = stack.enter_context(
        checkpoint.Checkpointer(
          workdir / 'checkpoints', keep_last=config.checkpoint.keep_last
        )
      )
      state, examples_seen = _restore_or_create(config, exp, checkpointer)
      first_step = int(state.step)
      if first_step >= exp.total_steps:
        logging.info(
          '%s has a checkpoint of step %d and the config ends at step %d: nothing to '
          'train. Raise num_epochs, or choose another --workdir',
          workdir,
          first_step,
          exp.total_steps,
        )
        return {}
      _write_config(config, workdir)
      writer = stack.enter_context(
        metrics.MetricWriter(workdir, resume_step=first_step)
      )
      writer.write_hparams(_flatten(config.to_dict()))
      batches = experiment.train_batches(config, exp, examples_seen=examples_seen)
      device_batches = parallel.prefetch(batches)
      _log_overview(config, exp, state)
    logging.info('compiling the step: a minute or more, unless it is in the cache ...')

    # A short run is told about too: at least ten times.
    log_steps = min(config.log_every_steps, max(1, exp.total_steps // 10))
    report_progress = periodic_actions.ReportProgress(
      num_train_steps=exp.total_steps,
      every_steps=log_steps,
      every_secs=None,
    )
    eval_steps = _steps_before_end(config.eval.every_epochs, exp)
    save_steps = _steps_before_end(config.checkpoint.every_epochs, exp)
    recent, timed_images, train_secs = [], 0, 0.0

    for step in range(first_step + 1, exp.total_steps + 1):
      is_first, is_last = step == first_step + 1, step == exp.total_steps
      with timer('compile' if is_first else 'train'):
        state, step_metrics = exp.train_step(state, next(device_batches))
        recent.append(step_metrics)
        # At most one step is under way while the next is prepared: batches are large.
        jax.block_until_ready(recent[-2:][0])
      examples_seen += config.data.batch_size
      if is_first:
        logging.info('compiled and made the first step in %s', timer)
      else:
        timed_images += config.data.batch_size
      report_progress(step)

      if step % log_steps == 0 or is_last:
        with timer('train'):
          means = jax.tree.map(lambda *x: float(np.mean(x)), *jax.device_get(recent))
        scalars = {f'train/{name}': value for name, value in means.items()}
        if not np.isfinite(means['loss']):
          raise _diverged(step, checkpointer)
        scalars['train/learning_rate'] = float(exp.schedule(step - 1))
        scalars['data/bad_examples'] = parallel.sum_over_hosts(batches.num_bad)
        if timed_images:
          secs = timer.secs['train'] - train_secs
          scalars['train/images_per_sec'] = timed_images / secs
        writer.write_scalars(step, scalars)
        recent, timed_images, train_secs = [], 0, timer.secs['train']

      val_metrics = {}
      if step in eval_steps:
        with timer('eval'):
          val_metrics = _evaluate(config, exp, state, writer, workdir)
      if step in save_steps or step in eval_steps:  # So that the best can be kept.
        with timer('save'):
          # A broken state must not push a good one out of the directory.
          if not _all_finite((step_metrics, state.replace(rng=None))):
            raise _diverged(step, checkpointer)
          checkpointer.save(
            step,
            state,
            config=config.to_dict(),
            examples_seen=examples_seen,
            metrics=val_metrics,
          )

    with timer('save'):
      checkpointer.wait_until_finished()
    writer.write_scalars(step, {f'secs/{name}': x for name, x in timer.secs.items()})
  logging.info('finished %s: %s', workdir, timer)
  return val_metrics


def evaluate_checkpoint(config, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of a workdir, without changing it.

  Args:
    config: that of the checkpoint, as far as model, streams and optimizer go; data and
      evaluation may differ.
    workdir: directory that has been trained in; results.jsonl receives a line.

  Returns:
    The metrics.

  Raises:
    UserError: no checkpoint, one of another model, or a config that cannot be used.
  """
  exp = experiment.create_experiment(config)
  if not (epath.Path(workdir).expanduser() / 'checkpoints').exists():
    raise _no_checkpoint(workdir)
  workdir = open_workdir(workdir)
  with checkpoint.Checkpointer(workdir / 'checkpoints', read_only=True) as checkpointer:
    steps = checkpointer.steps()
    if not steps:
      raise _no_checkpoint(workdir)
    state, _ = _restore(config, exp, checkpointer, steps[-1])
  with metrics.MetricWriter(workdir) as writer:
    return _evaluate(config, exp, state, writer, workdir)


def _no_checkpoint(workdir) -> errors.UserError:
  return errors.UserError(
    f'{workdir} has no checkpoint; allowed: a --workdir that was trained in'
  )


def open_workdir(workdir: str) -> epath.Path:
  """Returns the directory, made if need be.

  Raises:
    UserError: it cannot be written to.
  """
  path = epath.Path(workdir).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.write_test_{jax.process_index()}'
    probe.write_text('')
    probe.unlink()
  except OSError as e:
    raise errors.UserError(
      f'cannot write to --workdir {workdir}: {e.strerror or e}; '
      'allowed: a directory that you may create files in'
    ) from e
  return path.resolve()


def _steps_before_end(every_epochs: float, exp) -> range:
  """Returns the steps to act at: the last, and back from it in even strides."""
  stride = max(1, round(every_epochs * exp.steps_per_epoch))
  return range(exp.total_steps, 0, -stride)


def _restore_or_create(config, exp, checkpointer):
  """Returns the state to go on from, on all devices, and the examples it has seen."""
  steps = checkpointer.steps()
  if not steps:
    return parallel.replicate(exp.create_state()), 0
  state, position = _restore(config, exp, checkpointer, steps[-1])
  logging.info('resuming from step %d of %d', steps[-1], exp.total_steps)
  num_hosts = jax.process_count()
  # Older checkpoints do not say by how many they were saved.
  if (saved_by := position.get('process_count', num_hosts)) != num_hosts:
    logging.warning(
      'saved by %d hosts and resumed by %d: the images come in another order from here',
      saved_by,
      num_hosts,
    )
  return state, position['examples_seen']


def _restore(config, exp, checkpointer, step: int):
  """Returns a checkpoint's state, on all devices, and its position in the data.

  Warns of every value of the config that was another one when it was saved.
  """
  state, saved, position = checkpointer.restore(step, exp.abstract_state)
  old, new = _flatten(saved), _flatten(json.loads(json.dumps(config.to_dict())))
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) != new.get(key):
      logging.warning(
        'config.%s was %s before and is %s now', key, old.get(key), new.get(key)
      )
  return state, position


def _evaluate(config, exp, state, writer, workdir) -> dict[str, float]:
  """Evaluates the averaged weights, or the plain ones if no average is kept.

  Writes the metrics, and the picture of the attack to TensorBoard and `pictures/`.
  """
  step = int(state.step)
  logging.info('evaluating step %d', step)
  values, examples = exp.evaluator(
    **state.eval_variables,
    batches=exp.eval_batches,
    prefix='val',
    num_pictures=config.eval.num_pictures,
  )
  writer.write_scalars(step, values)
  grid = pictures.adversarial_grid(
    **examples._asdict(), class_names=exp.dataset.class_names
  )
  writer.write_image(step, 'val/clean_pgd', grid)
  if jax.process_index() == 0:
    (workdir / 'pictures').mkdir(exist_ok=True)
    with (workdir / 'pictures' / f'step_{step:07d}.png').open('wb') as f:
      Image.fromarray(grid).save(f, format='PNG')
  return values


def _all_finite(tree) -> bool:
  """Looks at one device's copy, on the host: on B0's 1,600 arrays jit compiles 27 s."""
  copies = (x.addressable_data(0) for x in jax.tree.leaves(tree))
  return all(np.isfinite(x).all() for x in copies)


def _diverged(step: int, checkpointer) -> errors.UserError:
  saved = checkpointer.steps()
  return errors.UserError(
    f'training has diverged: loss or weights are not finite at step {step}; '
    f'the last checkpoint is {f"of step {saved[-1]}" if saved else "none"}; '
    'a lower optim.learning_rate or a longer optim.warmup_epochs may help'
  )


def _write_config(config, workdir):
  if jax.process_index() == 0:
    (workdir / 'config.json').write_text(json.dumps(config.to_dict(), indent=2) + '\n')


def _log_overview(config, exp, state):
  parameter_overview.log_parameter_overview(state.params, msg='shared weights:')
  logging.info(
    'norms %s, %d trained values each; streams %s',
    list(state.norm),
    sum(x.size for x in jax.tree.leaves(next(iter(state.norm.values())))),
    [stream.name for stream in exp.streams],
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


def _flatten(tree: dict, prefix: str = '') -> dict:
  """Returns {'data.batch_size': 64, ...}; what is neither number nor str as text."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      plain = isinstance(value, bool | int | float | str)
      flat[f'{prefix}{key}'] = value if plain else str(value)
  return flat
