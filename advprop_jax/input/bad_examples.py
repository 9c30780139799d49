"""What becomes of images that cannot be decoded: named, counted, passed over.

A bad example keeps its place in the stream, so that positions stay what they are, and
is taken out of its batch here. In evaluation its mask becomes False. In training the
next good example of its batch stands in for it, or, in a batch of bad ones alone, the
first good one of the batches that follow: a function of the position, so that a resumed
run sees what the uninterrupted one saw. Too many of them end the run: then something
else is wrong than a few broken files. A shard that cannot be read ends it, too.
"""

import collections
import contextlib
import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from advprop_jax import errors
from advprop_jax.input import decode

# So many are named in the log, once each; the others are only counted.
NUM_NAMED = 10
# The share is bad / max(seen, MIN_SEEN), so that a few bad files end no run, early in a
# pass or in a small split. Of a small split more than half are always too many.
MIN_SEEN = 1000
MAX_SHARE = 0.5


class BadExamples:
  """Counts the bad examples in the batches of one host, and names some."""

  def __init__(self, split: str, num_examples: int, max_share: float):
    """Starts to count.

    Args:
      split: what the batches are of, for the messages.
      num_examples: of one pass over the split, on this host.
      max_share: of bad examples in a pass that is put up with, 0 to 1.
    """
    self.count = 0  # Since the start; every pass meets the same ones again.
    self._named: set[bytes] = set()
    self._bad_in_pass = self._seen_in_pass = 0
    self.split, self.num_examples = split, num_examples
    self._max_share = max_share

  def add(self, batch: dict[str, np.ndarray], num_real: int) -> None:
    """Counts those of a batch.

    Args:
      batch: with `problem` (int32 [b], an index of decode.PROBLEMS) and `name`
        (bytes [b]).
      num_real: examples in the batch that are no padding.

    Raises:
      UserError: too many bad examples in this pass.
    """
    problem, name = batch['problem'], batch['name']
    if self._seen_in_pass >= self.num_examples:
      self._bad_in_pass = self._seen_in_pass = 0
    self._seen_in_pass += num_real
    bad = np.flatnonzero(problem)
    for i in bad:
      self._log(name[i], decode.PROBLEMS[problem[i]])
    self.count += bad.size
    self._bad_in_pass += bad.size
    by_share = self._max_share * max(self._seen_in_pass, MIN_SEEN)
    most = max(self._max_share, MAX_SHARE) * self.num_examples
    # One bad file ends no run, however small the split is.
    allowed = min(by_share, max(most, 1.0))
    if self._bad_in_pass > allowed:
      raise errors.UserError(
        f'{self._bad_in_pass} of {self._seen_in_pass} examples of {self.split} cannot '
        f'be decoded (the log names some); allowed: at most {int(allowed)}, by '
        f'data.max_bad_share={self._max_share}'
      )

  def none_is_good(self) -> errors.UserError:
    """Returns the error that there is nothing to put in the place of bad examples."""
    return errors.UserError(
      f'none of the {self.num_examples} examples of {self.split} can be decoded; '
      'allowed: a split with one that can'
    )

  def no_label(self) -> errors.UserError:
    """Returns the error that an example cannot be learned from."""
    return errors.UserError(
      f'{self.split} has examples without a label (outside of the range of its '
      'classes), as test splits do; allowed: a split in which all have one'
    )

  def _log(self, name: bytes, problem: str):
    """Names a bad example, unless it or enough others have been named."""
    if name in self._named or len(self._named) == NUM_NAMED:
      return
    shown = name.decode(errors='replace') or 'an image without a name'
    logging.warning('bad example in %s: %s %s', self.split, shown, problem)
    self._named.add(name)
    if len(self._named) == NUM_NAMED:
      logging.warning('further bad examples in %s are counted, not named', self.split)


