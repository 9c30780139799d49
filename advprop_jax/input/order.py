"""Runs of records: cut into shares, shuffled by windows, entered at any position.

The stream is a pure function of the seed and the position in it, so that a run can be
resumed at any example. Every host has records of its own, in numbers that differ by at
most one; in an epoch all use the same number, and those with one more leave out another
one each time. Each epoch of a host is a permutation of its records:

  1. the files, in an order drawn from (seed, epoch);
  2. their records, cut into windows of `window_size` records;
  3. each window in an order drawn from (seed, epoch, number of the window).

Unlike a sliding shuffle buffer, a window depends on nothing that came before it: to
start at a position, whole epochs, windows and files are skipped unread, and what is
skipped inside the first window is not decoded. About four windows of undecoded records
are in memory. Records further apart than a window in one file never mix: with few large
files set the window to the split's size.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from advprop_jax.input import datasets

_fold_in = tf.random.experimental.stateless_fold_in
_permute = tf.random.experimental.stateless_shuffle

# Second half of the run's seed; `batches.py` draws augmentations with another.
_SHUFFLE = 0


@dataclasses.dataclass(frozen=True)
class Hosts:
  """Which of how many processes this one is."""

  index: int
  count: int


ONE_HOST = Hosts(index=0, count=1)


def share(spans: list[datasets.Span], hosts: Hosts) -> list[datasets.Span]:
  """Returns the contiguous run of the records of `spans` that is this host's.

  The shares of the hosts differ by at most one record.
  """
  num_records = sum(span.take for span in spans)
  begin = hosts.index * num_records // hosts.count
  end = (hosts.index + 1) * num_records // hosts.count
  result = []
  for path, skip, take in spans:
    first, last = max(begin, 0), min(end, take)
    if first < last:
      result.append(datasets.Span(path, skip + first, last - first))
    begin, end = begin - take, end - take
  return result


def in_order(dataset: datasets.Dataset, spans: list[datasets.Span]) -> tf.data.Dataset:
  """Returns the undecoded records of `spans`, which may be none, once."""
  return dataset.read_fn(tf.data.Dataset.from_tensor_slices(_columns(spans)))


def _columns(spans: list[datasets.Span]) -> datasets.Span:
  """Returns a Span of vectors, one element for each of `spans`."""
  return datasets.Span(
    path=tf.constant([span.path for span in spans], tf.string),
    skip=tf.constant([span.skip for span in spans], tf.int64),
    take=tf.constant([span.take for span in spans], tf.int64),
  )


def _without(columns: datasets.Span, record: tf.Tensor) -> datasets.Span:
  """Returns the columns without one record: its file is read in two parts."""
  ends = tf.cumsum(columns.take)
  file = tf.searchsorted(ends, [record], side='right')
  after = tf.gather(ends, file) - record - 1  # Records of the file behind it.
  before = tf.gather(columns.take, file) - after - 1
  return datasets.Span(
    path=tf.concat([columns.path, tf.gather(columns.path, file)], 0),
    skip=tf.concat([columns.skip, tf.gather(columns.skip, file) + before + 1], 0),
    take=tf.concat(
      [tf.tensor_scatter_nd_update(columns.take, file[:, tf.newaxis], before), after], 0
    ),
  )


def shuffled(
  dataset: datasets.Dataset,
  spans: list[datasets.Span],
  *,
  num_records: int,
  seed: int,
  start: int,
  window_size: int,
) -> tf.data.Dataset:
  """Returns the endless stream of undecoded records, from position `start` on.

  Args:
    dataset: reads the records.
    spans: where they are.
    num_records: of an epoch: all of `spans`, or one less. Then epoch e leaves out the
      record e % (num_records + 1).
    seed: of the orders.
    start: position of the first record, counted from the first epoch.
    window_size: records that are shuffled together.
  """
  total = sum(span.take for span in spans)
  window_size = min(window_size, num_records)
  first_epoch, start_in_epoch = divmod(start, num_records)
  start_window, start_in_window = divmod(start_in_epoch, window_size)
  all_columns = _columns(spans)

  @tf.autograph.experimental.do_not_convert
  def windows(epoch):
    columns = all_columns
    if num_records < total:
      columns = _without(columns, epoch % total)
    epoch_seed = _fold_in(tf.constant([seed, _SHUFFLE], tf.int64), epoch)
    file_seed, window_seed = tf.unstack(tf.random.split(epoch_seed))
    order = _permute(tf.range(tf.size(columns.take)), file_seed)
    # Drop what lies before the first window: whole files, then records of one.
    first_window = tf.where(epoch == first_epoch, tf.cast(start_window, tf.int64), 0)
    skipped = first_window * window_size
    ends = tf.cumsum(tf.gather(columns.take, order))
    first_file = tf.searchsorted(ends, [skipped], side='right')[0]
    skipped -= tf.concat([[0], ends], axis=0)[first_file]
    order = order[first_file:]
    files = tf.data.Dataset.from_tensor_slices(
      datasets.Span(*(tf.gather(column, order) for column in columns))
    )
    records = dataset.read_fn(files).skip(skipped)
    return (
      records.batch(window_size)
      .enumerate(first_window)
      .map(lambda i, window: _permute(window, _fold_in(window_seed, i)))
    )

  return (
    tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    .flat_map(windows)
    .prefetch(1)  # The next window is read while this one is used up.
    .flat_map(tf.data.Dataset.from_tensor_slices)
    .skip(start_in_window)
  )
