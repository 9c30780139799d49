"""What becomes of images that cannot be decoded: named, counted, passed over.

A bad example keeps its place in the stream, so that positions stay what they are, and
is taken out of its batch here: in training another image of the batch stands in for it,
in evaluation its mask is False. Too many of them end the run: then something else is
wrong than a few broken files.
"""

import numpy as np
from absl import logging

from advprop_jax import decode, errors

# So many are named in the log; the others are only counted.
NUM_NAMED = 10
# The share of bad examples is judged as if at least so many had been seen: a single bad
# one among the first ten says nothing about a data set.
MIN_SEEN = 1000


class BadExamples:
  """Takes the bad examples out of the batches of one host, and counts them."""

  def __init__(self, split: str, max_share: float):
    """Starts to count.

    Args:
      split: what the batches are of, for the messages.
      max_share: of bad examples that is put up with, 0 to 1.
    """
    self.count = 0
    self._num_seen = 0
    self._split, self._max_share = split, max_share

  def remove(self, batch: dict[str, np.ndarray], num_real: int, *, replace: bool):
    """Returns the batch without its bad examples and without the keys about them.

    Args:
      batch: image, label and mask, and `problem` (int32 [b], an index of
        decode.PROBLEMS) and `name` (bytes [b]). Its arrays may be read-only.
      num_real: examples in the batch that are no padding.
      replace: put copies of the following good examples in their places; otherwise set
        their mask to False.

    Raises:
      UserError: too many bad examples so far, or nothing else in a batch.
    """
    problem, name = batch['problem'], batch['name']
    batch = {key: x for key, x in batch.items() if key not in ('problem', 'name')}
    self._num_seen += num_real
    bad = np.flatnonzero(problem)
    if not bad.size:
      return batch
    for i in bad[: max(0, NUM_NAMED - self.count)]:
      logging.warning(
        'bad example in %s: %s %s',
        self._split,
        name[i].decode(errors='replace') or 'an image without a name',
        decode.PROBLEMS[problem[i]],
      )
    self.count += bad.size
    if self.count >= NUM_NAMED > self.count - bad.size:
      logging.warning('further bad examples in %s are counted, not named', self._split)
    if self.count > self._max_share * max(self._num_seen, MIN_SEEN):
      raise errors.UserError(
        f'{self.count} of the first {self._num_seen} examples of {self._split} cannot '
        f'be decoded (the log names some); allowed: a share of {self._max_share}, '
        'data.max_bad_share'
      )
    if not replace:
      return {**batch, 'mask': batch['mask'] & (problem == decode.GOOD)}
    good = np.flatnonzero(problem == decode.GOOD)
    if not good.size:
      raise errors.UserError(
        f'none of the {len(problem)} examples of a batch of {self._split} can be '
        'decoded; allowed: batches with one that can'
      )
    source = np.arange(len(problem))
    source[bad] = good[np.searchsorted(good, bad) % good.size]
    return {key: x[source] for key, x in batch.items()}
