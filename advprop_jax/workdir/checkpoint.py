"""Checkpoints in parts: the model, what training goes on from, the config, the data.

A checkpoint is `<directory>/<step>/` with the items

  model     {'params', 'norms', 'batch_stats'}: all that a network consists of
  ema       averages of the three; absent if none are kept
  training  {'step', 'rng', 'opt_state'}: what only training needs
  config    the resolved config, JSON, with the names of the classes
  data      {'examples_seen': N, 'process_count': P, 'fingerprint': {...}}: with the
            seed and files of this fingerprint they determine every batch to come;
            and the step and number of examples since which batches have their size
  metrics   those of an evaluation at that very step; empty if there was none

The file SHA256SUMS beside them tells whether all are as they were written, see
`integrity.py`. Arrays are whole, so any number of devices restores them. Whoever wants
the network reads `ema` or `model` alone, and needs no optimizer for it.
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from advprop_jax import branches, errors, hosts, json_files, parallel, schema
from advprop_jax.workdir import directory as workdirs
from advprop_jax.workdir import disk, integrity

BEST_METRIC = 'val/clean_top1'
_ARRAYS = ('model', 'ema', 'training')
# How long to wait after each failure in a row of a save; after one more it is given up.
RETRY_SECS = (1, 5, 30)
_JSON = ('config', 'data')
# What a reader of the network needs: of a copy without `training` it is all there is.
_NETWORK = ('model', 'ema', 'config', 'data', 'metrics')
_ITEMS = (*_NETWORK, 'training')


class DamagedError(errors.UserError):
  """Says that a checkpoint is damaged: another one may not be."""

  def __init__(self, path: epath.Path, problem: str, *, others: Iterable[int]):
    """Makes the message; `others` are the steps of the other checkpoints."""
    self.problem = problem
    names = ', '.join(map(str, others))
    super().__init__(
      f'the checkpoint {path} is damaged: {problem}; allowed: a whole one'
      + (f', as may be those of steps {names}' if names else '')
    )


def _best(metrics) -> float:
  value = metrics.get(BEST_METRIC)
  is_number = isinstance(value, int | float) and abs(value) < math.inf
  return value if is_number else -math.inf


@contextlib.contextmanager
def _only_errors():
  """Leaves out what Orbax warns of a directory that is opened to be read."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


