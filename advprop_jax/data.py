"""Batches of images: a training stream and evaluation passes.

A batch is a dict of numpy arrays, for this process; `batch_size` is always global:

  image  float32[b, S, S, 3], RGB in [0, 1]; b = batch_size // process_count
  label  int32[b]
  mask   bool[b], False for padding (only ever in evaluation)

The training stream is a pure function of the seed and the position in it, so that a
run can be resumed at any example. Each epoch is a permutation of the examples:

  1. the files, in an order drawn from (seed, epoch);
  2. their records, cut into windows of `shuffle_buffer_size` records;
  3. each window in an order drawn from (seed, epoch, number of the window).

Unlike a sliding shuffle buffer, a window depends on nothing that came before it: to
start at a position, whole epochs, windows and files are skipped unread, and what is
skipped inside the first window is not decoded. About four windows of undecoded records
are in memory. Records far apart in one file never share a window: a data set in few,
large files wants a window of the size of the split.

Crop and flip of the example at position p are drawn from (seed, p). Processes read
disjoint, contiguous shares of the records.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from advprop_jax import datasets, errors, preprocess

Batch = dict[str, np.ndarray]

# Fixed, see `_with_options`: a thread for every core, and two batches ahead.
NUM_PARALLEL_EXAMPLES = os.cpu_count() or 1
PREFETCHED_BATCHES = 2

# Second halves of the run's seed: they keep the draws of the two purposes apart.
_SHUFFLE, _AUGMENT = 0, 1

_fold_in = tf.random.experimental.stateless_fold_in
_permute = tf.random.experimental.stateless_shuffle


def train_batches(
  dataset: datasets.Dataset,
  *,
  split: str,
  batch_size: int,
  image_size: int,
  seed: int,
  shuffle_buffer_size: int,
  crop_padding: int,
  start_example: int = 0,
  crop_area: tuple[float, float] = (0.08, 1.0),
  flip: bool = True,
  resize_method: str = 'bicubic',
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Returns the endless stream of augmented training batches.

  Every epoch shows each example once; batches run across the borders of epochs. With
  several processes, N examples are cut into shares of N // process_count, and the
  last N % process_count examples of the split are left out.

  Args:
    dataset: see `open_dataset`.
    split: name of the split, also part of one ('train[:90%]') for tfds data.
    batch_size: examples per step on all processes together.
    image_size: side S of the images, in pixels.
    seed: of order and augmentation.
    shuffle_buffer_size: records in a window, per process; see the module docstring.
    crop_padding: see `preprocess.random_resized_crop`.
    start_example: examples already consumed by all processes together. The stream
      continues there exactly if process_count is what it was.
    crop_area: smallest and largest part of the image's area that a crop keeps.
    flip: mirror half of the images.
    resize_method: a key of preprocess.RESIZE_METHODS.
    process_index: which process this is, below process_count.
    process_count: number of processes.

  Raises:
    UserError: the split is unknown or too small, batch_size is not divisible, another
      value is out of its range.
  """
  local_batch_size = _local_batch_size(batch_size, process_count)
  preprocess.check_resize_method(resize_method)
  if shuffle_buffer_size < 1:
    raise errors.UserError(
      f'shuffle_buffer_size {shuffle_buffer_size} is too small; allowed: 1 or more'
    )
  spans = dataset.spans(split)
  share = sum(span.take for span in spans) // process_count
  if not share:
    raise errors.UserError(
      f'split {split!r} of data set {dataset.name!r} has fewer examples than there '
      f'are processes ({process_count})'
    )
  spans = _slice(spans, process_index * share, (process_index + 1) * share)
  start = start_example // process_count

  def example(position, record):
    encoded, label = dataset.parse_fn(record)
    position = position * process_count + process_index
    seeds = tf.random.split(_fold_in(tf.constant([seed, _AUGMENT], tf.int64), position))
    image = preprocess.random_resized_crop(
      dataset.decode_fn(encoded),
      seeds[0],
      image_size,
      area_range=crop_area,
      crop_padding=crop_padding,
      method=resize_method,
    )
    if flip:
      image = preprocess.random_flip(image, seeds[1])
    return _example(image, label, mask=True)

  records = _shuffled_records(dataset, spans, seed, start, shuffle_buffer_size)
  examples = records.enumerate(start).map(example, NUM_PARALLEL_EXAMPLES)
  batches = examples.batch(local_batch_size, drop_remainder=True)
  return _with_options(batches).as_numpy_iterator()


