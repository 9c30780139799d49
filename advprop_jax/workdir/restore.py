"""Checkpoints are read here: found, compared with their checksums, restored.

`checkpoint.py` says what they consist of.
"""

import errno
import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from advprop_jax import branches, errors, parallel
from advprop_jax.workdir import checksums, contents, disk, manager

# What a reader of the network needs: of a copy without `training` it is all there is.
_NETWORK = ('model', 'ema', 'config', 'data', 'metrics')


class DamagedError(errors.UserError):
  """Says that a checkpoint is damaged: another one may not be."""

  def __init__(self, path: epath.Path, problem: str, *, others: Iterable[int]):
    """Makes the message; `others` are the steps of the other checkpoints."""
    self.problem = problem
    names = ', '.join(map(str, others))
    super().__init__(
      f'the checkpoint {path} is damaged: {problem}; allowed: a whole one'
      + (f'; there are others, of steps {names}' if names else '')
    )


class Reader:
  """Reads the checkpoints of one directory, and changes nothing; a context manager."""

  def __init__(
    self,
    directory,
    *,
    flag: str = '--workdir',
    whole: Iterable[int] = (),
    open_manager: Callable[[epath.Path], manager.Manager] = manager.open_to_read,
  ):
    """Opens a directory.

    Args:
      directory: path or str.
      flag: the one that has named the directory, for messages.
      whole: steps of which all files have been compared, see `verify`.
      open_manager: one of `manager.py`.
    """
    self._flag = flag
    self._compared = {(step, item) for step in whole for item in manager.ITEMS}
    path = epath.Path(directory).expanduser().absolute()
    if path.exists() and not path.is_dir():
      raise errors.UserError(f'{path} is no directory; allowed: what a run has written')
    try:
      self._manager = open_manager(path)
    except OSError as e:
      raise disk.cannot_read(path, e) from e

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info):
    self._manager.close()

  @property
  def directory(self) -> epath.Path:
    """Returns the directory of the checkpoints."""
    return epath.Path(self._manager.directory)

  def steps(self) -> list[int]:
    """Returns the steps there are checkpoints of, oldest first."""
    return sorted(self._manager.all_steps())

  def find(self, which: str) -> int:
    """Returns the step of a checkpoint: 'newest', 'best', or its number.

    The best is the one by `manager.BEST_METRIC`. Of the newest and the best only those
    count whose network is whole; a warning names the others.

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
      return manager.metric(self._manager.metrics(step) or {})
    except DamagedError as e:
      logging.warning('%s', e)
      return -math.inf
    except errors.UserError:
      raise  # It cannot be read for now, and may be the best.
    except Exception as e:  # Orbax raises these, if there are no checksums.
      if disk.is_of_disk(e) and disk.number(e) != errno.ENOENT:
        raise disk.cannot_read(self._path(step) / 'metrics', e) from e
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
    report = checksums.check(self._path(step), items=todo)
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
    if problem := contents.problem_of_json(self._path(step)):
      raise self._damaged(step, problem)
    try:
      norms = self._manager.item_metadata(step)['model']['norms']
      args = ocp.args.Composite(config=ocp.args.JsonRestore())
      config = self._manager.restore(step, args=args)['config']
      branch_names = tuple(
        sorted(norms, key=lambda name: (name != branches.CLEAN, name))
      )
    except Exception as e:  # Orbax raises these.
      raise self._unreadable(step, e) from e
    contents.check_config(self._path(step), config, needs=('data', 'model'))
    return config, branch_names

  def is_evaluation_due(self, step: int, position: dict) -> bool:
    """Returns whether a checkpoint was saved before the evaluation of its step.

    Args:
      step: of the checkpoint.
      position: its item `data`.
    """
    # Older checkpoints do not say.
    return bool(position.get('evaluation_due')) and not self._manager.metrics(step)

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
    if problem := contents.problem_of_json(self._path(step)):
      raise self._damaged(step, problem)
    sharding = parallel.replicated_sharding()
    try:
      metadata = self._manager.item_metadata(step)
      saved = {item: metadata[item] for item in templates}
      if any(part is None for part in saved.values()):
        raise KeyError('no metadata')
    except Exception as e:  # Orbax raises these.
      raise self._unreadable(step, e) from e
    for item, template in templates.items():
      if change := contents.describe_change(saved[item], template):
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
      raise self._unreadable(step, e) from e
    contents.check_config(self._path(step), restored['config'])
    arrays = parallel.to_host_local({item: restored[item] for item in templates})
    if 'training' in templates and (
      problem := contents.problem_of_position(
        step, restored['config'], restored['data']
      )
    ):
      raise self._damaged(step, problem)
    if (leaf := contents.find_nonfinite(arrays)) is not None:
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
    contents.check_items(self._path(step), items, flag=self._flag)

  def _path(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _damaged(self, step: int, problem: str) -> DamagedError:
    others = [x for x in self.steps() if x != step]
    return DamagedError(self._path(step), problem, others=others)

  def _unreadable(self, step: int, e: Exception) -> errors.UserError:
    """Returns what to raise when Orbax cannot read a checkpoint: is it damaged?"""
    report = checksums.check(self._path(step))
    if not report.has_checksums or report.problems:
      return self._damaged(step, 'Orbax cannot read it')
    return errors.UserError(
      f'the checkpoint {self._path(step)} is whole, and Orbax cannot read it: '
      f'{disk.reason(e)}; allowed: the version of Orbax that has saved it, and files '
      'that can be read'
    )
