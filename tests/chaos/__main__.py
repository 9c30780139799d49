"""Breaks runs and checkpoints off in every way, and counts how often all ends well.

  python -m tests.chaos --all                  # The figures of docs/reliability.md.
  python -m tests.chaos --kills=10 --flips=100

Prints a line a figure, `passed/tried` first; the exit code is 1 if one has not passed,
with what is needed to see it again, and its workdir is kept.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.chaos import damages, disks, faults, figure, runs, zygote

_PACKAGES = ('jax', 'flax', 'orbax-checkpoint', 'tensorstore')


class Tools(NamedTuple):
  """What a figure is made with."""

  seed: int
  jobs: int
  zygote: zygote.Zygote
  runs: Callable[[int], runs.Runs]  # Of a number of processes.
  uninterrupted: Callable[[int], pathlib.Path]  # Its workdir.


class Kind(NamedTuple):
  """A figure that can be asked for."""

  help: str
  default: int  # With --all.
  make: Callable[[Tools, int], figure.Figure]


def _injections(name: str, inject, *, num_processes: int = 1, **kwargs):
  """Returns what makes a figure of faults in runs."""

  def make(tools: Tools, total: int) -> figure.Figure:
    made = figure.Figure(name, total)
    jobs = tools.jobs if name == 'kills' else 1  # The others are of time, too.
    figure.inject_all(
      *(made, tools.runs(num_processes), inject), seed=tools.seed, jobs=jobs, **kwargs
    )
    return made

  return make


def _damages(name: str, kinds: tuple[str, ...]):
  """Returns what makes a figure of damaged files; without kinds, of flipped bits."""

  def make(tools: Tools, total: int) -> figure.Figure:
    source = tools.uninterrupted(1)
    path = source / 'checkpoints' / str(tools.runs(1).num_steps)
    num_flips = 0 if kinds else total
    made = figure.Figure(name, num_flips or len(damages.of_every_file(path, kinds)))
    folder = tools.runs(1).folder / name
    folder.mkdir()
    damages.try_all(
      *(made, tools.zygote, tools.runs(1).words(source), source, folder),
      flips=num_flips,
      kinds=kinds,
      seed=tools.seed,
    )
    return made

  return make


_ALL_DAMAGES = (damages.CUT, damages.EMPTIED, damages.DELETED)
KINDS: dict[str, Kind] = {
  'kills': Kind(
    'SIGKILLs to a run, then bit-identical', 100, _injections('kills', faults.kill)
  ),
  'flips': Kind('bits flipped in the newest checkpoint', 1000, _damages('flips', ())),
  'damages': Kind(
    'each file of the newest checkpoint cut to half, emptied, deleted',
    1,
    _damages('damages', _ALL_DAMAGES),
  ),
  'signals': Kind(
    'SIGTERMs to a run of one process', 50, _injections('signals', faults.terminate)
  ),
  'pairs': Kind(
    'SIGTERMs to one of two processes',
    50,
    _injections('pairs', faults.terminate_one, num_processes=2),
  ),
  'peers': Kind(
    'SIGKILLs to one of two processes',
    20,
    _injections('peers', faults.kill_one, num_processes=2),
  ),
  'disks': Kind(
    'disks that are full, read-only or gone',
    30,
    _injections('disks', disks.take_disk, new_chain=disks.DiskChain),
  ),
}


def machine() -> str:
  """Returns in a line what this ran on."""
  cpu = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  for line in info.read_text().splitlines() if info.exists() else ():
    if line.startswith('model name'):
      cpu = line.partition(':')[2].strip()
  versions = [f'{name} {importlib.metadata.version(name)}' for name in _PACKAGES]
  return ', '.join(
    [f'{cpu}, {os.cpu_count()} cores', f'{platform.system()} {platform.release()}']
    + [f'Python {platform.python_version()}', *versions]
  )


def main(arguments: list[str] | None = None) -> int:
  """Makes the figures that are asked for; returns the exit code."""
  args = _parse(arguments)
  totals = {k: getattr(args, k) or (args.all and x.default) for k, x in KINDS.items()}
  print(f'{machine()}; --seed={args.seed}', flush=True)
  folder = pathlib.Path(tempfile.mkdtemp(prefix='chaos_', dir=args.folder))
  (folder / 'tmp').mkdir()  # What killed processes leave.
  made = []
  try:
    with zygote.Zygote(folder / 'compilations', TMPDIR=str(folder / 'tmp')) as starter:
      tools = _create_tools(starter, folder, seed=args.seed, jobs=args.jobs)
      for name, total in totals.items():
        if total:
          made.append(KINDS[name].make(tools, int(total)))
          print(made[-1], *made[-1].failures, sep='\n', flush=True)
  finally:
    _unmount_all(folder)
  if all(one.is_perfect for one in made):
    shutil.rmtree(folder)
    return 0
  return 1


def _parse(arguments):
  parser = argparse.ArgumentParser(
    prog='python -m tests.chaos', description=__doc__.partition('\n')[0]
  )
  for name, kind in KINDS.items():
    if name == 'damages':
      parser.add_argument('--damages', action='store_true', help=kind.help)
    else:
      parser.add_argument(
        f'--{name}', type=_count, default=0, metavar='N', help=kind.help
      )
  parser.add_argument(
    '--all', action='store_true', help='all of them, as often as documented'
  )
  parser.add_argument('--seed', type=int, default=0, help='of all chance')
  parser.add_argument(
    '--jobs', type=_count, default=1, help='runs at a time, of --kills'
  )
  parser.add_argument('--folder', help='for the runs; default: that of temporary files')
  args = parser.parse_args(arguments)
  if not args.all and not any(getattr(args, name) for name in KINDS):
    parser.error('nothing to do; allowed: --all, or one of the figures')
  return args


def _count(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f'{text!r} is no whole number')
  return int(text)


def _create_tools(starter, folder: pathlib.Path, *, seed: int, jobs: int) -> Tools:
  """Returns the tools; runs without interruption are made when they are needed."""
  known: dict[int, Any] = {}

  def learn(num_processes: int):
    if num_processes not in known:
      made = runs.Runs(
        *(starter, folder / f'processes_{num_processes}'),
        data_dir=folder / 'data',
        num_processes=num_processes,
      )
      start = time.monotonic()
      chain = made.run_uninterrupted()
      print(
        f'{num_processes} process{"es" * (num_processes > 1)} without interruption: '
        f'{made.secs:.1f} s, 2 of 2 end with {made.digest()} '
        f'({time.monotonic() - start:.0f} s)',
        flush=True,
      )
      known[num_processes] = made, chain.workdir
    return known[num_processes]

  return Tools(seed, jobs, starter, lambda n: learn(n)[0], lambda n: learn(n)[1])


def _unmount_all(folder: pathlib.Path):
  """Unmounts the small file systems that an interruption has left."""
  mounts = pathlib.Path('/proc/mounts')
  for line in mounts.read_text().splitlines() if mounts.exists() else ():
    if line.split()[1].startswith(f'{folder}/'):
      subprocess.run(['umount', '-l', line.split()[1]])


if __name__ == '__main__':
  sys.exit(main())
