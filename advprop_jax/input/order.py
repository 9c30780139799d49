"""Runs of records: cut into shares, shuffled by windows, entered at any position.

The stream is a pure function of the seed and the position in it, so that a run can be
resumed at any example. Each epoch is a permutation of the records:

  1. the files, in an order drawn from (seed, epoch);
  2. their records, cut into windows of `window_size` records;
  3. each window in an order drawn from (seed, epoch, number of the window).

Unlike a sliding shuffle buffer, a window depends on nothing that came before it: to
start at a position, whole epochs, windows and files are skipped unread, and what is
skipped inside the first window is not decoded. About four windows of undecoded records
are in memory. Records far apart in one file never share a window: a data set in few,
large files wants a window of the size of the split.
"""

import numpy as np
import tensorflow as tf

from advprop_jax.input import datasets

_fold_in = tf.random.experimental.stateless_fold_in
_permute = tf.random.experimental.stateless_shuffle

# Second half of the run's seed; `batches.py` draws augmentations with another.
_SHUFFLE = 0


def cut(spans: list[datasets.Span], begin: int, end: int) -> list[datasets.Span]:
  """Returns records [begin, end) of the concatenation of `spans`."""
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


def shuffled(
  dataset: datasets.Dataset,
  spans: list[datasets.Span],
  *,
  seed: int,
  start: int,
  window_size: int,
) -> tf.data.Dataset:
  """Returns the endless stream of undecoded records, from position `start` on."""
  num_records = sum(span.take for span in spans)
  window_size = min(window_size, num_records)
  first_epoch, start_in_epoch = divmod(start, num_records)
  start_window, start_in_window = divmod(start_in_epoch, window_size)
  columns = _columns(spans)

  def windows(epoch):
    epoch_seed = _fold_in(tf.constant([seed, _SHUFFLE], tf.int64), epoch)
    file_seed, window_seed = tf.unstack(tf.random.split(epoch_seed))
    order = _permute(tf.range(len(spans)), file_seed)
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