def eval_batches(
  dataset: datasets.Dataset,
  *,
  split: str,
  batch_size: int,
  image_size: int,
  crop_padding: int,
  resize_method: str = 'bicubic',
  process_index: int = 0,
  process_count: int = 1,
) -> 'EvalBatches':
  """Returns the batches of one pass over a split, in a fixed order.

  All processes together show each example once, and each has the same number of
  batches: what is missing is filled with black images of mask False.

  Args: see `train_batches`.

  Raises:
    UserError: the split is unknown, batch_size is not divisible.
  """
  local_batch_size = _local_batch_size(batch_size, process_count)
  preprocess.check_resize_method(resize_method)
  spans = dataset.spans(split)
  total = sum(span.take for span in spans)
  # The shares of the processes differ by at most one example.
  begin = process_index * total // process_count
  end = (process_index + 1) * total // process_count
  num_batches = -(-total // batch_size)
  spans = _slice(spans, begin, end)
  files = tf.data.Dataset.from_tensor_slices(_columns(spans))

  def example(record):
    encoded, label = dataset.parse_fn(record)
    image = preprocess.center_crop_and_resize(
      dataset.decode_fn(encoded),
      image_size,
      crop_padding=crop_padding,
      method=resize_method,
    )
    return _example(image, label, mask=True)

  examples = dataset.read_fn(files).map(example, NUM_PARALLEL_EXAMPLES)
  black = tf.zeros([image_size, image_size, 3])
  padding = tf.data.Dataset.from_tensors(_example(black, 0, mask=False))
  missing = num_batches * local_batch_size - (end - begin)
  batches = examples.concatenate(padding.repeat(missing)).batch(
    local_batch_size, drop_remainder=True
  )
  return EvalBatches(_with_options(batches), num_batches)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """One pass over a split; every `iter()` starts afresh.

  Attributes:
    batches: the pass as a tf.data.Dataset.
    num_batches: its length, the same on every process.
  """

  batches: tf.data.Dataset
  num_batches: int

  def __len__(self) -> int:
    return self.num_batches

  def __iter__(self) -> Iterator[Batch]:
    return self.batches.as_numpy_iterator()


def _shuffled_records(
  dataset: datasets.Dataset,
  spans: list[datasets.Span],
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


def _columns(spans: list[datasets.Span]) -> datasets.Span:
  """Returns a Span of vectors, one element for each of `spans` (there may be none)."""
  return datasets.Span(
    path=tf.constant([span.path for span in spans], tf.string),
    skip=tf.constant([span.skip for span in spans], tf.int64),
    take=tf.constant([span.take for span in spans], tf.int64),
  )


def _slice(spans: list[datasets.Span], begin: int, end: int) -> list[datasets.Span]:
  """Returns records [begin, end) of the concatenation of `spans`."""
  result = []
  for path, skip, take in spans:
    first, last = max(begin, 0), min(end, take)
    if first < last:
      result.append(datasets.Span(path, skip + first, last - first))
    begin, end = begin - take, end - take
  return result


def _example(image: tf.Tensor, label: tf.Tensor, *, mask: bool) -> dict[str, tf.Tensor]:
  return {
    'image': preprocess.to_pixel_units(image),
    'label': tf.cast(label, tf.int32),
    'mask': tf.constant(mask),
  }


def _local_batch_size(batch_size: int, process_count: int) -> int:
  if batch_size < 1 or batch_size % process_count:
    raise errors.UserError(
      f'batch_size {batch_size} is not divisible by the number of processes; '
      f'allowed: multiples of {process_count}'
    )
  return batch_size // process_count


def _with_options(batches: tf.data.Dataset) -> tf.data.Dataset:
  options = tf.data.Options()
  options.deterministic = True
  # Its model grows with every epoch's new iterators, and the process cannot end before
  # it has been optimised: up to 40 s on small data.
  options.autotune.enabled = False
  # Examples are mapped in parallel; threads inside one op would only compete.
  options.threading.max_intra_op_parallelism = 1
  return batches.prefetch(PREFETCHED_BATCHES).with_options(options)
