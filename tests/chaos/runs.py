"""Runs that are started again and again on one workdir, and how they end."""

import hashlib
import json
import pathlib
import random
import shutil
import socket
import threading
import time

from tests.chaos import program, state, zygote

NUM_STEPS = 24
SAVE_STEPS = 3
# In the order in which a run prints them: what it is doing from there.
_PHASES = {
  'compiling the step': 'compilation',
  'compiled and made the first step': 'steps',
  'evaluating step': 'evaluation',
  'finished ': 'the end',
}


class Runs:
  """Starts runs, and knows how an uninterrupted one ends."""

  def __init__(
    self,
    starter: zygote.Zygote,
    folder: pathlib.Path,
    *,
    data_dir: pathlib.Path,
    num_processes: int = 1,
    num_steps: int = NUM_STEPS,
  ):
    """Starts nothing yet.

    Args:
      starter: of the programs.
      folder: for workdirs.
      data_dir: of the digits.
      num_processes: that make a run together.
      num_steps: of a run.
    """
    self.zygote, self.folder, self.num_processes = starter, folder, num_processes
    self.num_steps, self.save_steps, self._data_dir = num_steps, SAVE_STEPS, data_dir
    self.secs = 0.0  # Of an uninterrupted run.
    self.expected: dict = {}
    self._is_known = threading.Event()
    folder.mkdir(parents=True, exist_ok=True)

  def learn(self, chain: 'Chain', *, secs: float):
    """Takes the end of an uninterrupted run for what all others are to end as."""
    self.secs = secs
    self.expected = chain.end()
    self._is_known.set()

  def wait_until_known(self):
    """Waits until another thread has learned how an uninterrupted run ends."""
    if not self._is_known.wait(600):
      raise TimeoutError('no run without interruption has ended')

  def run_uninterrupted(self) -> 'Chain':
    """Runs twice, first with compilations, and takes the second one's time.

    Raises:
      RuntimeError: they end differently, so that nothing can be compared.
    """
    for i in range(2):
      chain = Chain(self, f'uninterrupted_{i}')
      run = chain.start()
      codes = run.wait(600)
      if any(codes):
        raise RuntimeError(f'an uninterrupted run ended with {codes}:\n{run.tail()}')
      if i and (problem := chain.difference()):
        raise RuntimeError(f'two uninterrupted runs differ: {problem}')
      self.learn(chain, secs=run.age())
    return chain

  def digest(self) -> str:
    """Returns the first digits of the SHA-256 of the expected end."""
    return hashlib.sha256(json.dumps(self.expected).encode()).hexdigest()[:12]

  def words(self, workdir) -> list[str]:
    """Returns the command line of a run."""
    return program.arguments(
      workdir,
      self._data_dir,
      num_steps=self.num_steps,
      save_steps=self.save_steps,
      log_every_steps=1,
    )


class Chain:
  """A workdir, and the runs on it, one after the other."""

  def __init__(self, runs: Runs, name: str):
    """Makes a folder of this name, for the workdir and what the runs print."""
    self.runs = runs
    self.folder = runs.folder / name
    self.workdir = self.folder / 'run'
    self._num_started = 0
    self.folder.mkdir()

  def start(self, module: str = zygote.PROGRAM) -> 'Run':
    """Starts the same command once more; `module`: the program, or a kind of it."""
    self._num_started += 1
    children, outputs = [], []
    started = time.monotonic()
    envs = _slurm(self.runs.num_processes)
    for i, env in enumerate(envs):
      outputs.append(self.folder / f'start_{self._num_started}_process_{i}.txt')
      words = self.runs.words(self.workdir)
      children.append(self.runs.zygote.start(words, outputs[-1], module=module, **env))
    return Run(children, outputs, started)

  def end(self) -> dict:
    """Returns the state of the newest checkpoint, and the results."""
    output = self.folder / 'state.txt'
    output.unlink(missing_ok=True)
    child = self.runs.zygote.start([self.workdir], output, module='tests.chaos.state')
    code = child.wait()
    text = output.read_text()
    if code:
      raise RuntimeError(f'the state of {self.workdir} cannot be read:\n{text}')
    found = json.loads(text.splitlines()[-1])
    return {**found, 'results.jsonl': state.results(self.workdir)}

  def difference(self) -> str | None:
    """Returns what is not as an uninterrupted run leaves it; None: nothing."""
    self.runs.wait_until_known()
    try:
      found = self.end()
    except (RuntimeError, OSError, ValueError) as e:
      return str(e)
    expected = self.runs.expected
    names = [x for x in {**expected, **found} if found.get(x) != expected.get(x)]
    return f'{", ".join(names)}: not as without interruption' if names else None

  def finish(self) -> str | None:
    """Runs to the end; returns what is not as an uninterrupted run leaves it."""
    run = self.start()
    try:
      codes = run.wait()
    except TimeoutError as e:
      return f'{e}:\n{run.tail()}'
    if any(codes):
      return f'started again, it ended with {codes}:\n{run.tail()}'
    return self.difference()

  def keep(self):
    """Leaves all of it to be looked at."""

  def remove(self):
    """Removes all of it."""
    shutil.rmtree(self.folder)


