"""Checkpoints in parts: the model, what training goes on from, the config, the data.

A checkpoint is `<directory>/<step>/` with the items

  model     {'params', 'norms', 'batch_stats'}: all that a network consists of
  ema       averages of the three; absent if none are kept
  training  {'step', 'rng', 'opt_state'}: what only training needs
  config    the resolved config, JSON, with the names of the classes
  data      {'examples_seen': N, 'process_count': P, 'fingerprint': {...}}: with the
            seed and files of this fingerprint they determine every batch to come
  metrics   those of an evaluation at that very step; empty if there was none

Arrays are whole, so any number of devices restores them. Whoever wants the network
reads `ema` or `model` alone, and needs no optimizer for it.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from advprop_jax import branches, errors, parallel
from advprop_jax.workdir import directory as workdirs

BEST_METRIC = 'val/clean_top1'
_ARRAYS = ('model', 'ema', 'training')


def _best(metrics) -> float:
  return metrics.get(BEST_METRIC, -math.inf)


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
    flag: str = '--workdir',
  ):
    """Opens a directory; makes it, and drops what a killed save left.

    Args:
      directory: path or str.
      keep_last: how many of the newest checkpoints to keep.
      read_only: whether to change nothing.
      flag: the one that has named the directory, for messages.
    """
    self._flag = flag
    policies = ocp.checkpoint_managers
    with _only_errors() if read_only else contextlib.nullcontext():
      self._manager = ocp.CheckpointManager(
        epath.Path(directory).expanduser().absolute(),
        item_handlers={
          **{item: ocp.StandardCheckpointHandler() for item in _ARRAYS},
          'config': ocp.JsonCheckpointHandler(),
          'data': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          read_only=read_only,
          create=not read_only,
          cleanup_tmp_directories=not read_only,
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

  def __exit__(self, *exc_info):
    self._manager.close()

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
    metrics=None,
    spent: dict[str, float] | None = None,
  ):
    """Saves in the background; the arrays may be donated as soon as this returns.

    Args:
      step: of training.
      parts: items and their arrays, see above.
      config: of the run.
      examples_seen: by all hosts, from the start.
      fingerprint: of the training images.
      metrics: of the evaluation of this step, if there was one.
      spent: on the run so far, see `logs.PhaseTimer`.
    """
    parts = {
      item: ocp.args.StandardSave(part)
      for item, part in parallel.to_saveable(parts).items()
    }
    position = {
      'examples_seen': examples_seen,
      'process_count': jax.process_count(),
      'fingerprint': fingerprint,
      'spent': spent or {},
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **parts,
        config=ocp.args.JsonSave(config),
        data=ocp.args.JsonSave(position),
      ),
      metrics=metrics or {},
    )

  def find(self, which: str) -> int:
    """Returns the step of a checkpoint: 'newest', 'best' by BEST_METRIC, or its number.

    Raises:
      UserError: there is none.
    """
    steps = self.steps()
    names = {str(step): step for step in steps}
    if steps:
      names = {'newest': steps[-1], **names}
    if which not in names:  # The metrics are in files of their own.
      measured = {step: _best(self._manager.metrics(step) or {}) for step in steps}
      best = max(measured, key=measured.__getitem__, default=None)
      if best is not None and measured[best] > -math.inf:
        names = {'best': best, **names}
    if which not in names:
      raise errors.UserError(
        f'no checkpoint {which!r} in {self._manager.directory}; allowed: '
        f'{", ".join(names) or "a directory with checkpoints"}'
      )
    return names[which]

  def describe(self, step: int) -> tuple[dict, tuple[str, ...]]:
    """Returns the config of a checkpoint and the names of its branches.

    Raises:
      UserError: it is damaged.
    """
    self.check_items(step, ())
    try:
      norms = self._manager.item_metadata(step)['model']['norms']
      args = ocp.args.Composite(config=ocp.args.JsonRestore())
      config = self._manager.restore(step, args=args)['config']
    except (KeyError, TypeError, ValueError, OSError) as e:
      raise self._unreadable(step) from e
    return config, tuple(sorted(norms, key=lambda name: (name != branches.CLEAN, name)))

  def wait_until_finished(self):
    """Waits for the saves under way."""
    self._manager.wait_until_finished()

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
        message names a leaf; or it is damaged, or of an older format.
    """
    self.check_items(step, templates)
    sharding = parallel.replicated_sharding()
    try:
      metadata = self._manager.item_metadata(step)
      saved = {item: metadata[item] for item in templates}
      if any(part is None for part in saved.values()):
        raise KeyError('no metadata')
    except (KeyError, ValueError, OSError) as e:
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
    except (KeyError, ValueError, OSError) as e:
      raise self._unreadable(step) from e
    logging.info('restored %s of %s', ', '.join(templates), self._path(step))
    arrays = parallel.to_host_local({item: restored[item] for item in templates})
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

  def _path(self, step: int) -> epath.Path:
    return epath.Path(self._manager.directory) / str(step)

  def _unreadable(self, step: int) -> errors.UserError:
    others = [s for s in self.steps() if s != step]
    return errors.UserError(
      f'the checkpoint {self._path(step)} is damaged; allowed: a whole one; move it '
      f'away to go on from step {others[-1] if others else 0}'
    )


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
