"""Says what a run would be, before it is one: shapes, cost, memory, the first batch."""

import pathlib
import time

import jax
import numpy as np
from absl import logging

from advprop_jax import (
  experiment,
  initial_weights,
  layer_rates,
  parallel,
  phases,
  schema,
)
from advprop_jax.evaluation import pictures
from advprop_jax.models import arithmetic
from advprop_jax.workdir import directory, logs

PICTURE = 'dry_run.png'
NUM_IMAGES = 16  # In the picture.


def dry_run(config, workdir: str):
  """Logs what a config describes, and trains nothing.

  Of the workdir only dry_run.png is written, the first batch; of a config with phases
  the first phase's. Weights that the training would begin with are read, a checkpoint
  that it would go on from is not. The compiled step stays in the cache for training.

  Args:
    config: see `schema.read`.
    workdir: local directory, which may be trained in already.

  Raises:
    UserError: the config cannot be used.
  """
  config = schema.read(config)
  runs = phases.split(config)
  for i, run in enumerate(runs):
    if config.phases:
      logging.info('phase %d of %d: %s', i, len(runs), dict(config.phases[i]))
    exp = experiment.create_experiment(run)
    _describe(exp)
    first = directory.phase_workdir(workdir, 0) if config.phases else workdir
    if run.init_from and not directory.saved_steps(first):
      initial_weights.read(
        exp.config, run.init_from, branch_names=exp.method.branch_names
      )
    if i == 0:
      path = directory.local(workdir, flag='--workdir')
      directory.open_workdir(str(path))
      _draw_first_batch(exp, path / PICTURE)
      _describe_memory(exp)
  logging.info('nothing was trained')


def _describe(exp: experiment.Experiment):
  """Logs weights, arithmetic and steps."""
  config = exp.config
  model, batch_size = exp.abstract_state.model, config.data.batch_size
  logs.log_shapes(model['params'])
  branches = exp.method.branch_names
  logging.info(
    '%s: %s shared weights; norms %s: %s scales and offsets, %s statistics each',
    config.model.name,
    f'{_size(model["params"]):,}',
    ', '.join(branches),
    f'{_size(model["norms"][branches[0]]):,}',
    f'{_size(model["batch_stats"][branches[0]]):,}',
  )
  for note in layer_rates.describe(
    exp.abstract_state.trained, config.optim.freeze, config.optim.layer_decay
  ):
    logging.info('%s', note)
  count = arithmetic.count_model(exp.model, config.data.image_size)
  flops = exp.method.flops_per_image(count)
  logging.info(
    'operations, counted from the layers: %s to classify an image of %d px (%s '
    'multiply-adds), %s to train on one, %s a step',
    _short(arithmetic.forward(count, running=True)),
    config.data.image_size,
    _short(count.multiply_adds),
    _short(flops),
    _short(flops * batch_size),
  )
  steps = np.unique(np.linspace(0, exp.total_steps - 1, 200).astype(int))
  with parallel.on_host():
    rates = [float(exp.schedule(step)) for step in steps]
  logging.info(
    '%s: %d images, %d classes; %d steps of %d, %g epochs; %d images per device on %d '
    '%s devices (%s); streams %s',
    exp.dataset.name,
    exp.dataset.num_examples(config.data.train_split),
    exp.dataset.num_classes,
    exp.total_steps,
    batch_size,
    config.num_epochs,
    batch_size // jax.device_count(),
    jax.device_count(),
    jax.default_backend(),
    jax.devices()[0].device_kind,
    ', '.join(exp.method.names),
  )
  peak = int(np.argmax(rates))
  logging.info(
    'learning rate: %.4g at first, %.4g at most, about step %d, %.4g at last',
    *(rates[0], rates[peak], steps[peak], rates[-1]),
  )


def _draw_first_batch(exp: experiment.Experiment, path: pathlib.Path):
  """Draws the first images as every stream gets them, with their classes."""
  batches = experiment.create_train_batches(exp.config, exp, examples_seen=0)
  batch = next(batches)
  label = batch['label'][:NUM_IMAGES]
  rows = {key: batch[key][:NUM_IMAGES] for key in exp.method.image_keys}
  if jax.process_index() == 0:
    grid = pictures.labelled_grid(rows, label, class_names=exp.dataset.class_names)
    pictures.save(path, grid)
    logging.info(
      'the first images of the first batch, as they are trained on: %s', path
    )


def _describe_memory(exp: experiment.Experiment):
  """Compiles the step for the devices that are here, and logs what it takes."""
  logging.info('compiling the step, to know its memory ...')
  start = time.monotonic()
  config = exp.config
  local = config.data.batch_size // jax.process_count()
  shape = (local, config.data.image_size, config.data.image_size, 3)
  image = jax.ShapeDtypeStruct(shape, np.uint8)
  batch = {key: image for key in exp.method.image_keys}
  batch['label'] = jax.ShapeDtypeStruct((local,), np.int32)
  split = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (jax.local_device_count(), x.shape[0] // jax.local_device_count(), *x.shape[1:]),
      x.dtype,
    ),
    batch,
  )
  compiled = exp.train_step.lower(exp.abstract_state, split).compile()
  memory = compiled.memory_analysis()
  logging.info(
    'a device needs %sB for the step: %sB of state and batch, %sB of temporaries; '
    'compiled in %.1f s',
    _short(memory.argument_size_in_bytes + memory.temp_size_in_bytes),
    _short(memory.argument_size_in_bytes),
    _short(memory.temp_size_in_bytes),
    time.monotonic() - start,
  )


def _short(x: float) -> str:
  """Returns '12.3 M' of 12,345,678."""
  power = 0
  while x >= 999.5 and power < 5:
    x, power = x / 1000, power + 1
  return f'{x:.3g} {" kMGTP"[power]}'.rstrip()


def _size(tree) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))
