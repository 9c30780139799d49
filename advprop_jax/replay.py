"""Makes one step of a run again, from the checkpoint before it, to look at it."""

import io
import itertools
from typing import Any

import jax
import numpy as np
from absl import logging

from advprop_jax import (
  errors,
  experiment,
  parallel,
  phases,
  run_start,
  schema,
  train_state,
  update,
)
from advprop_jax.evaluation import pictures
from advprop_jax.workdir import directory, disk, logs, restore

NUM_IMAGES = 16  # In the picture.


def replay_step(config, workdir: str, step: int):
  """Makes a step of a run again, and the steps before it since a checkpoint.

  The step is as it was on the same number of devices, of the same kind, with the same
  config and data. It logs the step's metrics and what is not finite. The workdir
  receives replay_<step>.npz, the images and labels of this host, and a picture of the
  first; nothing else in it is changed.

  Args:
    config: see `schema.read`.
    workdir: of the run; of a run with phases the last that has begun is meant.
    step: of the run, from 1 on.

  Raises:
    UserError: there is no such step, or no state to begin with.
  """
  config = schema.read(config)
  run_start.check_hosts(config, workdir)
  runs = phases.split(config)
  begun = directory.begun_phases(workdir)
  if config.phases and not begun:
    raise errors.UserError(f'no phase has begun in {workdir}; allowed: a trained one')
  run, previous = (begun[-1], begun[-2:-1]) if config.phases else (workdir, [])
  config = runs[len(begun) - 1] if config.phases else runs[0]
  config = run_start.with_trained_classes(config, run, *previous)
  exp = experiment.create_experiment(config)
  if not 1 <= step <= exp.total_steps:
    raise errors.UserError(
      f'--replay_step is {step}; allowed: 1 to {exp.total_steps}, the steps of the run'
    )
  directory.read_config(f'{run}/config.json')  # A run has begun there.
  path = directory.open_workdir(run)
  state, first, num_seen = _restore(exp, run, previous, step)
  logging.info('making steps %d to %d again', first + 1, step)
  batches = experiment.create_train_batches(exp.config, exp, examples_seen=num_seen)
  report = logs.create_progress(step, every_secs=10.0)
  for i, batch in enumerate(itertools.islice(batches, step - first), start=first + 1):
    state, metrics = exp.train_step(state, parallel.put(batch))
    report(i)
  values = {key: np.asarray(x).item() for key, x in jax.device_get(metrics).items()}
  place = values.pop('nonfinite')
  values.pop('all_finite')
  logging.info(
    'step %d: %s', step, ', '.join(f'{key}={x:.6g}' for key, x in values.items())
  )
  if place < 0:
    logging.info(
      'step %d is finite: if it was not before, look for a change of the config, the '
      'data or the devices, or for a device that errs',
      step,
    )
  else:
    name, _ = update.describe(exp.abstract_state, place, frozen=config.optim.freeze)
    logging.info('step %d: the first that is not finite is %s', step, name)
  _keep(path, step, batch, exp)


def _restore(exp, run: str, previous: list[str], step: int):
  """Returns the state before a step or earlier, its step, and the examples seen."""
  with restore.Reader(f'{run}/checkpoints') as reader:
    earlier = [x for x in reader.steps() if x < step]
    for found in reversed(earlier):
      try:
        parts, saved, position = reader.restore(found, exp.abstract_state.parts)
      except restore.DamagedError as e:
        logging.warning('%s', e)
        continue
      fingerprint = exp.dataset.fingerprint(exp.config.data.train_split)
      run_start.warn_of_differences(exp, found, saved, position, fingerprint)
      return train_state.TrainState.from_parts(parts), found, position['examples_seen']
  state = exp.create_state()
  weights = run_start.read_initial(exp, *previous)
  if weights is not None:
    state = state.start_from(weights.variables)
  return parallel.replicate(state), 0, 0


def _keep(path, step: int, batch: dict, exp: experiment.Experiment):
  """Writes the images of a step, and a picture of some, on every host its own."""
  host = f'_host_{jax.process_index()}' if jax.process_count() > 1 else ''
  file = path / f'replay_{step}{host}.npz'
  arrays: dict[str, Any] = {key: np.asarray(x) for key, x in batch.items()}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  rows = {key: batch[key][:NUM_IMAGES] for key in exp.method.image_keys}
  grid = pictures.labelled_grid(
    rows, batch['label'][:NUM_IMAGES], class_names=exp.dataset.class_names
  )
  with disk.writing(file):
    disk.put(file, buffer.getvalue())
    picture = file.with_suffix('.png')
    picture.unlink(missing_ok=True)  # It may be a link to what is not ours, or a pipe.
    pictures.save(picture, grid)
  logging.info('the images of step %d: %s and .png', step, file)
