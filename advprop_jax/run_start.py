"""How a run begins: from nothing, from its newest checkpoint, from other weights."""

import hashlib
import importlib.metadata
import pathlib
from typing import Any, NamedTuple

import jax
from absl import logging

from advprop_jax import (
  hosts,
  initial_weights,
  model_config,
  parallel,
  schema,
  train_state,
)
from advprop_jax.input import datasets
from advprop_jax.workdir import contents, directory, integrity, restore

# What the numbers of a run depend on, and its checkpoints.
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint')


class Start(NamedTuple):
  """What a run goes on from."""

  state: Any  # On all devices.
  step: int = 0  # Of the checkpoint; 0: there is none.
  examples_seen: int = 0
  since: tuple[int, int] = (0, 0)  # See `Checkpointer.save`.
  spent: dict[str, float] = {}  # See `spent.PhaseTimer.spent`.
  evaluation_due: bool = False  # Of this step, which a signal has interrupted.


def check_hosts(config: schema.Section, workdir: str):
  """Raises UserError if hosts have been given, or have installed, different things."""
  if jax.process_count() == 1:
    return
  values = {'--workdir': workdir, **directory.flatten(config)}
  # Each may have its copy of the images, whose fingerprints are compared.
  values = {key: x for key, x in values.items() if key != 'data.data_dir'}
  hosts.check_same_on_hosts('the config', values)
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  code = hashlib.sha256()
  for file in sorted(pathlib.Path(__file__).parent.rglob('*.py')):
    code.update(file.read_bytes())
  hosts.check_same_on_hosts('versions', {**versions, 'our code': code.hexdigest()[:8]})


def with_trained_classes(
  config: schema.Section, *workdirs: str | None
) -> schema.Section:
  """Returns a config with the classes of the first workdir that has checkpoints."""
  for workdir in workdirs:
    steps = directory.saved_steps(workdir) if workdir else []
    if config.data.class_names or not steps:
      continue
    with restore.Reader(f'{workdir}/checkpoints') as reader:
      saved, _ = reader.describe(steps[-1])
    # Older checkpoints do not name their classes.
    return model_config.with_class_names(config, saved['data'].get('class_names', ()))
  return config


def check_trained(workdir: str):
  """Raises UserError for a workdir whose newest checkpoint is a network alone."""
  if steps := directory.saved_steps(workdir):
    with restore.Reader(f'{workdir}/checkpoints') as reader:
      reader.check_items(steps[-1], ['training'])


def read_weights(
  exp, workdir: str, start_from: str | None
) -> initial_weights.InitialWeights | None:
  """Returns the weights of another run to begin with; None: the run does not."""
  if start_from is None and not exp.config.init_from:
    return None
  with restore.Reader(f'{workdir}/checkpoints') as reader:
    if reader.steps():
      return None
  return read_initial(exp, start_from)


def read_initial(
  exp, start_from: str | None = None
) -> initial_weights.InitialWeights | None:
  """Returns the weights that a run begins with without a checkpoint of its own."""
  source = start_from or exp.config.init_from
  if not source:
    return None
  return initial_weights.read(exp.config, source, branch_names=exp.method.branch_names)


def restore_or_create(
  exp, checkpointer, fingerprint: dict, weights: initial_weights.InitialWeights | None
) -> Start:
  """Returns what to go on from; in the place of damaged checkpoints an earlier one.

  Args:
    exp: the experiment.
    checkpointer: of the run's checkpoints.
    fingerprint: of the training images.
    weights: to begin with, if there is no checkpoint; None: the initial ones.

  Raises:
    UserError: all checkpoints are damaged, and stay where they are.
  """
  steps = checkpointer.steps()
  if not steps:
    state = exp.create_state()
    if weights is not None:
      state = state.start_from(weights.variables)
    return Start(parallel.replicate(state))
  step, (parts, saved, position) = _restore_newest(exp, checkpointer)
  if step < exp.total_steps:
    logging.info('resuming from step %d of %d', step, exp.total_steps)
  warn_of_differences(exp, step, saved, position, fingerprint)
  seen = position['examples_seen']
  since = tuple(position.get('since', (0, 0)))
  if saved['data']['batch_size'] != exp.config.data.batch_size:
    since = (step, seen)
  # Older checkpoints do not say what was spent.
  spent = position.get('spent', {})
  state = train_state.TrainState.from_parts(parts)
  is_due = checkpointer.is_evaluation_due(step, position)
  return Start(state, step, seen, since, spent, is_due)


def _restore_newest(exp, checkpointer) -> tuple[int, tuple[dict, dict, dict]]:
  """Returns the newest checkpoint that is whole; newer ones are set aside."""
  damaged: dict[int, str] = {}
  for step in reversed(checkpointer.steps()):
    found, problem = None, ''
    try:
      found = checkpointer.restore(step, exp.abstract_state.parts)
    except restore.DamagedError as e:
      problem = e.problem
    # What one host cannot use, none does.
    if problems := [x for x in hosts.texts_of_hosts(problem) if x]:
      damaged[step] = problems[0]
      continue
    assert found is not None
    for bad, problem in damaged.items():
      checkpointer.set_aside(bad, problem, instead=step)
    return step, found
  raise integrity.none_whole(checkpointer.directory, damaged)


def warn_of_differences(exp, step: int, saved: dict, position: dict, fingerprint: dict):
  """Logs what of a run is not as it was when a checkpoint was saved.

  Args:
    exp: the experiment.
    step: of the checkpoint.
    saved: its config.
    position: its item `data`.
    fingerprint: of the training images.
  """
  contents.warn_of_changes(saved, exp.config, is_unused=lambda key: key == 'init_from')
  if datasets.holds_out_seen_images(saved['data'], exp.config.data):
    logging.warning('some of the images that are held out now were trained on before')
  # Older checkpoints have none.
  before = position.get('fingerprint', fingerprint)
  if change := datasets.describe_change(before, fingerprint):
    logging.warning(
      'data set %s is another one than at step %d: %s; the images come in another '
      'order from here',
      exp.dataset.name,
      step,
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
