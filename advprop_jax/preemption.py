"""Signals that end a program: SIGTERM, of a machine that is taken away, and Ctrl-C.

A thread of its own waits for them: Python's handlers run between two lines of the main
thread, which are minutes apart when JAX compiles or waits for another host. Mostly the
program ends at once, since what is saved is whole. A training that has made steps since
its last checkpoint asks for time by `finishing`: the first signal is noted then, the
loop sees it by `hosts.reached_preemption` and saves, and a second one ends the
program at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A scheduler may signal a process and its group: what comes together is one signal.
_ONE_SIGNAL_SECS = 0.2
FINISHING = 'finishing the step and saving it; a second signal ends the run at once'
ENDED = 'ended without saving; the same command goes on from the last checkpoint'


class Preempted(Exception):
  """Says that a signal has stopped the work at a place where all hosts stop."""


class _Watch:
  """What the thread knows."""

  lock = threading.Lock()
  received: signal.Signals | None = None
  num_finishing = 0  # `with finishing()` that are open.
  describe: Callable[[], str] | None = None
  tell_hosts: Callable[[signal.Signals], None] | None = None
  relays = False
  is_done = False


def watch():
  """Starts to wait for signals, once; until `end_with` they end it without a word.

  Call it before other threads start: they inherit that the signals are blocked. So do
  programs that are started with `subprocess`; forked processes do not.
  """
  signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  unblock = lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # noqa: E731
  os.register_at_fork(after_in_child=unblock)
  threading.Thread(target=_wait, name='signals', daemon=True).start()


def end_with(describe: Callable[[], str]):
  """Sets what returns the line to print when a signal ends the program at once."""
  _Watch.describe = describe


def tell_hosts_with(tell: Callable[[signal.Signals], None]):
  """Sets what tells the other hosts that a signal ends this process at once."""
  _Watch.tell_hosts = tell


def end_as_done():
  """Makes a signal from now on end the process without a word, with status 0.

  One of several hosts ends by itself, since it has to wait for the others there.
  """
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()  # What is printed already is not to be lost.
  _Watch.is_done = True


def relay_to_jax():
  """Lets JAX know of signals, whose own handler tells the other hosts.

  To be called when JAX has installed it, which `jax.distributed.initialize` does.
  """
  _Watch.relays = True


@contextlib.contextmanager
def finishing() -> Iterator[None]:
  """Makes the first signal inside the `with` block one that is noted alone."""
  with _Watch.lock:
    _Watch.num_finishing += 1
  try:
    yield
  finally:
    with _Watch.lock:
      _Watch.num_finishing -= 1


def received() -> signal.Signals | None:
  """Returns the signal that this process has noted; None: there was none."""
  return _Watch.received


def cause() -> str:
  """Returns in words which signal stops the work."""
  number = received()
  return 'a signal to another host' if number is None else number.name


def exit_code(number: signal.Signals | None) -> int:
  """Returns 143 of SIGTERM and 130 of Ctrl-C, as a shell does.

  Args:
    number: the signal; None: another host has received it.
  """
  return 128 + (signal.SIGTERM if number is None else number)


def _wait():
  received_at = 0.0
  while True:
    number = signal.Signals(signal.sigwait(SIGNALS))
    now = time.monotonic()
    with _Watch.lock:
      if _Watch.is_done:
        if _Watch.tell_hosts is None:
          os._exit(0)
        continue
      if _Watch.received is not None and now - received_at < _ONE_SIGNAL_SECS:
        continue
      if _Watch.received is not None or not _Watch.num_finishing:
        _end(number, is_first=_Watch.received is None)
      _Watch.received, received_at = number, now
    _say(f'{number.name}: {FINISHING}')
    if _Watch.relays:  # JAX's handler is of SIGTERM, and this thread has blocked it.
      signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
      signal.raise_signal(signal.SIGTERM)
      signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _end(number: signal.Signals, *, is_first: bool):
  """Ends the process here and now; an exit would wait for threads and other hosts."""
  try:
    if not is_first:  # What is saved is on a disk that may be what all waits for.
      _say(f'{number.name}: {ENDED}')
    elif _Watch.describe is not None:
      with contextlib.suppress(Exception):  # As of a disk that cannot be read.
        _say(f'{number.name}: {_Watch.describe()}')
    if _Watch.tell_hosts is not None:
      _Watch.tell_hosts(number)
  finally:
    os._exit(exit_code(number))


def _say(line: str):
  """Prints a line, if there still is someone who reads it."""
  with contextlib.suppress(OSError, ValueError):
    # Not `sys.stderr`: the main thread may have redirected it for a moment.
    print(line, file=sys.__stderr__, flush=True)
