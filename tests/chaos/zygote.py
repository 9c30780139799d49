"""Starts `program.py` again and again from a process that has imported everything.

Imports take longer than the run. What is forked has no threads and no backend of JAX.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent.parent


class Zygote:
  """Starts programs; a context manager."""

  def __init__(self, cache):
    """Imports everything, in a process of its own.

    Args:
      cache: directory for what JAX compiles.
    """
    env = {
      **os.environ,
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

  def start(self, words, output, **env: str) -> 'Child':
    """Starts a program.

    Args:
      words: its arguments.
      output: file for what it prints.
      **env: added to its environment.
    """
    return Child(self, self._ask(start=[*map(str, words)], output=str(output), env=env))

  def _ask(self, **job):
    with self._lock:
      self._process.stdin.write(json.dumps(job) + '\n')
      self._process.stdin.flush()
      return json.loads(self._process.stdout.readline())

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._process.stdin.close()
    self._process.wait()


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
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)


def serve():
  """Answers jobs, one a line."""
  import main  # noqa: F401
  from advprop_jax.workdir import checkpoint  # noqa: F401
  from configs import digits_advprop  # noqa: F401
  from tests.chaos import program

  ended: dict[int, int] = {}
  answers = os.fdopen(os.dup(1), 'w')
  for line in sys.stdin:
    job = json.loads(line)
    if 'poll' in job:
      pid = job['poll']
      if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
          ended[pid] = os.waitstatus_to_exitcode(status)
      answer = ended.get(pid)
    else:
      answer = os.fork()
      if not answer:
        _become(program, **job)
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


def _become(program, start, output, env):
  """Turns this process into the program, which ends it."""
  os.environ.update(env)
  os.setsid()
  file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  for number in (1, 2):
    os.dup2(file, number)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  program.run(start)


if __name__ == '__main__':
  serve()
