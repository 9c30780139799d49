"""From a config to the objects it describes, built and checked before anything runs.

This file, those that it is made of (`images.py`, `model_config.py`, `methods.py`,
`evaluations.py`) and those above it are the last that see a config: below them,
functions take named arguments. A config is anything that `schema.read` takes. What
comes in kinds is made from its section and its table by `registry.create`, so that a
new kind is no business of this file.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from absl import logging

from advprop_jax import (
  attacks,
  bad_steps,
  errors,
  evaluations,
  images,
  layer_rates,
  methods,
  model_config,
  optim,
  parallel,
  registry,
  schema,
  train_state,
)
from advprop_jax.evaluation import labels
from advprop_jax.input import augment, batches, datasets


class Experiment(NamedTuple):
  """What a config describes. Nothing in it has touched the workdir."""

  config: schema.Section  # As it was given, with the names of the classes.
  dataset: datasets.Dataset
  model: nn.Module
  method: methods.Method
  schedule: optax.Schedule
  create_state: Any  # () -> TrainState before the first step
  abstract_state: Any  # Its shapes and types, to restore into
  train_step: Any  # (state, batch split over devices) -> (state, metrics)
  evaluation: evaluations.Evaluation
  steps_per_epoch: float
  total_steps: int


def create_experiment(config) -> Experiment:
  """Builds everything but the training images.

  Raises:
    UserError: the config asks for something that does not exist or cannot be.
  """
  config = schema.read(config)
  check(config)

  dataset = images.open_dataset(config)
  class_names = config.data.class_names or dataset.class_names
  new_labels = labels.columns(dataset.class_names, class_names, data_name=dataset.name)
  if new_labels is not None:
    dataset = dataset.with_labels(new_labels, class_names)
  config = model_config.with_class_names(config, class_names)
  images.create_recipe(config, dataset)  # An impossible one is reported here.
  num_classes = len(class_names)
  num_examples = dataset.num_examples(config.data.train_split)
  steps_per_epoch = num_examples / config.data.batch_size
  if steps_per_epoch < 1:
    logging.warning(
      'a step of %d images shows some of the %d of %r more than once',
      config.data.batch_size,
      num_examples,
      config.data.train_split,
    )
  total_steps = max(1, round(config.num_epochs * steps_per_epoch))

  model = model_config.create_model(config, num_classes=num_classes)
  method = methods.create_method(config, num_classes=num_classes)
  schedule, tx = create_optimizer(
    config, steps_per_epoch=steps_per_epoch, total_steps=total_steps
  )
  create_state = functools.partial(
    train_state.create_train_state,
    model,
    tx,
    branch_names=method.branch_names,
    image_size=config.data.image_size,
    seed=config.seed,
    keep_ema=config.optim.ema_decay > 0,
  )
  # An impossible model or image size is reported here.
  abstract_state = jax.eval_shape(create_state)
  layer_rates.check_frozen(abstract_state.trained, config.optim.freeze)
  step = method.make_step(
    model,
    tx,
    label_smoothing=config.optim.label_smoothing,
    ema_decay=config.optim.ema_decay,
    accumulate_steps=config.optim.accumulate_steps,
    frozen=config.optim.freeze,
    skip_nonfinite=config.on_nonfinite == 'skip',
  )
  return Experiment(
    config=config,
    dataset=dataset,
    model=model,
    method=method,
    schedule=schedule,
    create_state=create_state,
    abstract_state=abstract_state,
    train_step=parallel.data_parallel(step, split=(False, True), donate_state=True),
    evaluation=evaluations.create_evaluation(config, model, dataset=dataset),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def check(config: schema.Section):
  """Raises UserError for a section that cannot be; needs no data, and comes first."""
  parallel.check_batch_size(
    'data.batch_size', config.data.batch_size, num_parts=config.optim.accumulate_steps
  )
  errors.check_choice('on_nonfinite', config.on_nonfinite, bad_steps.POLICIES)
  methods.check(config)
  create_optimizer(config, steps_per_epoch=1.0, total_steps=1)
  registry.create('data.augmentation', augment.AUGMENTATIONS, config.data.augmentation)
  registry.create('eval.attack', attacks.ATTACKS, config.eval.attack, num_classes=2)


def create_optimizer(config, *, steps_per_epoch: float, total_steps: int):
  """Returns the learning rate's schedule and the optimizer of a config."""
  schedule = registry.create(
    'optim.schedule',
    optim.SCHEDULES,
    config.optim.schedule,
    batch_size=config.data.batch_size,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )
  tx = registry.create(
    'optim.optimizer', optim.OPTIMIZERS, config.optim.optimizer, schedule=schedule
  )
  tx = layer_rates.freeze(tx, config.optim.freeze)
  return schedule, layer_rates.decay(tx, config.optim.layer_decay)


def create_train_batches(config, experiment: Experiment, *, examples_seen: int):
  """Returns the endless stream of training batches after `examples_seen` examples."""
  return batches.train_batches(
    experiment.dataset,
    split=config.data.train_split,
    batch_size=config.data.batch_size,
    recipe=images.create_recipe(
      config, experiment.dataset, image_keys=experiment.method.image_keys
    ),
    seed=config.seed,
    shuffle_window=config.data.shuffle_window,
    max_bad_share=config.data.max_bad_share,
    start_example=examples_seen,
    hosts=images.hosts(),
  )
