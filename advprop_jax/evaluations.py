"""From a config to its evaluation: the suites, opened, and what runs on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging

from advprop_jax import attacks, errors, images, parallel, registry
from advprop_jax.evaluation import labels, runner, suites
from advprop_jax.input import batches, datasets
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
      suite_data = images.open_to_evaluate(config, split, entry.data_name)
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
      recipe=images.create_recipe(config, suite_data),
      max_bad_share=config.data.max_bad_share,
      hosts=images.hosts(),
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
