"""Whole checkpoints: sealed as they are saved, and set aside where they are damaged.

  python -m advprop_jax.workdir.integrity WORKDIR

says of every checkpoint of a workdir whether it is whole, and which file is not.
"""

import argparse
import asyncio
import errno
import json
import os
import sys
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from advprop_jax import errors, hosts
from advprop_jax.workdir import checksums, directory

DAMAGED = 'damaged'  # Directory of a workdir for checkpoints that are set aside.


def temporary_path_class(path: epath.Path):
  """Returns Orbax's kind of unfinished directory, with checksums added.

  Args:
    path: directory of the checkpoints.
  """
  base: Any = ocp.path.atomicity_defaults.get_default_temporary_path_class(path)

  class SealedPath(base):
    """Writes the checksums when all else is written, before the save counts."""

    _checkpoint_metadata_store: Any
    _created: int | None = None

    async def create(self):
      # Orbax would make it anew, without what was in the workdir.
      if '://' not in os.fspath(path) and not os.path.isdir(path):
        raise FileNotFoundError(errno.ENOENT, 'deleted', str(path))
      created = await super().create()
      self._created = _inode(created)
      return created

    async def finalize(self):
      # TensorStore makes a directory anew that was deleted, and some files are missing.
      if self._created != _inode(self.get()):
        raise FileNotFoundError(errno.ENOENT, 'deleted', str(self.get()))
      if self.get_final().parent != path:  # An item: a directory of the checkpoint.
        await super().finalize()
        return
      # Orbax would write the time of the end to a file that has a checksum.
      store, self._checkpoint_metadata_store = self._checkpoint_metadata_store, None
      unfinished = self.get()
      if store is not None:
        await asyncio.to_thread(store.wait_until_finished)
        await asyncio.to_thread(
          store.update,
          file_path=unfinished / '_CHECKPOINT_METADATA',
          commit_timestamp_nsecs=time.time_ns(),
        )
        await asyncio.to_thread(store.wait_until_finished)
      await asyncio.to_thread(checksums.seal, unfinished)
      await super().finalize()

  return SealedPath


def _inode(path: epath.Path) -> int | None:
  """Returns the number that a file system has given to a directory; None: a bucket."""
  return None if '://' in os.fspath(path) else os.stat(path).st_ino


def set_damaged_aside(workdir: str) -> tuple[int, ...]:
  """Makes the newest checkpoint of a workdir one that is whole; returns its step.

  Newer ones are moved to the directory DAMAGED beside `checkpoints/`, and so is every
  one of which an evaluation's metrics are damaged, since Orbax reads them of all. All
  hosts have to call.

  Returns:
    The step that was compared and is whole; none, if there are no checkpoints.

  Raises:
    UserError: no checkpoint is whole; all stay where they are.
  """
  # A network file system may show hosts other files: the first host's list counts.
  listed = hosts.texts_of_hosts(json.dumps(directory.saved_steps(workdir)))
  steps = json.loads(listed[0])
  checkpoints = epath.Path(workdir).expanduser() / 'checkpoints'
  damaged: dict[int, str] = {}
  whole = None
  for step in reversed(steps):
    path = checkpoints / str(step)
    report = checksums.check(
      path,
      items=None if whole is None else ('metrics',),
      part=jax.process_index(),
      num_parts=jax.process_count(),
    )
    problems = hosts.texts_of_hosts(''.join(report.problems[:1]))
    if any(problems):
      damaged[step] = next(filter(None, problems))
    elif whole is None:
      whole = step
      if not report.has_checksums:
        logging.warning('%s has no checksums: nothing was compared', path)
  if whole is None and steps:
    raise none_whole(checkpoints, damaged)
  for step, problem in sorted(damaged.items()):
    set_aside(checkpoints / str(step), problem, instead=whole)
  return () if whole is None else (whole,)


def set_aside(path: epath.Path, problem: str, *, instead: int | None):
  """Moves a damaged checkpoint out of the way, and says so.

  Args:
    path: of the checkpoint.
    problem: what is wrong with it.
    instead: the step that is gone on from.
  """
  target = path.parent.parent / DAMAGED / path.name
  if jax.process_index() == 0:
    try:
      target.parent.mkdir(parents=True, exist_ok=True)
      count = 0
      while target.exists():
        count += 1
        target = target.with_name(f'{path.name}_{count}')
      path.rename(target)
    except OSError as e:
      raise errors.UserError(
        f'the checkpoint {path} is damaged ({problem}) and cannot be moved to '
        f'{target.parent}: {e.strerror or e}; allowed: a directory that you may '
        'create files in'
      ) from e
  hosts.wait_for_hosts('checkpoint set aside')
  logging.warning(
    'the checkpoint of step %s is damaged (%s): it is kept as %s, and that of step %s '
    'is used',
    *(path.name, problem, target, instead),
  )


def none_whole(checkpoints: epath.Path, damaged: dict[int, str]) -> errors.UserError:
  """Returns the error that says of every checkpoint what is wrong with it."""
  problems = '; '.join(f'step {step}: {x}' for step, x in sorted(damaged.items()))
  return errors.UserError(
    f'no checkpoint in {checkpoints} is whole: {problems}; allowed: another --workdir, '
    'or an empty one to begin anew'
  )


def main(arguments: list[str] | None = None) -> int:
  """Compares all checkpoints of a workdir and of its phases.

  Returns:
    The exit code: 0 if all were compared and are whole, 1 otherwise.
  """
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.workdir.integrity',
    description='Compares the files of all checkpoints with their checksums.',
  )
  parser.add_argument('workdir', help='the --workdir of a training')
  workdir = parser.parse_args(arguments).workdir
  try:
    paths = _checkpoints(workdir)
  except (errors.UserError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 1
  return 0 if all([_print_report(path) for path in paths]) else 1


def _checkpoints(workdir: str) -> list[epath.Path]:
  """Returns the checkpoints of a workdir and of its phases; UserError if none."""
  path = epath.Path(workdir).expanduser()
  inside = directory.names(path)
  # Also those whose config.json is lost.
  runs = [path, *sorted(path / x for x in inside if x.startswith('phase_'))]
  steps = [(run, x) for run in runs for x in directory.saved_steps(os.fspath(run))]
  if steps:
    return [run / f'checkpoints/{step}' for run, step in steps]
  near = [x for x in (*[*path.parents][:2], *(path / x for x in inside)) if _is_run(x)]
  hint = f', as {", ".join(sorted(map(str, near))[:5])}' if near else ''
  raise errors.UserError(
    f'{workdir} has no checkpoints; allowed: a --workdir that was trained in{hint}'
  )


def _is_run(path: epath.Path) -> bool:
  """Returns whether a directory has checkpoints, as far as they can be read."""
  try:
    return bool(directory.saved_steps(os.fspath(path)))
  except errors.UserError:
    return False


def _print_report(path: epath.Path) -> bool:
  """Prints what is found of a checkpoint; returns whether it is known to be whole."""
  start = time.monotonic()
  try:
    report = checksums.check(path)
  except (errors.UserError, OSError) as e:
    print(f'{path}: not compared: {e}')
    return False
  secs = time.monotonic() - start
  size = f'{report.num_files} files, {report.num_bytes / 1e6:.1f} MB, {secs:.2f} s'
  if report.problems:
    print(f'{path}: damaged, {size}')
    for problem in report.problems:
      print(f'  {problem}')
    return False
  if not report.has_checksums:
    print(f'{path}: not compared: no {checksums.FILE} (an older version, or deleted)')
    return False
  print(f'{path}: whole, {size}')
  return True


if __name__ == '__main__':
  sys.exit(main())
