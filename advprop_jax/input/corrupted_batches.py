"""Batches of an evaluation pass, their images corrupted."""

import collections
import zlib
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from advprop_jax import errors
from advprop_jax.input import cores, corruptions

NUM_AHEAD = 2  # Batches that are corrupted while another is used.


def corrupt_batches(batches, name: str, severity: int, *, seed: int):
  """Returns the same batches with corrupted images.

  What becomes of an example depends on the image, the arguments and its position in the
  split, so not on the batch size or the number of hosts and devices. Padding, bad
  examples and those without a label stay as they are.

  Args:
    batches: sized iterable, see `batches.eval_batches`; images are uint8.
    name: one of `corruptions.CORRUPTIONS`.
    severity: 1 to 5.
    seed: 0 or more.

  Returns:
    A sized iterable; every `iter()` starts afresh.

  Raises:
    UserError: the name or the severity is unknown.
  """
  errors.check_choice('corruption', name, corruptions.CORRUPTIONS)
  corruptions.check_severity(severity)
  return _CorruptedBatches(batches, name, severity, seed)


class _CorruptedBatches:
  """See `corrupt_batches`.

  In threads: NumPy, SciPy and Pillow leave Python's lock to others while they work on
  an image, and a process would take longer to start than small images take in all.
  """

  def __init__(self, batches, name: str, severity: int, seed: int):
    self._batches, self._name, self._severity = batches, name, severity
    # Not Python's hash of the name, which differs from process to process.
    self._entropy = (seed, zlib.crc32(name.encode()), severity)

  def __len__(self) -> int:
    return len(self._batches)

  @property
  def num_bad(self) -> int:
    """Returns how many examples of the last pass cannot be decoded, on this host."""
    return self._batches.num_bad

  def __iter__(self) -> Iterator[dict]:
    num_threads = cores.count()
    ahead: collections.deque = collections.deque()
    with futures.ThreadPoolExecutor(num_threads) as pool:
      for batch in self._batches:
        if batch['image'].dtype != np.uint8:
          raise TypeError(f'images are {batch["image"].dtype}; allowed: uint8')
        batch = {**batch, 'image': batch['image'].copy()}
        shares = np.array_split(np.flatnonzero(batch['mask']), num_threads)
        ahead.append((batch, [pool.submit(self._corrupt, batch, x) for x in shares]))
        if len(ahead) > NUM_AHEAD:
          yield _done(*ahead.popleft())
      while ahead:
        yield _done(*ahead.popleft())

  def _corrupt(self, batch: dict, places: np.ndarray):
    """Corrupts some images of a batch, in place."""
    corruption = corruptions.CORRUPTIONS[self._name]
    for i in places:
      rng = np.random.default_rng((*self._entropy, int(batch['position'][i])))
      batch['image'][i] = corruption(batch['image'][i], self._severity, rng)


def _done(batch: dict, tasks: list) -> dict:
  """Returns a batch when the tasks on it have ended, or raises their error."""
  for task in tasks:
    task.result()
  return batch
