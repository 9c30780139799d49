"""The processes that make a run together: what they tell each other, how they end."""

import collections
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from advprop_jax import cluster, errors, peers, preemption

_calls = itertools.count()  # Of `reached_preemption`.
_peers: peers.Peers | None = None
_VERDICT_SECS = 12.0  # Longer than `peers.py` takes.
_JOIN_SECS = 300.0  # To wait for the other hosts at the start; JAX's default.
_NO_ANSWER = ('DEADLINE_EXCEEDED', 'UNAVAILABLE')  # Of JAX's errors.


def run_to_end(work: Callable[[], object]):
  """Runs a program; its errors end the process, and those of all hosts.

  Exit codes: 0, done; 1, an error, to be mended first; 143, SIGTERM, and 130, Ctrl-C:
  the same command goes on; 75, likewise: another host is lost or does not answer,
  another training writes to the workdir, or one of several hosts could not save.
  """
  try:
    work()
    _leave()
    preemption.end_as_done()
  except preemption.Preempted as e:
    _leave()
    _say(f'{e}; the same command goes on from there')
    sys.exit(preemption.exit_code(preemption.received()))
  except errors.RestartError as e:
    _end_all(str(e), code=peers.RESTART)
  except errors.UserError as e:
    _end_all(f'error: {e}')
  except Exception as e:
    is_of_jax = isinstance(e, jax.errors.JaxRuntimeError)
    if is_of_jax and (message := errors.describe_device_error(e)) is not None:
      _end_all(f'error: {message}')
    if not jax.distributed.is_initialized():
      raise
    if is_of_jax and _peers is not None:
      time.sleep(_VERDICT_SECS)  # A lost host may be the cause: this ends the process.
    traceback.print_exception(e)
    _end_all(f'error: {type(e).__name__}: {_first_line(e)}')


def end_before_joining(message: str, *, wanted: bool | None) -> NoReturn:
  """Ends the process with status 1 for an error in its command, and with it all hosts.

  The others, whose command may be right, wait for this one.

  Args:
    message: to print.
    wanted: see `join_hosts`.
  """
  _say(message)
  found = cluster.find(os.environ)
  if wanted or (wanted is None and found is not None and found.problem is None):
    with contextlib.suppress(Exception):  # The error of the command says more.
      join_hosts(wanted, give_up=lambda: os._exit(1))
  if _peers is not None:
    _peers.leave(message)
  sys.stdout.flush()
  os._exit(1)


def _leave():
  """Tells the other hosts that this one ends as it should."""
  if _peers is not None:
    _peers.leave()


def _end_all(message: str, *, code: int = 1):
  """Ends the process with a message and an exit code, and with it all hosts."""
  try:
    _say(message)
    if _peers is not None:
      _peers.leave(message, code=code)
    sys.stdout.flush()
  finally:
    # An ordinary exit waits for the other hosts, which wait for this one's batches, and
    # for the threads of a save that has failed, which may wait for ever.
    os._exit(code)


def _say(line: str):
  """Prints a line, if there still is someone who reads it."""
  with contextlib.suppress(OSError, ValueError):
    print(line, file=sys.stderr, flush=True)


def join_hosts(
  wanted: bool | None = None, *, give_up: Callable[[], object] | None = None
):
  """Makes this process one of several hosts, as their environment describes it.

  From then on, all end when one of them ends with an error or is lost.

  Args:
    wanted: whether to; None: if the environment is that of one of several processes.
    give_up: ends the process if the others do not come; None: with a line and 75.

  Raises:
    UserError: there is no such environment, or hosts have different numbers of devices.
    RestartError: another host does not answer.
  """
  global _peers
  found = cluster.find(os.environ)
  if wanted is None:
    wanted = found is not None and found.problem is None
  if not wanted:
    if found is not None:
      logging.warning(
        '%s has started this process as one of %s, and it runs alone: %s',
        *(found.name, found.num_processes or 'several'),
        found.problem or '--nomulti_host',
      )
    return
  try:
    _wait_for_all(give_up or _give_up)
  except Exception as e:  # The kubernetes package has its own.
    # Of JAX, or of a cloud's server of metadata.
    if isinstance(e, OSError) or any(x in str(e) for x in _NO_ANSWER):
      raise errors.RestartError(
        f'another host does not answer ({_first_line(e)}): the same command goes on'
      ) from e
    raise errors.UserError(
      f'--multi_host cannot join other hosts ({_first_line(e)}); allowed: on a TPU '
      'pod, GKE, under Slurm or Open MPI'
    ) from e
  preemption.relay_to_jax()
  if jax.process_count() == 1:
    return
  _check_devices(jax.devices())
  try:
    _peers = peers.Peers(jax.process_index(), texts_of_hosts)
  except OSError as e:  # A firewall, perhaps: JAX's own check remains.
    logging.warning(
      'host 0 cannot be reached (%s): a loss would be noticed after minutes',
      e,
    )
  else:
    preemption.tell_hosts_with(_tell_signal)
    for index in _peers.missing:
      logging.warning(
        'host %d has not connected: its loss would be noticed after minutes', index
      )


