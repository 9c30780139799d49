"""What becomes of images that cannot be decoded: named, counted, passed over.

A bad example keeps its place in the stream, so that positions stay what they are, and
is taken out of its batch here: in training another image of the batch stands in for it,
in evaluation its mask is False. Too many of them end the run: then something else is
wrong than a few broken files. So does, in one line, a shard that cannot be read.
"""

import contextlib
import re
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from advprop_jax import errors
from advprop_jax.input import decode

# So many are named in the log, once each; the others are only counted.
NUM_NAMED = 10
# Of a large split, the share is judged as if at least so many examples had been seen: a
# single bad one among the first ten says nothing about it.
MIN_SEEN = 1000


class BadExamples:
  """Takes the bad examples out of the batches of one host, and counts them."""

  def __init__(self, split: str, num_examples: int, max_share: float):
    """Starts to count.

    Args:
      split: what the batches are of, for the messages.
      num_examples: of one pass over the split, on this host.
      max_share: of bad examples in a pass that is put up with, 0 to 1.
    """
    self.count = 0  # Since the start; every pass meets the same ones again.
    self._named: set[bytes] = set()
    # Training batch, without bad examples.
    self._previous: dict[str, np.ndarray] | None = None
    self._bad_in_pass = self._seen_in_pass = 0
    self._split, self._num_examples = split, num_examples
    self._max_share = max_share

  def remove(self, batch: dict[str, np.ndarray], num_real: int, *, replace: bool):
    """Returns the batch without its bad examples and without the keys about them.

    Args:
      batch: image, label and mask, and `problem` (int32 [b], an index of
        decode.PROBLEMS) and `name` (bytes [b]). Its arrays may be read-only.
      num_real: examples in the batch that are no padding.
      replace: put copies of the following good examples in their places, or, if there
        is none in the batch, of the last one before it; otherwise set their mask to
        False.

    Raises:
      UserError: too many bad examples in this pass, or nothing else so far.
    """
    problem, name = batch['problem'], batch['name']
    batch = {key: x for key, x in batch.items() if key not in ('problem', 'name')}
    if self._seen_in_pass >= self._num_examples:
      self._bad_in_pass = self._seen_in_pass = 0
    self._seen_in_pass += num_real
    bad = np.flatnonzero(problem)
    if not bad.size:
      self._previous = batch if replace else None
      return batch
    for i in bad:
      self._log(name[i], decode.PROBLEMS[problem[i]])
    self.count += bad.size
    self._bad_in_pass += bad.size
    enough = min(MIN_SEEN, self._num_examples)
    if self._bad_in_pass > self._max_share * max(self._seen_in_pass, enough):
      raise errors.UserError(
        f'{self._bad_in_pass} of {self._seen_in_pass} examples of {self._split} cannot '
        f'be decoded (the log names some); allowed: a share of {self._max_share}, '
        'data.max_bad_share'
      )
    if not replace:
      return {**batch, 'mask': batch['mask'] & (problem == decode.GOOD)}
    good = np.flatnonzero(problem == decode.GOOD)
    if good.size:
      source = np.arange(len(problem))
      source[bad] = good[np.searchsorted(good, bad) % good.size]
      self._previous = {key: x[source] for key, x in batch.items()}
    elif self._previous is None:
      raise errors.UserError(
        f'none of the first {len(problem)} examples of {self._split} can be decoded; '
        'allowed: a batch with one that can'
      )
    else:
      last = np.full(len(problem), -1)
      self._previous = {key: x[last] for key, x in self._previous.items()}
    return self._previous

  def _log(self, name: bytes, problem: str):
    """Names a bad example, unless it or enough others have been named."""
    if name in self._named or len(self._named) == NUM_NAMED:
      return
    shown = name.decode(errors='replace') or 'an image without a name'
    logging.warning('bad example in %s: %s %s', self._split, shown, problem)
    self._named.add(name)
    if len(self._named) == NUM_NAMED:
      logging.warning('further bad examples in %s are counted, not named', self._split)


class TrainBatches:
  """The endless stream, as an iterator of batches; see `batches.train_batches`.

  Most data have no bad file, and to guard each decoding costs a tenth of the time. So
  the first bad file ends a stream without guards, and one with them takes over.
  """

  def __init__(self, open_at: Callable[[int, bool], tf.data.Dataset], bad: BadExamples):
    """Opens the stream; the first batch is begun at once.

    Args:
      open_at: (batches to leave out, whether to guard each decoding) -> batches.
      bad: takes out the bad examples.
    """
    self._open_at, self._bad = open_at, bad
    self._num_batches, self._is_guarded = 0, False
    self._batches = open_at(0, False).as_numpy_iterator()

  def __iter__(self) -> Iterator[dict]:
    return self

  def __next__(self) -> dict:
    with _told_in_one_line():
      try:
        batch = next(self._batches)
      except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        if self._is_guarded:
          raise
        self._is_guarded, self._batches = True, None
      if self._batches is None:  # After the error, which keeps the old one in memory.
        logging.info('a file cannot be decoded: opening the data anew, with guards')
        self._batches = self._open_at(self._num_batches, True).as_numpy_iterator()
        batch = next(self._batches)
    self._num_batches += 1
    return self._bad.remove(batch, len(batch['label']), replace=True)

  @property
  def num_bad(self) -> int:
    """Returns how often this process has met an example that cannot be decoded."""
    return self._bad.count


class EvalBatches:
  """One pass over a split; every `iter()` starts afresh. See `batches.eval_batches`."""

  def __init__(
    self,
    batches: tf.data.Dataset,
    num_batches: int,
    create_bad: Callable[[], BadExamples],
  ):
    """Keeps what a pass is made of."""
    self._batches, self._num_batches = batches, num_batches
    self._create_bad = create_bad

  def __len__(self) -> int:
    """Returns the number of batches, the same on every process."""
    return self._num_batches

  def __iter__(self) -> Iterator[dict]:
    bad = self._create_bad()
    batches = self._batches.as_numpy_iterator()
    for _ in range(self._num_batches):
      with _told_in_one_line():
        batch = next(batches)
      yield bad.remove(batch, int(np.count_nonzero(batch['mask'])), replace=False)


@contextlib.contextmanager
def _told_in_one_line():
  """Turns TensorFlow's error, of a shard that is broken or gone, into the user's."""
  try:
    yield
  except (tf.errors.OpError, UnicodeDecodeError) as e:
    # An error whose message quotes a record cannot become text: it comes as the second.
    if isinstance(e, UnicodeDecodeError):
      message = e.object.decode(errors='backslashreplace')
    else:
      message = e.message
    # Without the place in the graph, before and behind, and its trace.
    reason = re.sub(r'{{.*?}}|\[Op:.*', '', message.split('\n')[0])
    raise errors.UserError(
      f'cannot read the data: {type(e).__name__}: {" ".join(reason.split())}; allowed: '
      'files that can be read and stay as they were when the data set was opened'
    ) from e
