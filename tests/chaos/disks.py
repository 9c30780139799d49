"""Takes the disk of a run away: it is full, or read-only, or the workdir is deleted.

A full disk is a small file system of its own (tmpfs), which root may mount; others get
a limit on the size of files, at which writing fails, too. Read-only is by the modes of
all directories; for root, in a process that has given up the right to ignore modes.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import stat
import subprocess

from tests.chaos import program, state
from tests.chaos import runs as runs_lib
from tests.chaos.figure import Fault

FULL, READ_ONLY, DELETED = 'full', 'read-only', 'deleted'
KINDS = (FULL, READ_ONLY, DELETED)
_SIZE = 2**24  # Of the small file system, in bytes: a run needs a quarter.
# What a run prints is less, the arrays of a checkpoint are more.
_LIMIT = 2**15
_CAPABILITY_VERSION = 0x20080522  # Source: linux/capability.h, version 3.
_IGNORES_MODES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.


class DiskChain(runs_lib.Chain):
  """Runs whose workdir is on a small file system, where that is allowed."""

  def __init__(self, runs, name: str):
    super().__init__(runs, name)
    self._disk = self.folder / 'disk'
    self._disk.mkdir()
    self.workdir = self._disk / 'run'
    options = f'size={_SIZE},mode=0755'
    command = ['mount', '-t', 'tmpfs', '-o', options, 'chaos', str(self._disk)]
    with contextlib.suppress(OSError):  # There is no such command.
      subprocess.run(command, capture_output=True)
    self.is_small = os.path.ismount(self._disk)

  def start(self, module: str = 'tests.chaos.disks') -> runs_lib.Run:
    return super().start(module)

  def keep(self):
    if self.workdir.exists():
      shutil.copytree(self.workdir, self.folder / 'run')
    self._unmount()

  def remove(self):
    self._unmount()
    super().remove()

  def _unmount(self):
    if os.path.ismount(self._disk):
      subprocess.run(['umount', '-l', str(self._disk)], check=True)


def take_disk(chain, run, rng, number):
  """Takes the disk away when some steps are made; later, the run has it back."""
  runs = chain.runs
  first = max([runs.save_steps, *state.steps(chain.workdir)]) + 1
  last = runs.num_steps - 1
  step = rng.randrange(min(first, last), last + 1)
  if not run.waits_for(f'[{step}] '):
    return None
  return take(chain, run, KINDS[number % len(KINDS)])


def take(chain, run, kind: str) -> Fault | None:
  """Takes the disk away now."""
  before = state.steps(chain.workdir)
  phase = run.phase()
  if phase == 'the end':
    return None
  give_back = _TAKE[kind](chain, run)
  try:
    (code,) = run.wait()
  finally:
    give_back()
  text = run.text()
  if code == 0 and kind != DELETED and 'finished ' in text:
    return None  # It was over.
  problems = []
  if 'Traceback' in text:
    problems.append('a traceback')
  if code != 1:
    problems.append(f'ended with {code}, not 1')
  count = sum(x.startswith('error: ') for x in text.splitlines())
  if count != 1:
    problems.append(f"{count} lines 'error: ...', not 1")
  if kind != DELETED:
    problems += _problems_of_checkpoints(chain.workdir, before)
  told = f'{"; ".join(problems)}\n{run.tail()}' if problems else None
  return Fault(f'{kind} in the {phase}', told)


def _problems_of_checkpoints(workdir, before: list[int]) -> list[str]:
  """Returns what is wrong with the checkpoints that there are."""
  steps = state.steps(workdir)
  if before and (not steps or steps[-1] < before[-1]):
    return [f'there were checkpoints {before}, and there are {steps}']
  damaged = {x: state.damaged_files(workdir / 'checkpoints' / str(x)) for x in steps}
  return [
    f'checkpoint {x} is not whole: {names}' for x, names in damaged.items() if names
  ]


def _fill(chain, run):
  """Fills the small file system; returns what gives the room back."""
  if not chain.is_small:
    (child,) = run.children
    limits = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (_LIMIT, limits[1]))
    return lambda: None
  ballast = chain.workdir.with_name('ballast')
  with ballast.open('wb', buffering=0) as file:
    for size in (2**20, 2**12):
      try:
        while file.write(bytes(size)):
          pass
      except OSError:  # As it should be.
        continue
  return ballast.unlink


def _forbid(chain, run):
  """Makes all files and directories read-only; returns what ends that."""
  changed = {}
  for path in [chain.workdir, *chain.workdir.rglob('*')]:
    try:
      changed[path] = stat.S_IMODE(path.stat().st_mode)
      path.chmod(changed[path] & ~0o222)
    except FileNotFoundError:  # Of a save, and renamed by now.
      changed.pop(path, None)

  def allow():
    for path, mode in changed.items():
      with contextlib.suppress(FileNotFoundError):
        path.chmod(mode)

  return allow


def _delete(chain, run):
  gone = chain.workdir.with_name('gone')
  chain.workdir.rename(gone)  # At once: while files are deleted, new ones come.
  return lambda: shutil.rmtree(gone)


_TAKE = {FULL: _fill, READ_ONLY: _forbid, DELETED: _delete}


def run(words: list[str]):
  """The program, for which modes hold even if root starts it."""
  libc = ctypes.CDLL(None, use_errno=True)
  header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
  sets = (ctypes.c_uint32 * 6)()  # Effective, permitted, inheritable; twice.
  if libc.capget(header, sets) == 0:
    sets[0] &= ~_IGNORES_MODES
    libc.capset(header, sets)
  program.run(words)