def _give_up():
  _end_all(
    f'the other processes were not all here within {_JOIN_SECS:.0f} s: the same '
    'command goes on when they are',
    code=peers.RESTART,
  )


def _wait_for_all(give_up: Callable[[], object]):
  """Waits until all hosts are here; `give_up` ends this one if they do not come.

  JAX would end it, too: with an abort and a dump.
  """
  logging.info('waiting for the other processes, for up to %d s', _JOIN_SECS)
  timer = threading.Timer(_JOIN_SECS, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(initialization_timeout=int(_JOIN_SECS) + 60)
  finally:
    timer.cancel()


def _check_devices(devices: Sequence[jax.Device]):
  """Raises UserError unless all hosts have as many devices as the first one."""
  counts = collections.Counter(x.process_index for x in devices)
  for index in range(jax.process_count()):
    if counts[index] != counts[0]:
      if jax.process_index() == 0:
        time.sleep(3)  # JAX aborts those that are still here when the first one ends.
      raise errors.UserError(
        f'hosts have different numbers of devices: host 0 has {counts[0]} and host '
        f'{index} has {counts[index]}; allowed: as many on all of them'
      )


def _tell_signal(number: signal.Signals):
  """Tells the other hosts that a signal has ended this one, and is to end them."""
  if _peers is not None:
    line = f'{number.name}: the same command goes on from the last checkpoint'
    _peers.leave(line, code=preemption.exit_code(number))


def _first_line(e: Exception) -> str:
  return str(e).splitlines()[0].rstrip('.')


def check_same_on_hosts(what: str, values: Mapping[str, Any]):
  """Raises UserError on all hosts if a value differs between them, naming it.

  Args:
    what: the values are, for the message.
    values: {name: JSON value} of this host; all hosts have to call.
  """
  if jax.process_count() == 1:
    return
  found = [json.loads(x) for x in texts_of_hosts(json.dumps(values, default=str))]
  for index, other in enumerate(found):
    for name in [*found[0], *other]:
      first, here = (x.get(name, 'absent') for x in (found[0], other))
      if json.dumps(first) != json.dumps(here):  # Not so of NaN itself.
        raise errors.UserError(
          f'hosts differ in {what}: {name} is {first!r} on host 0 and {here!r} on host '
          f'{index}; allowed: the same on all of them'
        )


def reached_preemption() -> bool:
  """Returns whether all hosts are to save and stop here, since one got a signal.

  All hosts have to call, equally often: JAX makes out the next call that none of them
  has made yet.
  """
  if not jax.distributed.is_initialized():
    return preemption.received() is not None
  return multihost_utils.reached_preemption_sync_point(next(_calls))


def stop_if_preempted():
  """Raises Preempted where `reached_preemption` holds."""
  if reached_preemption():
    raise preemption.Preempted(f'{preemption.cause()}: all that was done is saved')


def wait_for_hosts(name: str):
  """Waits until all hosts are here; `name` is that of the place."""
  multihost_utils.sync_global_devices(name)


def sum_over_hosts(x: int) -> int:
  """Returns the sum of a number that every host has; all of them have to call."""
  return int(multihost_utils.process_allgather(np.asarray(x)).sum())


def sum_arrays_over_hosts(x: np.ndarray) -> np.ndarray:
  """Returns the sum of an array that every host has; all of them have to call."""
  return multihost_utils.process_allgather(x, tiled=False).reshape(-1, *x.shape).sum(0)


def max_over_hosts(x: int) -> int:
  """Returns the largest of a number that every host has; all of them have to call."""
  return int(multihost_utils.process_allgather(np.asarray(x)).max())


def texts_of_hosts(text: str) -> list[str]:
  """Returns a text of every host, in their order; all of them have to call."""
  data = np.frombuffer(text.encode(), np.uint8)
  size = max_over_hosts(len(data)) + 1  # Of an empty array, nothing is gathered.
  padded = np.zeros(size, np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded).reshape(-1, size)
  return [row.tobytes().rstrip(b'\0').decode() for row in rows]
