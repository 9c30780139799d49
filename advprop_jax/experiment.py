"""From a config to the objects it describes, built and checked before anything runs.

This file, `methods.py`, `phases.py`, `schema.py`, `train.py` and `evaluate.py` are the
last that see a config: below them, functions take named arguments. A config is anything
that `schema.read` takes. What comes in kinds is made from its section and its table by
`registry.create`, so that a new kind is no business of this file.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import logging

from advprop_jax import (
  attacks,
  errors,
  methods,
  models,
  optim,
  parallel,
  registry,
  schema,
  train_state,
)
from advprop_jax.evaluation import labels, runner, suites
from advprop_jax.input import augment, batches, datasets, order, preprocess
from advprop_jax.workdir import logs


class Suite(NamedTuple):
  """The images of a suite, opened."""

  dataset: datasets.Dataset
  split: str
  batches: Any  # Sized iterable of batches


class Evaluation(NamedTuple):
  """What a config says of evaluation. It needs nothing that only training needs."""

  suites: dict[str, Suite]
  run: Callable[[dict], dict[str, runner.Result]]
  # {'params', 'norms', 'batch_stats'} -> {suite: result}


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
  evaluation: Evaluation
  steps_per_epoch: float
  total_steps: int


def create_experiment(config) -> Experiment:
  """Builds everything but the training images.

  Raises:
    UserError: the config asks for something that does not exist or cannot be.
  """
  config = schema.read(config)
  check(config)

  dataset = open_dataset(config)
  class_names = config.data.class_names or dataset.class_names
  new_labels = labels.columns(dataset.class_names, class_names, data_name=dataset.name)
  if new_labels is not None:
    dataset = dataset.with_labels(new_labels, class_names)
  config = with_class_names(config, class_names)
  create_recipe(config, dataset)  # An impossible one is reported here.
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

  model = create_model(config, num_classes=num_classes)
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
  step = method.make_step(
    model,
    tx,
    label_smoothing=config.optim.label_smoothing,
    ema_decay=config.optim.ema_decay,
    accumulate_steps=config.optim.accumulate_steps,
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
    evaluation=create_evaluation(config, model, dataset=dataset),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def check(config: schema.Section):
  """Raises UserError for a section that cannot be; needs no data, and comes first."""
  parallel.check_batch_size(
    'data.batch_size', config.data.batch_size, num_parts=config.optim.accumulate_steps
  )
  methods.check(config)
  create_optimizer(config, steps_per_epoch=1.0, total_steps=1)
  registry.create('data.augmentation', augment.AUGMENTATIONS, config.data.augmentation)
  registry.create('eval.attack', attacks.ATTACKS, config.eval.attack, num_classes=2)


def with_class_names(config: schema.Section, class_names) -> schema.Section:
  """Returns a config that says which class each logit stands for."""
  data = schema.Section(config.data | {'class_names': tuple(class_names)})
  return schema.Section(config | {'data': data})


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
  section.pop('smooth_backward', None)  # Of the training, see `methods.py`.
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


def create_evaluation(config, model, *, dataset=None) -> Evaluation:
  """Opens the suites of a config, to evaluate a model on them.

  Args:
    config: whose `data.class_names` are those of the model's logits, in their order.
    model: maps images to logits.
    dataset: `config.data.name`, if it is open already.

  Raises:
    UserError: a suite is unknown, or has classes that the model does not know.
  """
  parallel.check_batch_size('data.eval_batch_size', config.data.eval_batch_size)
  opened, evaluators = {}, {}
  for name in config.eval.suites:
    errors.check_choice('suite of eval.suites', name, suites.SUITES)
    entry = suites.SUITES[name]
    split = entry.split or config.data.eval_split
    if entry.data_name or dataset is None:
      suite_data = open_to_evaluate(config, split, entry.data_name)
    else:
      suite_data = dataset
    columns = labels.columns(
      suite_data.class_names, config.data.class_names, data_name=suite_data.name
    )
    if columns is not None and len(columns) < len(config.data.class_names):
      logging.info(
        '%s has %d of the %d classes of the network: the logits of the others are '
        'masked, accuracy is over these: %s',
        suite_data.name,
        len(columns),
        len(config.data.class_names),
        ', '.join(suite_data.class_names[:10]),
      )
    attack = registry.create(
      'eval.attack',
      attacks.ATTACKS,
      config.eval.attack,
      num_classes=suite_data.num_classes,
    )
    evaluators[name] = runner.Evaluator(
      model, attack if entry.attacked else None, seed=config.seed, columns=columns
    )
    split_batches = batches.eval_batches(
      suite_data,
      split=split,
      batch_size=config.data.eval_batch_size,
      recipe=create_recipe(config, suite_data),
      max_bad_share=config.data.max_bad_share,
      hosts=_hosts(),
    )
    opened[name] = Suite(suite_data, split, split_batches)

  def run(variables):
    return {
      name: evaluators[name](
        **variables,
        batches=suite.batches,
        progress=logs.create_progress(len(suite.batches), every_secs=10.0),
      )
      for name, suite in opened.items()
    }

  return Evaluation(opened, run)


def abstract_variables(config, model, *, branch_names) -> dict[str, Any]:
  """Returns the shapes and types of {'params', 'norms', 'batch_stats'} of a model."""
  size = config.data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  variables = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), image)
  return {
    'params': variables['params'],
    'norms': dict.fromkeys(branch_names, variables['norm']),
    'batch_stats': dict.fromkeys(branch_names, variables['batch_stats']),
  }


def create_train_batches(config, experiment: Experiment, *, examples_seen: int):
  """Returns the endless stream of training batches after `examples_seen` examples."""
  return batches.train_batches(
    experiment.dataset,
    split=config.data.train_split,
    batch_size=config.data.batch_size,
    recipe=create_recipe(
      config, experiment.dataset, image_keys=experiment.method.image_keys
    ),
    seed=config.seed,
    shuffle_window=config.data.shuffle_window,
    max_bad_share=config.data.max_bad_share,
    start_example=examples_seen,
    hosts=_hosts(),
  )


def create_recipe(
  config, dataset: datasets.Dataset, *, image_keys: tuple[str, ...] = ('image',)
) -> preprocess.Recipe:
  """Returns what a config does to an image of a data set.

  Args:
    config: see `schema.read`.
    dataset: whose images.
    image_keys: what a training batch is asked for.
  """
  turned = {'all': True, 'folders': datasets.is_folder(dataset.name), 'none': False}
  choice = config.data.exif_orientation
  errors.check_choice('data.exif_orientation', choice, turned)
  return preprocess.Recipe(
    image_size=config.data.image_size,
    crop_padding=config.data.crop_padding,
    resize_method=config.data.resize_method,
    image_dtype='uint8',
    max_megapixels=config.data.max_megapixels,
    exif_orientation=turned[choice],
    crop_area=config.data.crop_area,
    flip=config.data.flip,
    augment_fn=registry.create(
      'data.augmentation', augment.AUGMENTATIONS, config.data.augmentation
    ),
    plain_image=preprocess.PLAIN_IMAGE in image_keys,
  )


def open_dataset(config) -> datasets.Dataset:
  """Opens the data set of a config."""
  return datasets.open_dataset(
    config.data.name,
    data_dir=config.data.data_dir or None,
    holdout_share=config.data.holdout_share,
  )


def open_to_evaluate(config, split: str, name: str | None = None) -> datasets.Dataset:
  """Opens the data set of a config, or another one from the same place, for a split.

  What is held out of the training is asked of it only if the split depends on that:
  other data than those of the training need not have these splits.
  """
  names = datasets.split_names(split)
  depends = any(x in names for x in datasets.HOLDOUT_SPLITS)
  share = config.data.holdout_share if depends and not name else 0.0
  data = schema.Section(
    config.data | {'name': name or config.data.name, 'holdout_share': share}
  )
  return open_dataset(schema.Section(config | {'data': data}))


def _hosts() -> order.Hosts:
  return order.Hosts(index=jax.process_index(), count=jax.process_count())
