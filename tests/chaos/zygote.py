"""Starts `program.py` again and again from a process that has imported everything.

Imports take as long as the run. What is forked has no threads and no backend of JAX.
"""

import contextlib
import gc
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = 'tests.chaos.program'
# Of a job that the tests themselves may run in: programs are to be alone without it.
_CLUSTERS = ('SLURM_', 'OMPI_', 'TPU_', 'KUBERNETES_', 'JOB_COMPLETION_')


class Zygote:
  """Starts programs; a context manager."""

  def __init__(self, cache, **env: str):
    """Imports everything, in a process of its own.

    Args:
      cache: directory for what JAX compiles.
      **env: added to its environment.
    """
    outer = {k: x for k, x in os.environ.items() if not k.startswith(_CLUSTERS)}
    env = {
      **outer,
      **env,
      'PYTHONPATH': str(ROOT),
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'TF_ENABLE_ONEDNN_OPTS': '0',
      'OPENBLAS_NUM_THREADS': '1',
    }
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'tests.chaos.zygote'],
      cwd=ROOT,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._lock = threading.Lock()

  def start(self, words, output, *, module: str = PROGRAM, **env: str) -> 'Child':
    """Starts a program.

    Args:
      words: its arguments.
      output: file for what it prints.
      module: whose function `run` the program is.
      **env: added to its environment.
    """
    pathlib.Path(output).touch()  # To be read from here.
    job = {'start': [*map(str, words)], 'output': str(output), 'module': module}
    return Child(self, self._ask(**job, env=env))

  def _ask(self, **job):
    with self._lock:
      self._process.stdin.write(json.dumps(job) + '\n')
      self._process.stdin.flush()
      if not (answer := self._process.stdout.readline()):
        raise RuntimeError(f'the zygote has ended: {self._process.wait()}')
      return json.loads(answer)

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


class Child:
  """A program that was started."""

  def __init__(self, zygote: Zygote, pid: int):
    self._zygote, self.pid = zygote, pid
    self._code: int | None = None

  def poll(self) -> int | None:
    """Returns the exit code, negative of a signal; None: it runs."""
    if self._code is None:
      self._code = self._zygote._ask(poll=self.pid)
    return self._code

  def wait(self, timeout_secs: float = 120.0) -> int:
    """Returns the exit code; kills the program when the time is over."""
    end = time.monotonic() + timeout_secs
    while self.poll() is None:
      if time.monotonic() > end:
        self.send(signal.SIGKILL)
        raise TimeoutError(f'process {self.pid} did not end in {timeout_secs} s')
      time.sleep(0.01)
    return self._code

  def send(self, number: int):
    """Sends a signal, if the program runs."""
    if self._code is not None:
      return  # Its number may be another process's by now.
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)


def serve():
  """Answers jobs, one a line; what still runs in the end is killed."""
  import main  # noqa: F401
  from advprop_jax.workdir import checkpoint  # noqa: F401
  from configs import digits_advprop  # noqa: F401
  from tests.chaos import program  # noqa: F401

  gc.freeze()  # What is imported stays: no copy has to look through it.
  # A signal that comes between the fork and `preemption.watch` waits for that.
  signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
  codes: dict[int, int | None] = {}  # None: it runs.
  answers = os.fdopen(os.dup(1), 'w')
  for line in sys.stdin:
    job = json.loads(line)
    if 'poll' in job:
      answer = codes[job['poll']]
      if answer is None:
        found, status = os.waitpid(job['poll'], os.WNOHANG)
        if found:
          answer = codes[found] = os.waitstatus_to_exitcode(status)
    else:
      answer = os.fork()
      if not answer:
        _become(**job)
      codes[answer] = None
    answers.write(json.dumps(answer) + '\n')
    answers.flush()
  for pid in [pid for pid, code in codes.items() if code is None]:
    os.kill(pid, signal.SIGKILL)


def _become(start, output, module, env):
  """Turns this process into the program, and ends with it."""
  os.environ.update(env)
  os.setsid()
  file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  for number in (1, 2):
    os.dup2(file, number)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  importlib.import_module(module).run(start)
  sys.exit()


if __name__ == '__main__':
  serve()
