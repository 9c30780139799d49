"""Evaluates a checkpoint: from a config and a workdir to numbers."""

from absl import logging

from advprop_jax import errors, experiment
from advprop_jax.evaluation import pictures
from advprop_jax.workdir import checkpoint, directory, logs


def evaluate_checkpoint(config, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of a workdir, without changing it.

  Args:
    config: that of the checkpoint, as far as model and branches go; data, evaluation
      and optimizer may differ.
    workdir: directory that has been trained in; results.jsonl receives a line.

  Returns:
    The metrics.

  Raises:
    UserError: no checkpoint, one of another model, or a config that cannot be used.
  """
  exp = experiment.create_experiment(config)
  steps = directory.saved_steps(workdir)
  if not steps:
    raise errors.UserError(
      f'{workdir} has no checkpoint; allowed: a --workdir that was trained in'
    )
  path = directory.open_workdir(workdir)
  with checkpoint.Checkpointer(path / 'checkpoints', read_only=True) as checkpointer:
    variables, saved = checkpointer.restore_model(steps[-1], exp.abstract_state.model)
  checkpoint.warn_of_changes(saved, config.to_dict())
  with logs.MetricWriter(path) as writer:
    logging.info('evaluating step %d', steps[-1])
    values, examples = exp.evaluate(variables)
    writer.write_scalars(steps[-1], values)
    for suite, shown in examples.items():
      grid = pictures.adversarial_grid(
        **shown._asdict(), class_names=exp.dataset.class_names
      )
      writer.write_image(steps[-1], f'{suite}/clean_pgd', grid)
  return values
