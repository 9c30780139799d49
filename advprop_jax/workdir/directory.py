"""The directory of a run: that it can be written to, and its small files."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping

import jax
from etils import epath

from advprop_jax import errors, json_files
from advprop_jax.workdir import disk

# What a run writes: names of directories, and of files.
_DIRECTORIES = ('checkpoints', 'damaged', 'eval', 'pictures', 'tensorboard')
_FILES = ('config.json', 'config.json.new', 'results.jsonl', 'results.jsonl.new')


def default_workdir(config_flag: str) -> str:
  """Returns 'runs/b0_smoke' for 'configs/b0.py:smoke': no two configs share one.

  Of the config.json of a run it is the directory of that run.
  """
  if config_flag.endswith('.json'):
    return config_flag.rpartition('/')[0] or '.'
  file, _, argument = config_flag.partition(':')
  words = [pathlib.Path(file).stem, *argument.split(',')]
  return str(pathlib.Path('runs', '_'.join(word for word in words if word)))


def exists(workdir: str) -> bool:
  """Returns whether there is such a directory."""
  return epath.Path(workdir).expanduser().exists()


def open_workdir(workdir: str) -> epath.Path:
  """Returns the directory, made if need be.

  Raises:
    UserError: it cannot be written to, or something else has the name of what a run
      writes.
  """
  path = epath.Path(workdir).expanduser()
  with _said_of(path, '--workdir'):
    path.mkdir(parents=True, exist_ok=True)
    _check_names(path)
    _write_and_remove(path)
  return path.resolve()


def check_writable(workdir: epath.Path):
  """Raises UserError if a training could not write to directories that are there."""
  for path in (workdir / name for name in ('checkpoints', 'tensorboard')):
    if path.exists():
      with _said_of(path, '--workdir'):
        _write_and_remove(path)


def _write_and_remove(path: epath.Path):
  """Makes a file in a directory, and removes it; OSError if it cannot be made."""
  # Of this process alone: others may be at it, on other machines, too.
  probe = path / f'.write_test_{socket.gethostname()}_{os.getpid()}'
  probe.unlink(missing_ok=True)  # It may be a link to what is not ours.
  probe.write_text('')
  probe.unlink()


def _check_names(path: epath.Path):
  """Raises UserError if a run could not write its files, before it has made any."""
  if '://' in os.fspath(path):  # A bucket has neither links nor pipes.
    return
  for name in (*_DIRECTORIES, *_FILES):
    place = path / name
    is_right = os.path.isdir if name in _DIRECTORIES else os.path.isfile
    if os.path.lexists(place) and not is_right(place):
      kind = 'directory' if name in _DIRECTORIES else 'file'
      raise errors.UserError(
        f'{place} is no {kind}; allowed: what a run has written, or no such thing'
      )


def local(path: str, *, flag: str) -> pathlib.Path:
  """Returns the path of a local directory; UserError if it is an address.

  Args:
    path: what the user gave.
    flag: that it was given with, for the message.
  """
  if '://' in path:
    raise errors.UserError(
      f'{flag} {path} is no local directory; allowed: a local copy, or what will be one'
    )
  return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def new_directory(path: str, *, flag: str) -> Iterator[pathlib.Path]:
  """Yields a directory to write to, which becomes `path` when all has gone well.

  After an error nothing is left of it.

  Args:
    path: a local directory, which does not exist, or is empty.
    flag: that the user gave it with, for messages.

  Raises:
    UserError: there is something, or it cannot be written.
  """
  with _said_of(path, flag):
    final = local(path, flag=flag).resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
      raise errors.UserError(
        f'{flag} {path} exists; allowed: a directory that does not exist or is empty'
      )
    missing = [x for x in final.parents if not x.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(
      tempfile.mkdtemp(prefix=f'{final.name}.unfinished_', dir=final.parent)
    )
  try:
    yield unfinished
    with _said_of(path, flag):
      unfinished.chmod(usual_mode(0o777))  # Made for its owner alone.
      unfinished.replace(final)  # An empty directory is replaced, no other.
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
    if not final.exists():
      for parent in missing:
        with contextlib.suppress(OSError):  # Something else may be there by now.
          parent.rmdir()


def usual_mode(bits: int) -> int:
  """Returns the mode of a new file, of 0o666, or directory, 0o777, by the umask."""
  mask = os.umask(0)  # It can only be read by setting it.
  os.umask(mask)
  return bits & ~mask


@contextlib.contextmanager
def _said_of(path: str | epath.Path, flag: str):
  """Turns the errors of a file system into one that names the user's flag."""
  try:
    yield
  except OSError as e:
    raise errors.UserError(
      f'cannot write to {flag} {path}: {e.strerror or e}; allowed: a directory that '
      'you may create files in'
    ) from e


def sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, in hexadecimal digits.

  Of a directory that of a list: the sum and the name of every file in it, by name.
  """
  if not path.is_dir():
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  files = sorted(x for x in path.rglob('*') if x.is_file())
  lines = [f'{sha256(x)}  {x.relative_to(path)}\n' for x in files]
  return hashlib.sha256(''.join(lines).encode()).hexdigest()


def write_config(workdir: epath.Path, config: dict):
  """Writes every value of the config to `config.json`, on the first host."""
  if jax.process_index() == 0:
    # Replaced as a whole: evaluation reads it, also while a run begins.
    file = workdir / 'config.json'
    with disk.writing(file):
      disk.put(file, f'{json.dumps(config, indent=2)}\n'.encode())


def read_config(path) -> dict:
  """Returns what a run has written of its config, with lists in the place of tuples.

  Args:
    path: of a `config.json`.

  Raises:
    UserError: there is none, or it is no JSON object.
  """
  try:
    return json_files.read_object(epath.Path(path).expanduser())
  except FileNotFoundError as e:
    raise errors.UserError(
      f'there is no {path}; allowed: that of a --workdir that was trained in'
    ) from e
  except json_files.UnreadableError as e:
    raise errors.UserError(f'{path} {e}; allowed: a file as a run writes it') from e


def phase_workdir(workdir: str, index: int) -> str:
  """Returns the directory of a phase, 'runs/pilot/phase_0'; see `phases.py`."""
  return f'{workdir}/phase_{index}'


def last_run(workdir: str) -> str:
  """Returns the directory of the last phase with a checkpoint.

  Without phases it is the workdir itself; if none has a checkpoint, the first phase.
  """
  begun = begun_phases(workdir)
  with_checkpoint = [path for path in begun if saved_steps(path)]
  return [workdir, *begun[:1], *with_checkpoint][-1]


def begun_phases(workdir: str) -> list[str]:
  """Returns the directories of the phases that have begun, in order."""
  found = epath.Path(workdir).expanduser().glob('phase_*/config.json')
  indices = json_files.numbers(x.parent.name.removeprefix('phase_') for x in found)
  return [phase_workdir(workdir, i) for i in indices]


def saved_steps(workdir: str) -> list[int]:
  """Returns the steps of the checkpoints in a workdir, which need not exist.

  Raises:
    UserError: they cannot be listed.
  """
  return json_files.numbers(names(epath.Path(workdir).expanduser() / 'checkpoints'))


def names(path: epath.Path) -> list[str]:
  """Returns the names of what is in a directory; none, if there is no directory.

  Raises:
    UserError: it cannot be read.
  """
  is_local = '://' not in os.fspath(path)
  try:
    return os.listdir(path) if is_local else [x.name for x in path.glob('*')]
  except (FileNotFoundError, NotADirectoryError):
    return []
  except Exception as e:
    if is_local and not isinstance(e, OSError):
      raise
    # Of a bucket, clients of clouds raise their own.
    raise disk.cannot_read(path, e) from e


def describe_interruption(workdir: str) -> str:
  """Returns the line that says after Ctrl-C what is left of the run."""
  run = [workdir, *begun_phases(workdir)][-1]
  steps = saved_steps(run)
  what = 'it' if run == workdir else run.rpartition('/')[2]
  saved = f'resumes {what} from step {steps[-1]}' if steps else f'begins {what} anew'
  return f'interrupted; the same command {saved} (see {workdir})'


def flatten(config: Mapping, prefix: str = '') -> dict:
  """Returns {'data.batch_size': 64, ...}; what is neither number nor str as text."""
  flat: dict[str, bool | int | float | str] = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      plain = isinstance(value, bool | int | float | str)
      flat[f'{prefix}{key}'] = value if plain else str(value)
  return flat