class TrainBatches:
  """The endless stream, as an iterator of batches; see `batches.train_batches`.

  Most data have no bad file, and to guard each decoding costs a tenth of the time. So
  the first bad file ends a stream without guards, and one with them takes over.
  """

  def __init__(self, open_at: Callable[[int, bool], tf.data.Dataset], bad: BadExamples):
    """Opens the stream; the first batch is begun at once.

    Args:
      open_at: (batches to leave out, whether to guard each decoding) -> batches.
      bad: counts the bad examples.
    """
    self._open_at, self._bad = open_at, bad
    self._num_read, self._is_guarded = 0, False
    self._batches = open_at(0, False).as_numpy_iterator()
    self._ready: collections.deque[dict] = collections.deque()

  def __iter__(self) -> Iterator[dict]:
    return self

  def __next__(self) -> dict:
    if not self._ready:
      self._ready.extend(self._with_stand_ins())
    return self._ready.popleft()

  @property
  def num_bad(self) -> int:
    """Returns how often this process has met an example that cannot be decoded."""
    return self._bad.count

  def _with_stand_ins(self) -> list[dict]:
    """Returns the next batch that has a good example, and those before it."""
    num_bad_batches = 0
    while True:
      batch = self._read()
      size = len(batch['label'])
      if (batch['label'] < 0).any():
        raise self._bad.no_label()
      self._bad.add(batch, size)
      bad = batch['problem'] != decode.GOOD
      batch = _without_problems(batch)
      if not bad.any() and not num_bad_batches:  # Nearly always: nothing is copied.
        return [batch]
      good = np.flatnonzero(~bad)
      if good.size:
        break
      num_bad_batches += 1
      # So many in a row hold a whole epoch, wherever they begin.
      if num_bad_batches * size >= 2 * self._bad.num_examples:
        raise self._bad.none_is_good()
    source = np.arange(size)
    source[bad] = good[np.searchsorted(good, np.flatnonzero(bad)) % good.size]
    first = np.full(size, good[0])
    return [
      {key: x[places] for key, x in batch.items()}
      for places in [first] * num_bad_batches + [source]
    ]

  def _read(self) -> dict:
    """Returns the next batch as it is."""
    with _told_in_one_line():
      try:
        batch = next(self._batches)
      except (tf.errors.OpError, UnicodeDecodeError):
        if self._is_guarded:
          raise
        self._is_guarded, self._batches = True, None
      # Outside of `except`: the traceback still refers to the old iterator.
      if self._batches is None:
        logging.info(
          'a file cannot be decoded: each is checked from here on, and the bad named'
        )
        self._batches = self._open_at(self._num_read, True).as_numpy_iterator()
        batch = next(self._batches)
    self._num_read += 1
    return batch


class EvalBatches:
  """One pass over a split; every `iter()` starts afresh. See `batches.eval_batches`."""

  def __init__(
    self,
    create: Callable[[], tf.data.Dataset],
    num_batches: int,
    create_bad: Callable[[], BadExamples],
  ):
    """Keeps what a pass is made of; its graph is built when it is first asked for."""
    self._create, self._num_batches = functools.cache(create), num_batches
    self._create_bad = create_bad
    self.num_bad = 0  # Of the last pass, on this host.

  def __len__(self) -> int:
    """Returns the number of batches, the same on every process."""
    return self._num_batches

  def __iter__(self) -> Iterator[dict]:
    bad = self._create_bad()
    batches = self._create().as_numpy_iterator()
    for _ in range(self._num_batches):
      with _told_in_one_line():
        batch = next(batches)
      bad.add(batch, int(np.count_nonzero(batch['mask'])))
      self.num_bad = bad.count
      has_label = (batch['label'] >= 0).reshape([len(batch['label']), -1]).any(axis=1)
      mask = batch['mask'] & (batch['problem'] == decode.GOOD) & has_label
      yield {**_without_problems(batch), 'mask': mask}


def _without_problems(batch: dict) -> dict:
  return {key: x for key, x in batch.items() if key not in ('problem', 'name')}


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