class Run:
  """The processes of one start."""

  def __init__(self, children, outputs, started: float):
    """`started`: by the monotonic clock."""
    self.children, self._outputs, self._started = children, outputs, started

  def age(self) -> float:
    """Returns the seconds since the start."""
    return time.monotonic() - self._started

  def is_over(self) -> bool:
    """Returns whether one of the processes has ended."""
    return any([child.poll() is not None for child in self.children])

  def wait(self, timeout_secs: float = 120.0) -> list[int]:
    """Returns the exit codes; after the time all are killed."""
    try:
      return [child.wait(timeout_secs) for child in self.children]
    except TimeoutError:
      self.kill()
      raise

  def kill(self):
    """Kills all processes."""
    for child in self.children:
      child.send(9)

  def text(self, process: int = 0) -> str:
    """Returns what a process has printed."""
    return self._outputs[process].read_text(errors='replace')

  def tail(self) -> str:
    """Returns the last lines of all processes."""
    texts = [self.text(i).splitlines()[-15:] for i in range(len(self.children))]
    return '\n'.join(line for lines in texts for line in lines)

  def phase(self, process: int = 0) -> str:
    """Returns what a process is doing, by what it has printed."""
    text, found = self.text(process), 'set-up'
    for printed, name in _PHASES.items():
      if printed in text:
        found = name
    return found

  def lasts(self, secs: float) -> bool:
    """Waits; returns whether no process has ended until then."""
    end = time.monotonic() + secs
    while time.monotonic() < end:
      if self.is_over():
        return False
      time.sleep(min(0.01, max(0.0, end - time.monotonic())))
    return not self.is_over()

  def waits_for(self, printed: str, timeout_secs: float = 120.0) -> bool:
    """Waits until all have printed this; returns whether none has ended before."""
    end = time.monotonic() + timeout_secs
    while not all(printed in self.text(i) for i in range(len(self.children))):
      if self.is_over():
        return False
      if time.monotonic() > end:
        self.kill()
        raise TimeoutError(f'not printed in {timeout_secs} s: {printed}\n{self.tail()}')
      time.sleep(0.005)
    return True


def _slurm(num_processes: int) -> list[dict[str, str]]:
  """Returns the environment of each process, as Slurm sets it; one is alone."""
  if num_processes == 1:
    return [{}]
  job = {
    'SLURM_JOB_ID': str(_free_job()),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(num_processes),
    'SLURM_LOCALID': '0',
  }
  return [{**job, 'SLURM_PROCID': str(i)} for i in range(num_processes)]


def _free_job() -> int:
  """Returns the number of a job of which JAX makes a port that nobody has."""
  while True:
    job = random.randrange(4096)
    with socket.socket() as probe:
      try:
        probe.bind(('', 65535 - 4095 + job))  # Source: JAX's `SlurmCluster`.
        return job
      except OSError:
        continue
