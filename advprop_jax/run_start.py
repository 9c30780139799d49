"""How a run begins: from nothing, from its newest checkpoint, from other weights."""

import jax
from absl import logging

from advprop_jax import (
  initial_weights,
  model_config,
  parallel,
  schema,
  train_state,
)
from advprop_jax.input import datasets
from advprop_jax.workdir import checkpoint, directory


def with_trained_classes(
  config: schema.Section, *workdirs: str | None
) -> schema.Section:
  """Returns a config with the classes of the first workdir that has checkpoints."""
  for workdir in workdirs:
    steps = directory.saved_steps(workdir) if workdir else []
    if config.data.class_names or not steps:
      continue
    with checkpoint.Checkpointer(
      f'{workdir}/checkpoints', read_only=True
    ) as checkpointer:
      saved, _ = checkpointer.describe(steps[-1])
    # Older checkpoints do not name their classes.
    return model_config.with_class_names(config, saved['data'].get('class_names', ()))
  return config


def check_trained(workdir: str):
  """Raises UserError for a workdir whose newest checkpoint is a network alone."""
  if steps := directory.saved_steps(workdir):
    with checkpoint.Checkpointer(
      f'{workdir}/checkpoints', read_only=True
    ) as checkpointer:
      checkpointer.check_items(steps[-1], ['training'])


def read_weights(
  exp, workdir: str, start_from: str | None
) -> initial_weights.InitialWeights | None:
  """Returns the weights of another run to begin with; None: the run does not."""
  if start_from is None and not exp.config.init_from:
    return None
  with checkpoint.Checkpointer(
    f'{workdir}/checkpoints', read_only=True
  ) as checkpointer:
    if checkpointer.steps():
      return None
  return initial_weights.read(
    exp.config,
    start_from or exp.config.init_from,
    branch_names=exp.method.branch_names,
  )


def restore_or_create(
  exp, checkpointer, fingerprint: dict, start: initial_weights.InitialWeights | None
):
  """Returns the state to go on from, on all devices, and what it has seen and spent.

  The latter are the number of examples, and `logs.PhaseTimer.spent`.
  """
  steps = checkpointer.steps()
  if not steps:
    state = exp.create_state()
    if start is not None:
      state = state.start_from(start.variables)
    return parallel.replicate(state), 0, {}
  parts, saved, position = checkpointer.restore(steps[-1], exp.abstract_state.parts)
  checkpoint.warn_of_changes(
    saved, exp.config, is_unused=lambda key: key == 'init_from'
  )
  if datasets.holds_out_seen_images(saved['data'], exp.config.data):
    logging.warning('some of the images that are held out now were trained on before')
  if steps[-1] < exp.total_steps:
    logging.info('resuming from step %d of %d', steps[-1], exp.total_steps)
  # Older checkpoints have none.
  before = position.get('fingerprint', fingerprint)
  if change := datasets.describe_change(before, fingerprint):
    logging.warning(
      'data set %s is another one than at step %d: %s; the images come in another '
      'order from here',
      exp.dataset.name,
      steps[-1],
      change,
    )
  num_hosts = jax.process_count()
  # Older checkpoints do not say by how many they were saved.
  if (saved_by := position.get('process_count', num_hosts)) != num_hosts:
    logging.warning(
      'saved by %d hosts and resumed by %d: the images come in another order from here',
      saved_by,
      num_hosts,
    )
  state = train_state.TrainState.from_parts(parts)
  # Older checkpoints do not say what was spent.
  return state, position['examples_seen'], position.get('spent', {})
