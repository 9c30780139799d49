"""Evaluates a checkpoint: from a workdir to numbers that say what they are of."""

from absl import logging

from advprop_jax import errors, evaluations, images, model_config, schema
from advprop_jax.evaluation import pictures
from advprop_jax.input import datasets
from advprop_jax.workdir import checkpoint, directory, logs

# Beginnings of keys that have no part in an evaluation.
_UNUSED = (
  *('init_from', 'num_epochs', 'log_', 'streams', 'attack.', 'optim.', 'checkpoint.'),
  *('method.', 'phases', 'model.smooth_backward'),
  *('data.train_split', 'data.batch_size', 'data.shuffle_window'),
  *('data.crop_area', 'data.flip', 'data.augmentation'),
)


def evaluate_checkpoint(
  config, workdir: str, *, which: str = 'newest'
) -> dict[str, float]:
  """Evaluates a checkpoint of a workdir, without changing it.

  Of the config only data, model and evaluation count. The classes and the branches are
  the checkpoint's.

  Args:
    config: whose model is the checkpoint's; see `directory.read_config`.
    workdir: directory that has been trained in. It receives a line of results.jsonl
      for every suite, that says what was evaluated, and pictures.
    which: 'newest', 'best' or a step.

  Returns:
    The metrics, named '<data set>:<split>/<branch>_<score>'.

  Raises:
    UserError: no such checkpoint, one of another model, or a config that cannot be
      used.
  """
  config = schema.read(config)
  if not directory.saved_steps(workdir):
    raise errors.UserError(
      f'{workdir} has no checkpoint; allowed: a --workdir that was trained in'
    )
  path = directory.open_workdir(workdir)
  with checkpoint.Checkpointer(path / 'checkpoints', read_only=True) as checkpointer:
    step = checkpointer.find(which)
    saved, _ = checkpointer.describe(step)
    config = _with_held_out(saved, config)
    config = model_config.with_class_names(config, _class_names(saved, config))
    model = model_config.create_model(config, num_classes=len(config.data.class_names))
    evaluation = evaluations.create_evaluation(config, model)
    variables, averaged = model_config.restore_variables(
      checkpointer, step, config, model
    )
  checkpoint.warn_of_changes(saved, config, unused=_UNUSED)
  _warn_of_seen_images(saved, config)
  metrics: dict[str, float] = {}
  with logs.MetricWriter(path) as writer:
    about = {
      'checkpoint': str(path / 'checkpoints' / str(step)),
      'averaged': averaged,
      'attack': config.eval.attack,
    }
    for suite in evaluation.suites.values():
      logging.info(
        'evaluating step %d (%s weights) of %s on %s, split %r: %d images; branches '
        '%s; attack %s; the first batch is compiled: a minute or more on a CPU',
        step,
        'averaged' if averaged else 'plain',
        path,
        suite.dataset.name,
        suite.split,
        suite.dataset.num_examples(suite.split),
        ', '.join(variables['norms']),
        config.eval.attack,
      )
      for note in suite.dataset.notes:
        logging.warning('%s', note)
    for name, result in evaluation.run(variables).items():
      suite = evaluation.suites[name]
      title = f'{suite.dataset.name}:{suite.split}'
      values = {f'{title}/{key}': x for key, x in result.metrics.items()}
      writer.write_scalars(
        step,
        values,
        about={**about, 'dataset': suite.dataset.name, 'split': suite.split},
      )
      if result.pictures is not None:
        writer.write_image(
          step,
          f'{title}/clean_pgd',
          pictures.adversarial_grid(
            **result.pictures._asdict(), class_names=suite.dataset.class_names
          ),
        )
      metrics |= values
  return metrics


def _with_held_out(saved: dict, config: schema.Section) -> schema.Section:
  """Returns a config that holds nothing out of other data than those of the training.

  Their split 'train' is whole then, unless their 'holdout' is asked for, too.
  """
  split_names = datasets.split_names(config.data.eval_split)
  if datasets.is_same(saved['data']['name'], config.data.name) or (
    datasets.HOLDOUT in split_names
  ):
    return config
  data = schema.Section(config.data | {'holdout_share': 0.0})
  return schema.Section(config | {'data': data})


def _warn_of_seen_images(saved: dict, config: schema.Section):
  """Logs that images which the network was trained on count as held out."""
  is_held_out = datasets.HOLDOUT in datasets.split_names(config.data.eval_split)
  if is_held_out and datasets.holds_out_seen_images(saved['data'], config.data):
    logging.warning(
      'some images of split %r were trained on: data.holdout_share was %s in the '
      'training and is %s now',
      config.data.eval_split,
      saved['data'].get('holdout_share', 0.0),
      config.data.holdout_share,
    )


def _class_names(saved: dict, config: schema.Section) -> tuple[str, ...]:
  """Returns the names of a checkpoint's classes, in the order of its logits."""
  if names := saved['data'].get('class_names'):
    return tuple(names)
  names = images.open_to_evaluate(config, config.data.eval_split).class_names
  logging.warning(
    'the checkpoint is older than names of classes in checkpoints: they are taken to '
    'be those of %s',
    config.data.name,
  )
  return names
