"""The weights that a run begins with, where they are those of another run."""

import itertools
from typing import Any, NamedTuple

from absl import logging

from advprop_jax import branches, errors, model_config, schema
from advprop_jax.weights import published
from advprop_jax.workdir import contents, directory, restore

# The layer of a network that belongs to its classes, see `models/network.py`.
CLASSIFIER = 'classifier'
# Keys of `config.model` that do not change which function of an image the weights are.
NEUTRAL = (
  *('dtype', 'remat_blocks', 'cpu_kernels'),
  *('bn_scope', 'bn_momentum', 'drop_connect_rate', 'smooth_backward'),
)
# Keys of `config.data` that do.
PREPROCESSING = ('resize_method', 'crop_padding')


class InitialWeights(NamedTuple):
  """What a run begins with."""

  variables: dict[str, Any]  # See `TrainState.start_from`.
  has_classifier: bool  # Whether the classifier is among them.


def read(
  config: schema.Section, source: str, *, branch_names: tuple[str, ...]
) -> InitialWeights:
  """Returns what the newest checkpoint of a workdir would evaluate.

  Or the weights of others. Without the classifier, if that is one of other classes. The
  log says what is taken, and which values of the config have changed the meaning of the
  weights.

  Args:
    config: of the run that begins, with the names of its classes.
    source: workdir of another run, of whose phases the last with a checkpoint counts;
      or published weights, see `weights/readers.py`.
    branch_names: those of the run that begins.

  Raises:
    UserError: there are no such weights, they are of another model, or damaged.
  """
  run = directory.last_run(source)
  read_source = _restore if directory.saved_steps(run) else _convert
  variables, saved = read_source(config, run)
  contents.warn_of_changes(_constants(saved), _constants(config))
  if copies := [name for name in branch_names if name not in variables['norms']]:
    logging.info('norms %s begin as copies of %s', copies, branches.CLEAN)
  old_names = tuple(saved['data'].get('class_names', ())) or config.data.class_names
  change = _describe_change(old_names, config.data.class_names)
  logging.info(
    'the classifier is %s', change or f'kept: the same {len(old_names)} classes'
  )
  if change:
    params = {k: x for k, x in variables['params'].items() if k != CLASSIFIER}
    variables = {**variables, 'params': params}
  return InitialWeights(variables, has_classifier=change is None)


def _restore(config: schema.Section, workdir: str):
  """Returns the variables and the config of the newest checkpoint of a run."""
  with restore.Reader(f'{workdir}/checkpoints', flag='--config.init_from') as reader:
    step = reader.find('newest')
    saved, _ = reader.describe(step)
    # Older checkpoints do not name their classes.
    names = saved['data'].get('class_names', ()) or config.data.class_names
    model = model_config.create_model(config, num_classes=len(names))
    variables, averaged = model_config.restore_variables(reader, step, config, model)
  logging.info(
    'starting from the %s weights of step %d of %s',
    'averaged' if averaged else 'plain',
    step,
    workdir,
  )
  return variables, saved


def _convert(config: schema.Section, source: str):
  """Returns the variables and the config of published weights."""
  try:
    network = published.read_network(source, config.model.name)
  except errors.UserError as e:
    raise errors.UserError(
      f'init_from is {source!r}, no --workdir with a checkpoint; as published weights: '
      f'{e}; its options are those of `python -m advprop_jax.weights.convert`, whose '
      '--workdir init_from takes, too'
    ) from e
  logging.info('starting from published weights: %s', published.describe(network))
  for warning in published.warnings(network):
    logging.warning('%s', warning)
  variables = {
    'params': network.variables['params'],
    'norms': {branches.CLEAN: network.variables['norm']},
    'batch_stats': {branches.CLEAN: network.variables['batch_stats']},
  }
  return variables, network.config


def _describe_change(before: tuple[str, ...], now: tuple[str, ...]) -> str | None:
  """Returns in a few words why a classifier is made anew; None if it is not."""
  for i, (old, new) in enumerate(itertools.zip_longest(before, now)):
    if old != new:
      return (
        f'made anew: {len(before)} classes before and {len(now)} now; the first that '
        f'differs is number {i}, {_quote(old)} before and {_quote(new)} now'
      )
  return None


def _quote(name: str | None) -> str:
  return 'none' if name is None else repr(name)


def _constants(config) -> dict[str, dict[str, Any]]:
  """Returns the values by which the same weights are another function of an image."""
  return {
    'model': {k: x for k, x in config['model'].items() if k not in NEUTRAL},
    'data': {k: x for k, x in config['data'].items() if k in PREPROCESSING},
  }
