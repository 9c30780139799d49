"""From a config to the objects it describes, built and checked before anything runs.

This file, `schema.py`, `train.py` and `evaluate.py` are the last that see a config:
below them, functions take named arguments. A config is anything with the keys of
`configs/default.py`.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from absl import logging

from advprop_jax import (
  branches,
  errors,
  models,
  optim,
  parallel,
  schema,
  train_state,
  train_step,
)
from advprop_jax.attacks import gradient
from advprop_jax.evaluation import runner
from advprop_jax.input import augment, batches, datasets
from advprop_jax.workdir import logs


class Experiment(NamedTuple):
  """What a config describes. Nothing in it has touched the workdir."""

  dataset: datasets.Dataset
  model: nn.Module
  streams: tuple[train_step.Stream, ...]
  schedule: optax.Schedule
  tx: optax.GradientTransformation
  create_state: Any  # () -> TrainState before the first step
  abstract_state: Any  # Its shapes and types, to restore into
  train_step: Any  # (state, batch split over devices) -> (state, metrics)
  evaluate: Any  # TrainState -> (metrics, runner.Pictures), on the eval split
  eval_batches: Any
  augment_fn: Any  # (uint8 image, seed) -> uint8 image; None: none
  steps_per_epoch: float
  total_steps: int


def create_experiment(config) -> Experiment:
  """Builds everything but the training images.

  Raises:
    UserError: the config asks for something that does not exist or cannot be.
  """
  parallel.check_batch_size('data.batch_size', config.data.batch_size)
  parallel.check_batch_size('data.eval_batch_size', config.data.eval_batch_size)
  schema.check_ranges(config)

  dataset = datasets.open_dataset(
    config.data.name, data_dir=config.data.data_dir or None
  )
  num_classes = dataset.num_classes
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

  model = create_model(config, num_classes=num_classes)
  streams = create_streams(config, num_classes=num_classes)
  schedule, tx = create_optimizer(
    config, steps_per_epoch=steps_per_epoch, total_steps=total_steps
  )
  create_state = functools.partial(
    train_state.create_train_state,
    model,
    tx,
    branch_names=tuple(dict.fromkeys(stream.branch for stream in streams)),
    image_size=config.data.image_size,
    seed=config.seed,
    keep_ema=config.optim.ema_decay > 0,
  )
  # An impossible model or image size is reported here.
  abstract_state = jax.eval_shape(create_state)
  step = train_step.make_train_step(
    model,
    tx,
    streams,
    label_smoothing=config.optim.label_smoothing,
    ema_decay=config.optim.ema_decay,
  )
  eval_attack = gradient.make_pgd(
    num_classes=num_classes,
    targeted=False,
    prob_start_from_clean=0.0,
    **config.eval.attack,
  )
  evaluator = runner.Evaluator(model, eval_attack, seed=config.seed)
  eval_batches = batches.eval_batches(
    dataset,
    split=config.data.eval_split,
    batch_size=config.data.eval_batch_size,
    **_image_settings(config),
  )

  def evaluate(state):
    return evaluator(
      **state.eval_variables,
      batches=eval_batches,
      prefix='val',
      num_pictures=config.eval.num_pictures,
      progress=logs.create_progress(len(eval_batches), every_secs=10.0),
    )

  return Experiment(
    dataset=dataset,
    model=model,
    streams=streams,
    schedule=schedule,
    tx=tx,
    create_state=create_state,
    abstract_state=abstract_state,
    train_step=parallel.data_parallel(step, split=(False, True), donate_state=True),
    evaluate=evaluate,
    eval_batches=eval_batches,
    augment_fn=create_augment_fn(config),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def create_model(config, *, num_classes: int) -> nn.Module:
  """Returns the model of a config."""
  errors.check_choice('model.dtype', config.model.dtype, ['bfloat16', 'float32'])
  attributes = dict(config.model)
  return models.create_model(
    attributes.pop('name'),
    num_classes=num_classes,
    **parallel.statistics_scope(attributes.pop('bn_scope')),
    **attributes,
  )


def create_optimizer(config, *, steps_per_epoch: float, total_steps: int):
  """Returns the learning rate's schedule and the optimizer of a config."""
  c = config.optim
  errors.check_choice('optim.schedule', c.schedule, ['staircase', 'cosine'])
  errors.check_choice('optim.name', c.name, ['rmsprop', 'sgd'])
  warmup = {
    'peak': c.learning_rate * config.data.batch_size / 256,
    'warmup_steps': int(c.warmup_epochs * steps_per_epoch),
  }
  if c.schedule == 'staircase':
    schedule = optim.warmup_staircase(
      **warmup,
      decay_steps=c.decay_epochs * steps_per_epoch,
      decay_rate=c.decay_rate,
    )
  else:
    schedule = optim.warmup_cosine(**warmup, total_steps=total_steps)
  shared = {'momentum': c.momentum, 'weight_decay': c.weight_decay}
  if c.name == 'rmsprop':
    tx = optim.rmsprop(
      schedule, decay=c.rmsprop_decay, epsilon=c.rmsprop_epsilon, **shared
    )
  else:
    tx = optim.sgd(schedule, **shared)
  return schedule, tx


