"""Counts what was tried and what has passed, and injects faults into runs."""

import collections
import concurrent.futures
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.chaos import runs as runs_lib

_PER_CHAIN = 3  # Faults to one workdir, before it is run to the end.
_REPORT_SECS = 5.0


class Figure:
  """One line of the report; may be added to from several threads."""

  def __init__(self, name: str, total: int):
    """Makes a figure of `total` cases, of which none has passed so far."""
    self.name, self.total = name, total
    self.passed, self.num_done = 0, 0
    self.counts: collections.Counter[str] = collections.Counter()
    self.secs: list[float] = []
    self.notes: list[str] = []
    self.failures: list[str] = []
    self._lock = threading.Lock()
    self._start = self._reported = time.monotonic()

  def add(self, what: str, problem: str | None = None, *, secs: float | None = None):
    """Counts a case.

    Args:
      what: kind of it, for the details.
      problem: why it has not passed, with what is needed to see it again; None: it has.
      secs: that it took.
    """
    with self._lock:
      self.num_done += 1
      self.passed += problem is None
      self.counts[what] += 1
      if secs is not None:
        self.secs.append(secs)
      if problem is not None:
        self.failures.append(f'{self.name}, {what}: {problem}')
      self._report()

  def _report(self):
    now = time.monotonic()
    if now - self._reported < _REPORT_SECS and self.num_done < self.total:
      return
    self._reported = now
    spent = now - self._start
    left = spent / self.num_done * (self.total - self.num_done)
    print(
      f'{self.name}: {self.num_done} of {self.total}, {len(self.failures)} failed, '
      f'{spent:.0f} s, {left:.0f} s left',
      file=sys.stderr,
      flush=True,
    )

  @property
  def is_perfect(self) -> bool:
    """Returns whether all cases were tried and have passed."""
    return self.passed == self.total and not self.failures

  def __str__(self):
    parts = [', '.join(f'{k} {n}' for k, n in sorted(self.counts.items()))]
    if self.secs:
      parts.append(
        f'seconds p50 {percentile(self.secs, 50):.2f}, '
        f'p99 {percentile(self.secs, 99):.2f}, max {max(self.secs):.2f}'
      )
    return f'{self.passed}/{self.total} {self.name}: ' + '; '.join(parts + self.notes)


def percentile(values: list[float], percent: float) -> float:
  """Returns the smallest value that so many percent do not exceed."""
  return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]


class Fault(NamedTuple):
  """What was done to a run, and how it took it."""

  what: str
  problem: str | None = None
  secs: float | None = None


# Of a chain, its run that has been started, a source of chance and the number of the
# fault; returns None if the run was over before.
Injection = Callable[[Any, runs_lib.Run, random.Random, int], Fault | None]


def inject_all(
  figure: Figure,
  runs: runs_lib.Runs,
  inject: Injection,
  *,
  seed: int,
  jobs: int = 1,
  per_chain: int = _PER_CHAIN,
  new_chain: Callable[[runs_lib.Runs, str], runs_lib.Chain] = runs_lib.Chain,
):
  """Injects faults into `figure.total` runs, several in a row on the same workdir.

  Each row is followed by a run to the end, that has to be as one without interruption:
  otherwise none of its faults counts as passed.

  Args:
    figure: to add to.
    runs: of which kind.
    inject: what to do.
    seed: of all chance.
    jobs: rows at a time.
    per_chain: faults in a row.
    new_chain: makes a workdir, of a name.
  """
  rows = [
    range(first, min(first + per_chain, figure.total))
    for first in range(0, figure.total, per_chain)
  ]
  with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
    futures = [
      executor.submit(_inject_row, figure, runs, inject, seed, row, new_chain)
      for row in rows
    ]
    for future in futures:
      future.result()


def _inject_row(figure, runs, inject, seed: int, indices: range, new_chain):
  """Injects the faults with these numbers, on as many workdirs as are needed."""
  rng = random.Random(f'{seed} {figure.name} {indices.start}')
  faults: list[Fault] = []
  chain, num_chains = None, 0
  todo = list(indices)
  while todo:
    if chain is None:
      chain = new_chain(runs, f'{figure.name}_{indices.start}_{num_chains}')
      num_chains += 1
    run = chain.start()
    try:
      fault = inject(chain, run, rng, todo[0])
    except TimeoutError as e:
      fault = Fault('hung', f'{e}\n{run.tail()}')
    if fault is None and any(codes := run.wait()):
      fault = Fault('on its own', f'ended with {codes}:\n{run.tail()}')
    if fault is not None:
      faults.append(fault)
      todo.pop(0)
    if fault is None or fault.problem is not None or not todo:
      _end_row(figure, chain, faults, seed, is_over=fault is None)
      chain, faults = None, []


def _end_row(figure, chain, faults: list[Fault], seed: int, *, is_over: bool):
  problem = chain.difference() if is_over else chain.finish()
  row = ' then '.join(fault.what for fault in faults) or 'none'
  about = f'--seed={seed}, kept in {chain.folder}, row: {row}'
  for fault in faults:
    found = '\n'.join(x for x in (fault.problem, problem) if x is not None) or None
    figure.add(
      fault.what, None if found is None else f'{found}\n  {about}', secs=fault.secs
    )
  if problem is not None and not faults:
    figure.failures.append(f'{figure.name}: {problem}\n  {about}')
  if problem is None and all(fault.problem is None for fault in faults):
    chain.remove()
  else:
    chain.keep()