class Checkpointer:
  """Saves and restores the checkpoints of one directory; a context manager.

  Keeps the newest `keep_last` and the one with the highest BEST_METRIC. Saving is
  asynchronous; leaving the context waits for it.
  """

  def __init__(
    self,
    directory,
    *,
    keep_last: int = 1,
    read_only: bool = False,
    whole: Iterable[int] = (),
    flag: str = '--workdir',
  ):
    """Opens a directory; makes it, and drops what a killed save left.

    Args:
      directory: path or str.
      keep_last: how many of the newest checkpoints to keep.
      read_only: whether to change nothing.
      whole: steps of which all files have been compared, see `verify`.
      flag: the one that has named the directory, for messages.
    """
    self._flag = flag
    self._compared = {(step, item) for step in whole for item in _ITEMS}
    self._last: tuple[int, Callable[[], Any]] | None = None  # Step and its save.
    self._num_failed = 0  # Saves in a row.
    path = epath.Path(directory).expanduser().absolute()
    if path.exists() and not path.is_dir():
      raise errors.UserError(f'{path} is no directory; allowed: what a run has written')
    policies = ocp.checkpoint_managers
    with _only_errors() if read_only else contextlib.nullcontext():
      self._manager = ocp.CheckpointManager(
        path,
        item_handlers={
          **{item: ocp.StandardCheckpointHandler() for item in _ARRAYS},
          'config': ocp.JsonCheckpointHandler(),
          'data': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          read_only=read_only,
          create=not read_only,
          cleanup_tmp_directories=not read_only,
          temporary_path_class=integrity.temporary_path_class(path),
          # The metrics of all checkpoints are for the decision which to keep.
          lightweight_initialize=read_only,
          best_fn=_best,
          preservation_policy=policies.AnyPreservationPolicy(
            [
              policies.LatestN(keep_last),
              policies.BestN(get_metric_fn=_best, n=1),
            ]
          ),
        ),
      )

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, exc_type, *exc_info):
    try:
      self._manager.close()
    except Exception as e:
      if exc_type is None:
        raise disk.cannot_write(self._manager.directory, e) from e
      # The error that is under way says more.

  def steps(self) -> list[int]:
    """Returns the steps there are checkpoints of, oldest first."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    parts: dict[str, Any],
    *,
    config: dict,
    examples_seen: int,
    fingerprint: dict,
    since: tuple[int, int] = (0, 0),
    metrics=None,
    evaluation_due: bool = False,
    spent: dict[str, float] | None = None,
  ):
    """Saves in the background; the arrays may be donated as soon as this returns.

    Args:
      step: of training.
      parts: items and their arrays, see above.
      config: of the run.
      examples_seen: by all hosts, from the start.
      fingerprint: of the training images.
      since: step and `examples_seen` from which on batches have the size of `config`.
      metrics: of the evaluation of this step, if there was one.
      evaluation_due: whether there is still one to be, see `add_metrics`.
      spent: on the run so far, see `logs.PhaseTimer`.

    Raises:
      UserError: this checkpoint or the one before it cannot be written.
    """
    parts = {
      item: ocp.args.StandardSave(part)
      for item, part in parallel.to_saveable(parts).items()
    }
    position = {
      'examples_seen': examples_seen,
      'process_count': jax.process_count(),
      'fingerprint': fingerprint,
      'since': list(since),
      'evaluation_due': evaluation_due,
      'spent': spent or {},
    }
    args = ocp.args.Composite(
      **parts, config=ocp.args.JsonSave(config), data=ocp.args.JsonSave(position)
    )
    try:
      self._manager.wait_until_finished()
    except Exception as e:  # Of the save before, which this one stands in for.
      self._check_failure(e)
    save = functools.partial(self._manager.save, step, args=args, metrics=metrics or {})
    self._last = step, save
    self._try_to_save()

  def find(self, which: str) -> int:
    """Returns the step of a checkpoint: 'newest', 'best' by BEST_METRIC, or its number.

    Of the newest and the best only those count whose network is whole; a warning names
    the others.

    Raises:
      UserError: there is none.
      DamagedError: it is damaged, or all are.
    """
    steps = self.steps()
    if which in [str(step) for step in steps]:
      self.verify(int(which), _NETWORK)
      return int(which)
    orders = {'newest': steps, 'best': []}
    if which != 'newest':  # The metrics are in files of their own.
      measured = {step: self._measure(step) for step in steps}
      good = [step for step in steps if measured[step] > -math.inf]
      orders['best'] = sorted(good, key=lambda step: (measured[step], -step))
    if not orders.get(which):
      names = [*(name for name in ('best', 'newest') if orders[name]), *steps]
      raise errors.UserError(
        f'no checkpoint {which!r} in {self._manager.directory}; allowed: '
        f'{", ".join(map(str, names)) or "a directory with checkpoints"}'
      )
    damaged: dict[int, DamagedError] = {}
    for step in reversed(orders[which]):
      try:
        self.verify(step, _NETWORK)
      except DamagedError as e:
        damaged[step] = e
        continue
      for bad, error in damaged.items():
        logging.warning(
          'the checkpoint %s is damaged: %s; that of step %d is used',
          *(self._path(bad), error.problem, step),
        )
      return step
    raise next(iter(damaged.values()))

  def _measure(self, step: int) -> float:
    """Returns the metric of a step by which it is the best; -inf: there is none."""
    try:
      self.verify(step, ['metrics'])
      return _best(self._manager.metrics(step) or {})
    except Exception:  # Orbax raises these, if there are no checksums.
      return -math.inf

  def verify(self, step: int, items: Iterable[str]):
    """Compares the files of some items with their checksums, once.

    Args:
      step: one of `steps()`.
      items: see at the top.

    Raises:
      DamagedError: one of them is not as it was written.
    """
    todo = [item for item in items if (step, item) not in self._compared]
    if not todo:
      return
    report = integrity.check(self._path(step), items=todo)
    if report.problems:
      raise self._damaged(step, report.problems[0])
    self._compared |= {(step, item) for item in todo}

  def describe(self, step: int) -> tuple[dict, tuple[str, ...]]:
    """Returns the config of a checkpoint and the names of its branches.

    Raises:
      UserError: it is damaged.
    """
    self.check_items(step, ())
    self.verify(step, ['config'])
    self._check_json(step)
    try:
      norms = self._manager.item_metadata(step)['model']['norms']
      args = ocp.args.Composite(config=ocp.args.JsonRestore())
      config = self._manager.restore(step, args=args)['config']
      branch_names = tuple(
        sorted(norms, key=lambda name: (name != branches.CLEAN, name))
      )
    except Exception as e:  # Orbax raises these.
      raise self._unreadable(step) from e
    self._check_config(step, config, needs=('data', 'model'))
    return config, branch_names

  def is_evaluation_due(self, step: int, position: dict) -> bool:
    """Returns whether a checkpoint was saved before the evaluation of its step.

    Args:
      step: of the checkpoint.
      position: its item `data`.
    """
    # Older checkpoints do not say.
    return bool(position.get('evaluation_due')) and not self._manager.metrics(step)

  def add_metrics(self, step: int, metrics: dict[str, float]):
    """Adds the metrics of an evaluation to a checkpoint that has none."""
    if jax.process_index() == 0:
      content = json.dumps(metrics).encode()
      integrity.replace_file(self._path(step), 'metrics/metrics', content)
    hosts.wait_for_hosts('metrics added')
    self._manager.reload()

  def set_aside(self, step: int, problem: str, *, instead: int):
    """Moves a damaged checkpoint out of the directory; see `integrity.set_aside`."""
    integrity.set_aside(self._path(step), problem, instead=instead)
    self._manager.reload()

  def wait_until_finished(self):
    """Waits for the save under way; repeats it if it fails and may succeed.

    The arrays of the last save must not have been donated.

    Raises:
      UserError: it cannot be written.
    """
    while True:
      try:
        self._manager.wait_until_finished()
        self._num_failed = 0
        return
      except Exception as e:
        self._check_failure(e)
      self._try_to_save()

  def _try_to_save(self):
    """Begins the last save, as often as is allowed."""
    assert self._last is not None
    while True:
      try:
        self._last[1]()
        return
      except Exception as e:
        self._check_failure(e)

  def _check_failure(self, e: Exception):
    """Waits a little after a save has failed; UserError if it would fail again."""
    assert self._last is not None
    step = self._last[0]
    self._num_failed += 1
    if not disk.can_pass(e) or self._num_failed > len(RETRY_SECS):
      raise disk.cannot_write(f'the checkpoint {self._path(step)}', e) from e
    secs = RETRY_SECS[self._num_failed - 1]
    logging.warning(
      'the checkpoint of step %d could not be written (%s): again in %d s',
      *(step, disk.reason(e), secs),
    )
    time.sleep(secs)

  def restore(
    self, step: int, templates: dict[str, Any]
  ) -> tuple[dict[str, Any], dict, dict]:
    """Returns (parts, config, data) of a checkpoint; see the items above.

    Args:
      step: one of `steps()`.
      templates: {'model': ..., ...}, the items to read: trees of the expected
        structure, shapes and types; their values are not read.

    Raises:
      UserError: the checkpoint is of another model or was trained otherwise, and the
        message names a leaf; or it is of an older format.
      DamagedError: it is damaged, or a value is not finite.
    """
    self.check_items(step, templates)
    self.verify(step, [*templates, 'config', 'data'])
    self._check_json(step)
    sharding = parallel.replicated_sharding()
    try:
      metadata = self._manager.item_metadata(step)
      saved = {item: metadata[item] for item in templates}
      if any(part is None for part in saved.values()):
        raise KeyError('no metadata')
    except Exception as e:  # Orbax raises these.
      raise self._unreadable(step) from e
    for item, template in templates.items():
      if change := _describe_change(saved[item], template):
        what = 'was trained otherwise' if item == 'training' else 'is of another model'
        raise errors.UserError(
          f'the checkpoint {self._path(step)} {what}: {change}; allowed: the --config '
          "and values it was trained with (they are listed in the workdir's "
          f'config.json), or another {self._flag}'
        )
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), templates
    )
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          **{item: ocp.args.StandardRestore(x) for item, x in abstract.items()},
          config=ocp.args.JsonRestore(),
          data=ocp.args.JsonRestore(),
        ),
      )
    except jax.errors.JaxRuntimeError:
      raise  # Of a device, as that its memory is full.
    except Exception as e:  # Orbax raises these.
      raise self._unreadable(step) from e
    self._check_config(step, restored['config'])
    arrays = parallel.to_host_local({item: restored[item] for item in templates})
    if 'training' in templates and (
      problem := _problem_of_position(step, restored['config'], restored['data'])
    ):
      raise self._damaged(step, problem)
    if (leaf := _find_nonfinite(arrays)) is not None:
      raise self._damaged(step, f'{leaf} is not finite')
    logging.info('restored %s of %s', ', '.join(templates), self._path(step))
    return arrays, restored['config'], restored['data']

  def restore_model(
    self, step: int, template: dict, *, averaged: bool | None = None
  ) -> tuple[dict, bool]:
    """Returns the variables of a checkpoint, and whether they are averages.

    Args:
      step: one of `steps()`.
      template: {'params', 'norms', 'batch_stats'} of the expected structure, shapes and
        types.
      averaged: whether to read the averages or the weights themselves; None: the
        averages, where there are some.

    Raises:
      UserError: see `restore`.
    """
    if averaged is None:
      averaged = (self._path(step) / 'ema').exists()
    item = 'ema' if averaged else 'model'
    parts, _, _ = self.restore(step, {item: template})
    return parts[item], averaged

  def check_items(self, step: int, items: Iterable[str]):
    """Raises UserError for a checkpoint of the older format, or that lacks an item."""
    path = self._path(step)
    if (path / 'state').exists():
      raise errors.UserError(
        f"the checkpoint {path} was saved by an older version, as one item 'state'; "
        f'allowed: that version to go on with it, or another {self._flag}'
      )
    if not (path / 'model').exists():
      return  # It is damaged, and what reads it says so.
    if 'training' in items and not (path / 'training').exists():
      raise errors.UserError(
        f'the checkpoint {path} holds a network without the state of a training; '
        f'allowed: --config.init_from={path.parent.parent} with another --workdir'
      )
    if 'ema' in items and not (path / 'ema').exists():
      raise errors.UserError(
        f'the checkpoint {path} has no averaged weights; allowed: to go on with it as '
        'it was trained, optim.ema_decay=0, or to read its weights as they are'
      )

  def _check_json(self, step: int):
    """Raises DamagedError if Orbax would take something else for config and data."""
    for item in _JSON:
      try:
        json_files.read_object(self._path(step) / item / 'metadata')
      except FileNotFoundError:
        pass  # Orbax says so.
      except json_files.UnreadableError as e:
        raise self._damaged(step, f'{item}/metadata: {e}') from e

  def _check_config(self, step: int, config: dict, *, needs: Iterable[str] = ()):
    """Raises UserError for a config that no training can have had."""
    try:
      schema.check_saved(config, needs=needs)
    except errors.UserError as e:
      raise errors.UserError(f'in the config of {self._path(step)} {e}') from e

  def _path(self, step: int) -> epath.Path:
    return epath.Path(self._manager.directory) / str(step)

  def _damaged(self, step: int, problem: str) -> DamagedError:
    others = [x for x in self.steps() if x != step]
    return DamagedError(self._path(step), problem, others=others)

  def _unreadable(self, step: int) -> DamagedError:
    return self._damaged(step, 'Orbax cannot read it')


def warn_of_changes(
  saved: dict, config: dict, *, is_unused: Callable[[str], bool] = lambda key: False
):
  """Logs every value of a config that was another one when a checkpoint was saved.

  Args:
    saved: the config of the checkpoint. Of keys that it does not have, nothing is
      said: an older or converted checkpoint has only some.
    config: the one of now.
    is_unused: whether a key, 'attack.epsilon', has no effect on what is done.
  """
  # As JSON: a config that was not saved has tuples in the place of lists.
  old = workdirs.flatten(json.loads(json.dumps(saved)))
  new = workdirs.flatten(json.loads(json.dumps(config)))
  for key, value in sorted(old.items()):
    if value == new.get(key):
      continue
    if is_unused(key):
      logging.warning('config.%s is changed, and has no effect here', key)
    else:
      logging.warning('config.%s was %s before and is %s now', key, value, new.get(key))


def _problem_of_position(step: int, config: dict, position: dict) -> str | None:
  """Returns what cannot be in the data's position of a training, if anything."""
  seen = position.get('examples_seen')
  if type(seen) is not int or seen < 0:
    return f'data: examples_seen is {seen!r}'
  for key, kind in (('process_count', int), ('fingerprint', dict), ('spent', dict)):
    if type(position.get(key, kind())) is not kind:  # Older ones lack some.
      return f'data: {key} is {position[key]!r}'
  if not all(isinstance(x, int | float) for x in position.get('spent', {}).values()):
    return f'data: spent is {position["spent"]!r}'
  since = position.get('since', [0, 0])
  if not isinstance(since, list) or [type(x) for x in since] != [int, int]:
    return f'data: since is {since!r}'
  batch_size = config.get('data', {}).get('batch_size')
  if batch_size is None:
    return None
  expected = since[1] + (step - since[0]) * batch_size
  if seen != expected:
    return f'data: examples_seen is {seen}, and {expected} at its step'
  return None


def _find_nonfinite(tree) -> str | None:
  """Returns the name of the first array with a value that is not finite, if any."""
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(x.dtype, jnp.floating) and not np.isfinite(np.asarray(x)).all():
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


def _leaf_shapes(tree) -> dict[str, tuple[int, ...]]:
  """Returns {'params/stem_conv/kernel': shape, ...}, without the key of the run."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
    for path, leaf in leaves
    # Orbax describes a typed key by the raw words under it.
    if path[0] != jax.tree_util.DictKey('rng')
  }


def _describe_change(saved, template) -> str | None:
  """Returns the first leaf that is absent or of another shape in one of the two."""
  found, expected = _leaf_shapes(saved), _leaf_shapes(template)
  for name in [*expected, *found]:
    if found.get(name) != expected.get(name):
      return (
        f'{name} is {found.get(name, "absent")} there and '
        f'{expected.get(name, "absent")} in this config'
      )
  return None
