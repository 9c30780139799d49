"""The cores of a machine, or of the share of it that a process has."""

import os


def count() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1  # macOS does not say which of them.
