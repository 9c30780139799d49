"""Checkpoints: the whole state, the config and the data position, through Orbax.

A checkpoint is `<directory>/<step>/` with the items

  state    the `TrainState`; arrays are whole, so any number of devices restores them
  config   the resolved config, JSON
  data     {'examples_seen': N, 'process_count': P}: with the seed they determine every
           batch to come
  metrics  those of an evaluation at that very step; empty if there was none
"""

import json
import math
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from advprop_jax import errors, parallel
from advprop_jax.workdir import directory

BEST_METRIC = 'val/clean_top1'


def _best(metrics) -> float:
  return metrics.get(BEST_METRIC, -math.inf)


class Checkpointer:
  """Saves and restores the checkpoints of one directory; a context manager.

  Keeps the newest `keep_last` and the one with the highest BEST_METRIC. Saving is
  asynchronous; leaving the context waits for it.
  """

  def __init__(self, directory, *, keep_last: int = 1, read_only: bool = False):
    """Opens a directory, a path or str; makes it, and drops what a killed save left."""
    policies = ocp.checkpoint_managers
    self._manager = ocp.CheckpointManager(
      epath.Path(directory),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
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

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps there are checkpoints of, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state, *, config: dict, examples_seen: int, metrics=None):
    """Saves in the background; the state may be donated as soon as this returns."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(parallel.to_saveable(state)),
        config=ocp.args.JsonSave(config),
        data=ocp.args.JsonSave(
          {'examples_seen': examples_seen, 'process_count': jax.process_count()}
        ),
      ),
      metrics=metrics or {},
    )

  def wait_until_finished(self):
    """Waits for the saves under way."""
    self._manager.wait_until_finished()

  def restore(self, step: int, template) -> tuple[Any, dict, dict]:
    """Returns (state, config, data) of a checkpoint; see the items above.

    Args:
      step: one of `steps()`.
      template: a state of the expected structure, shapes and types; its values are not
        read.

    Raises:
      UserError: the checkpoint is of another model; the message names a leaf.
    """
    try:
      saved = self._manager.item_metadata(step)['state']
    except (KeyError, ValueError, OSError) as e:
      raise self._unreadable(step) from e
    _check_same_leaves(saved, template, f'{self._manager.directory}/{step}')
    sharding = parallel.replicated_sharding()
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template
    )
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          config=ocp.args.JsonRestore(),
          data=ocp.args.JsonRestore(),
        ),
      )
    except (KeyError, ValueError, OSError) as e:
      raise self._unreadable(step) from e
    logging.info('restored %s/%d', self._manager.directory, step)
    state = parallel.to_host_local(restored['state'])
    return state, restored['config'], restored['data']

  def _unreadable(self, step: int) -> errors.UserError:
    others = [s for s in self.steps() if s != step]
    return errors.UserError(
      f'the checkpoint {self._manager.directory}/{step} is damaged; allowed: a whole '
      f'one; move it away to go on from step {others[-1] if others else 0}'
    )


def warn_of_changes(saved: dict, config: dict):
  """Logs every value of a config that was another one when a checkpoint was saved."""
  old = directory.flatten(saved)
  new = directory.flatten(json.loads(json.dumps(config)))
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) != new.get(key):
      logging.warning(
        'config.%s was %s before and is %s now', key, old.get(key), new.get(key)
      )


def _leaf_shapes(tree) -> dict[str, tuple[int, ...]]:
  """Returns {'params/stem_conv/kernel': shape, ...}, without the key of the run."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
    for path, leaf in leaves
    # Orbax describes a typed key by the raw words under it.
    if path[0] not in (jax.tree_util.GetAttrKey('rng'), jax.tree_util.DictKey('rng'))
  }


def _check_same_leaves(saved, template, where: str):
  saved, expected = _leaf_shapes(saved), _leaf_shapes(template)
  for name in [*expected, *saved]:
    if saved.get(name) != expected.get(name):
      raise errors.UserError(
        f'the checkpoint {where} is of another model: {name} is '
        f'{saved.get(name, "absent")} there and {expected.get(name, "absent")} in this '
        'config; allowed: the --config and values it was trained with (they are listed '
        "in the workdir's config.json), or another --workdir"
      )