def create_streams(config, *, num_classes: int) -> tuple[train_step.Stream, ...]:
  """Returns the streams of a config, with the attacks they name.

  Raises:
    UserError: a stream has other keys or values than it may, a name twice, or none of
      them trains the clean branch.
  """
  streams = []
  for stream in config.streams:
    expected = set(train_step.Stream._fields) - {'attack_statistics'}
    if not isinstance(stream, dict):
      raise errors.UserError(
        f'config.streams holds {stream!r}; allowed: dicts, set in a config file as in '
        'configs/default.py'
      )
    if set(stream) != expected:
      raise errors.UserError(
        f'a stream has the keys {sorted(map(str, stream))}; allowed: exactly '
        f'{sorted(expected)}, as in configs/default.py'
      )
    errors.check_choice('image_key of a stream', stream['image_key'], ['image'])
    errors.check_choice('label_key of a stream', stream['label_key'], ['label'])
    if not isinstance(stream['weight'], float) or not math.isfinite(stream['weight']):
      raise errors.UserError(
        f'weight of a stream is {stream["weight"]!r}; allowed: a finite float'
      )
    attack, statistics = _create_attack(config, stream['attack'], num_classes)
    streams.append(
      train_step.Stream(**{**stream, 'attack': attack, 'attack_statistics': statistics})
    )
  names = [stream.name for stream in streams]
  if len(set(names)) < len(names):
    raise errors.UserError(f'streams are named {names}; allowed: every name once')
  norms = {stream.branch for stream in streams}
  if branches.CLEAN not in norms:
    raise errors.UserError(
      f'the streams train the norms {sorted(norms)}; allowed: any that include '
      f'{branches.CLEAN!r}, which is evaluated and released'
    )
  return tuple(streams)


def _create_attack(config, overrides: dict | None, num_classes: int):
  """Returns (attack, statistics): `config.attack`, with a stream's own values."""
  if overrides is None:
    return None, 'running'
  settings = dict(config.attack)
  for key in overrides:
    errors.check_choice('value of an attack', key, settings)
  settings |= overrides
  statistics = settings.pop('statistics')
  errors.check_choice('attack.statistics', statistics, ['running', 'batch'])
  return gradient.make_pgd(num_classes=num_classes, **settings), statistics


def create_train_batches(config, experiment: Experiment, *, examples_seen: int):
  """Returns the endless stream of training batches after `examples_seen` examples."""
  return batches.train_batches(
    experiment.dataset,
    split=config.data.train_split,
    batch_size=config.data.batch_size,
    seed=config.seed,
    start_example=examples_seen,
    crop_area=config.data.crop_area,
    flip=config.data.flip,
    augment_fn=experiment.augment_fn,
    shuffle_window=config.data.shuffle_window,
    **_image_settings(config),
  )


def create_augment_fn(config):
  """Returns the augmentation of a config, (image, seed) -> image, or None."""
  choices = {
    'none': None,
    'autoaugment': augment.autoaugment,
    'randaugment': functools.partial(
      augment.randaugment,
      num_layers=config.data.randaugment_layers,
      magnitude=config.data.randaugment_magnitude,
    ),
  }
  errors.check_choice('data.augmentation', config.data.augmentation, choices)
  return choices[config.data.augmentation]


def _image_settings(config) -> dict:
  """Returns what training and evaluation images have in common."""
  return {
    'image_size': config.data.image_size,
    'crop_padding': config.data.crop_padding,
    'resize_method': config.data.resize_method,
    'image_dtype': config.data.image_dtype,
    'max_bad_share': config.data.max_bad_share,
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
  }
