"""From a config to the objects it describes, built and checked before anything runs.

This file, `schema.py`, `train.py` and `evaluate.py` are the last that see a config:
below them, functions take named arguments. A config is anything with the keys of
`configs/default.py`. What comes in kinds is made from its section and its table by
`registry.create`, so that a new kind is no business of this file.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from absl import logging

from advprop_jax import (
  attacks,
  branches,
  errors,
  models,
  optim,
  parallel,
  registry,
  schema,
  train_state,
  train_step,
)
from advprop_jax.evaluation import runner, suites
from advprop_jax.input import augment, batches, datasets, order, preprocess
from advprop_jax.workdir import logs


class Experiment(NamedTuple):
  """What a config describes. Nothing in it has touched the workdir."""

  dataset: datasets.Dataset
  recipe: preprocess.Recipe
  model: nn.Module
  streams: tuple[train_step.Stream, ...]
  schedule: optax.Schedule
  create_state: Any  # () -> TrainState before the first step
  abstract_state: Any  # Its shapes and types, to restore into
  train_step: Any  # (state, batch split over devices) -> (state, metrics)
  eval_batches: dict[str, Any]  # {suite: batches}
  evaluate: Any  # {'params', 'norms', 'batch_stats'} -> (metrics, {suite: Pictures})
  steps_per_epoch: float
  total_steps: int


def create_experiment(config) -> Experiment:
  """Builds everything but the training images.

  Raises:
    UserError: the config asks for something that does not exist or cannot be.
  """
  parallel.check_batch_size('data.batch_size', config.data.batch_size)
  parallel.check_batch_size('data.eval_batch_size', config.data.eval_batch_size)
  schema.check(config.to_dict())
  recipe = create_recipe(config)

  dataset = _open_dataset(config, config.data.name)
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
  eval_batches, evaluate = create_evaluation(config, model, dataset, recipe)
  return Experiment(
    dataset=dataset,
    recipe=recipe,
    model=model,
    streams=streams,
    schedule=schedule,
    create_state=create_state,
    abstract_state=abstract_state,
    train_step=parallel.data_parallel(step, split=(False, True), donate_state=True),
    eval_batches=eval_batches,
    evaluate=evaluate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def create_model(config, *, num_classes: int) -> nn.Module:
  """Returns the model of a config.

  'float32' holds for every device: JAX's own default lets TPUs and recent GPUs multiply
  float32 in bfloat16 or TF32. The setting is one of the whole process.
  """
  section = dict(config.model)
  errors.check_choice('model.dtype', section['dtype'], ['bfloat16', 'float32'])
  precision = 'highest' if section['dtype'] == 'float32' else None
  jax.config.update('jax_default_matmul_precision', precision)
  scope = parallel.statistics_scope(section.pop('bn_scope'))
  return registry.create(
    'model', models.MODELS, section, num_classes=num_classes, **scope
  )


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
  return schedule, tx


def create_evaluation(config, model, dataset, recipe):
  """Returns the batches of every suite, and the function that evaluates all of them.

  Returns:
    {suite: batches}; and a function of {'params', 'norms', 'batch_stats'} to the
    metrics and {suite: `runner.Pictures`} of the suites that are attacked.
  """
  attack = registry.create(
    'eval.attack',
    attacks.ATTACKS,
    config.eval.attack,
    num_classes=dataset.num_classes,
  )
  evaluator = runner.Evaluator(model, attack, seed=config.seed)
  eval_batches = {}
  for name in config.eval.suites:
    errors.check_choice('suite of eval.suites', name, suites.SUITES)
    suite = suites.SUITES[name]
    eval_batches[name] = batches.eval_batches(
      _open_dataset(config, suite.data_name) if suite.data_name else dataset,
      split=suite.split or config.data.eval_split,
      batch_size=config.data.eval_batch_size,
      recipe=recipe,
      max_bad_share=config.data.max_bad_share,
      hosts=_hosts(),
    )

  def evaluate(variables):
    metrics: dict[str, float] = {}
    pictures: dict[str, runner.Pictures] = {}
    for name, suite_batches in eval_batches.items():
      values, shown = evaluator(
        **variables,
        batches=suite_batches,
        suite=name,
        attacked=suites.SUITES[name].attacked,
        progress=logs.create_progress(len(suite_batches), every_secs=10.0),
      )
      metrics |= values
      if shown is not None:
        pictures[name] = shown
    return metrics, pictures

  return eval_batches, evaluate


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
  section = dict(config.attack)
  if overrides.get('name', section['name']) != section['name']:
    section = {'statistics': section['statistics']}  # Another kind: nothing else stays.
  section |= overrides
  schema.check_section('attack', section)
  attack = registry.create(
    'attack',
    attacks.ATTACKS,
    section,
    also=('statistics',),
    num_classes=num_classes,
  )
  errors.check_choice('attack.statistics', section['statistics'], ['running', 'batch'])
  return attack, section['statistics']


def create_train_batches(config, experiment: Experiment, *, examples_seen: int):
  """Returns the endless stream of training batches after `examples_seen` examples."""
  return batches.train_batches(
    experiment.dataset,
    split=config.data.train_split,
    batch_size=config.data.batch_size,
    recipe=experiment.recipe,
    seed=config.seed,
    shuffle_window=config.data.shuffle_window,
    max_bad_share=config.data.max_bad_share,
    start_example=examples_seen,
    hosts=_hosts(),
  )


def create_recipe(config) -> preprocess.Recipe:
  """Returns what a config does to an image."""
  return preprocess.Recipe(
    image_size=config.data.image_size,
    crop_padding=config.data.crop_padding,
    resize_method=config.data.resize_method,
    image_dtype='uint8',
    crop_area=config.data.crop_area,
    flip=config.data.flip,
    augment_fn=registry.create(
      'data.augmentation', augment.AUGMENTATIONS, config.data.augmentation
    ),
  )


def _open_dataset(config, name: str) -> datasets.Dataset:
  return datasets.open_dataset(name, data_dir=config.data.data_dir or None)


def _hosts() -> order.Hosts:
  return order.Hosts(index=jax.process_index(), count=jax.process_count())
