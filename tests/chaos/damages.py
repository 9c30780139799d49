"""Damages to a checkpoint's files, and what a training that begins makes of them.

A program of the zygote: it does for every damage what `train.py` does until it has a
state, in this one process, and prints a line of JSON.
"""

import json
import pathlib
import random
import shutil
import time
import traceback
from typing import NamedTuple

from tests.chaos import program, state

CUT, EMPTIED, DELETED = 'cut to half', 'emptied', 'deleted'
# Outcomes; all others are failures.
FELL_BACK = 'fell back to the one before'
HARMLESS = 'harmless'
_RESTORE_EVERY = 50  # Of those that fall back: their arrays are always the same ones.
_HANG_SECS = 120.0


class Damage(NamedTuple):
  """What is done to one file of a checkpoint."""

  file: str
  what: str  # CUT, EMPTIED, DELETED, or '' for a bit that is flipped.
  offset: int = 0
  bit: int = 0

  def do(self, path: pathlib.Path):
    """Does it to the file of this checkpoint."""
    file = path / self.file
    if self.what == DELETED:
      file.unlink()
      return
    content = bytearray(file.read_bytes())
    if self.what:
      content = content[: len(content) // 2 if self.what == CUT else 0]
    else:
      content[self.offset] ^= 1 << self.bit
    file.write_bytes(content)

  def __str__(self):
    return f'{self.file} {self.what or f"byte {self.offset}, bit {self.bit}"}'


def flips(path: pathlib.Path, count: int, seed: int) -> list[Damage]:
  """Returns bits of all files of a checkpoint, each as likely as any other."""
  sizes = {str(x.relative_to(path)): x.stat().st_size for x in _files(path)}
  rng = random.Random(f'{seed} flips')
  files = rng.choices([*sizes], [*sizes.values()], k=count)
  return [Damage(x, '', rng.randrange(sizes[x]), rng.randrange(8)) for x in files]


def of_every_file(path: pathlib.Path, kinds=(CUT, EMPTIED, DELETED)) -> list[Damage]:
  """Returns all damages of these kinds."""
  return [
    Damage(str(x.relative_to(path)), what) for x in _files(path) for what in kinds
  ]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(x for x in path.rglob('*') if x.is_file())


class Training:
  """The begin of a training, up to its state."""

  def __init__(self, words: list[str]):
    """Builds the experiment once; `words` is the command line."""
    import main
    from advprop_jax import experiment, model_config, schema

    model_config.create_model = program.create_model
    main.parse_flags(['main.py', *words])
    config = schema.read(main.FLAGS.config)
    self._experiment = experiment.create_experiment(config)
    dataset = self._experiment.dataset
    self._fingerprint = dataset.fingerprint(config.data.train_split)

  def begin(self, workdir: pathlib.Path, *, restored: bool) -> tuple[int, dict]:
    """Does what `train.py` does; returns the step and all that was restored.

    Args:
      workdir: of a run.
      restored: False: only the step, if it is not the newest there was.
    """
    from advprop_jax import run_start
    from advprop_jax.workdir import checkpoint, integrity

    newest = state.steps(workdir)[-1]
    run_start.check_trained(str(workdir))
    whole = integrity.set_damaged_aside(str(workdir))
    run_start.with_trained_classes(self._experiment.config, str(workdir))
    if not restored and whole and state.steps(workdir)[-1] == whole[-1] != newest:
      return whole[-1], {}
    with checkpoint.Checkpointer(
      workdir / 'checkpoints', keep_last=2, whole=whole
    ) as checkpointer:
      start = run_start.restore_or_create(
        self._experiment, checkpointer, self._fingerprint, None
      )
      config, names = checkpointer.describe(start.step)
      metrics = checkpointer._manager.metrics(start.step)
    found = state.digests(start.state.parts)
    told = start._replace(state=None)._asdict()
    return start.step, found | {
      'start': told,
      'config': config,
      'branches': names,
      'metrics': metrics,
    }


class Trials:
  """Tries one damage after the other, each on a fresh copy."""

  def __init__(self, training: Training, source: pathlib.Path, folder: pathlib.Path):
    """Takes the checkpoints of `source`, and their values as they are."""
    self._training, self._source = training, source / 'checkpoints'
    self._folder, self._num_back = folder, 0
    self.newest, self._before = (self._source / str(x) for x in _last_two(source))
    self._values: dict[int, dict] = {}
    for path in (self.newest, self._before):
      (alone := folder / 'alone' / 'checkpoints').mkdir(parents=True)
      shutil.copytree(path, alone / path.name)
      step, values = training.begin(alone.parent, restored=True)
      assert step == int(path.name)
      arrays = state.arrays(path)
      if differing := [x for x in arrays if values.get(x) != arrays[x]]:
        raise AssertionError(f'without damage, {differing} are not as they were saved')
      self._values[step] = values
      shutil.rmtree(alone.parent)
    self.workdir = folder / 'damaged'
    self._copy(self._before)

  def _copy(self, path: pathlib.Path):
    target = self.workdir / 'checkpoints' / path.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(path, target)

  def __call__(self, damage: Damage, log: list[str]) -> str:
    """Returns the outcome; the damaged workdir stays until the next call.

    Args:
      damage: to the newest checkpoint.
      log: what is logged meanwhile is appended to it.
    """
    shutil.rmtree(self.workdir / 'damaged', ignore_errors=True)
    self._copy(self.newest)
    damage.do(self.workdir / 'checkpoints' / self.newest.name)
    try:
      step, values = self._training.begin(
        self.workdir, restored=self._num_back % _RESTORE_EVERY == 0
      )
    except Exception as e:
      self._copy(self._before)
      return f'{type(e).__name__}: {e}\n{traceback.format_exc()}'
    if values and values != self._values[step]:
      changed = [x for x in values if values[x] != self._values[step].get(x)]
      return f'SILENT: {", ".join(changed)} of step {step} are not as they were saved'
    if step == int(self.newest.name):
      return HARMLESS
    self._num_back += 1
    name = f'step {self.newest.name} is damaged ({damage.file}: '
    if not any(name in line for line in log):
      return f'fell back, and no line of the log has {name!r}'
    return FELL_BACK


def _last_two(workdir: pathlib.Path) -> list[int]:
  return state.steps(workdir)[:-3:-1]


def run(words: list[str]):
  """Tries damages; prints each outcome.

  Args:
    words: JSON: 'source', a workdir with two checkpoints; 'folder', a new one; 'words',
      the command line of the run; 'flips', how many; 'seed'; and 'kinds' of damages.
  """
  import logging

  job = json.loads(words[0])
  folder, source = pathlib.Path(job['folder']), pathlib.Path(job['source'])
  trials = Trials(Training(job['words']), source, folder)
  log: list[str] = []
  handler = logging.Handler()
  handler.emit = lambda record: log.append(record.getMessage())
  logging.getLogger('absl').addHandler(handler)
  todo = flips(trials.newest, job['flips'], job['seed'])
  todo += of_every_file(trials.newest, job['kinds'])
  for i, damage in enumerate(todo):
    log.clear()
    outcome = trials(damage, log)
    if outcome not in (FELL_BACK, HARMLESS):
      shutil.copytree(trials.workdir, folder / f'failed_{i}')
      outcome = f'{damage}: {outcome}\n  kept in {folder / f"failed_{i}"}'
    kind = damage.what or 'flip'
    print(f'case {json.dumps({"kind": kind, "outcome": outcome})}', flush=True)


def try_all(figure, starter, run_words, source, folder, *, flips, kinds, seed):
  """Has damages tried by a process of their own, and counts them.

  Args:
    figure: to add to.
    starter: a zygote.
    run_words: the command line of the run.
    source: its workdir.
    folder: new and empty.
    flips: how many bits to flip, one at a time.
    kinds: of damages to every file.
    seed: of all chance.
  """
  job = {'source': str(source), 'folder': str(folder / 'trials'), 'words': run_words}
  job |= {'flips': flips, 'kinds': kinds, 'seed': seed}
  output = folder / 'output.txt'
  child = starter.start([json.dumps(job)], output, module='tests.chaos.damages')
  num_read, changed = 0, time.monotonic()
  is_running = True
  while is_running:
    is_running = child.poll() is None
    lines = output.read_bytes().split(b'\n')[:-1] if output.exists() else []
    for line in lines[num_read:]:
      if line.startswith(b'case '):
        case = json.loads(line[5:])
        is_good = case['outcome'] in (FELL_BACK, HARMLESS)
        what = f'{case["kind"]}: {case["outcome"] if is_good else "failed"}'
        figure.add(what, None if is_good else f'{case["outcome"]}\n  --seed={seed}')
    if len(lines) > num_read:
      num_read, changed = len(lines), time.monotonic()
    elif time.monotonic() - changed > _HANG_SECS:
      child.send(9)
    time.sleep(0.05)
  if code := child.poll():
    text = '\n'.join(output.read_text(errors='replace').splitlines()[-15:])
    figure.failures.append(f'{figure.name}: the process ended with {code}:\n{text}')
