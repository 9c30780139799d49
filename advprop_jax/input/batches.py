"""Batches of images: a training stream and evaluation passes.

A batch is a dict of numpy arrays, for this process; `batch_size` is always global:

  image  uint8 [b, S, S, 3], RGB; b = batch_size // process_count. Or a float type in
         [0, 1], see `pixels.py`: a quarter of the bytes to move, or no rounding
  label  int32 [b]
  mask   bool [b], False for padding and bad examples (only ever in evaluation)

The training stream is a pure function of the seed and the position in it: the order
(see `order.py`), and the augmentation of the example at position p, drawn from
(seed, p). So a run can be resumed at any example. Processes read disjoint, contiguous
shares of the records.

tf.data, because it decodes on all cores outside of Python's lock, and its ops are those
that the published networks were trained with.
"""

import functools
import os
from collections.abc import Callable

import tensorflow as tf

from advprop_jax import errors
from advprop_jax.input import bad_examples, datasets, decode, order, preprocess

# Fixed, see `_with_options`: a thread for every core, and two batches ahead.
NUM_PARALLEL_EXAMPLES = os.cpu_count() or 1
PREFETCHED_BATCHES = 2

# Second half of the run's seed; `order.py` draws orders with another.
_AUGMENT = 1


def train_batches(
  dataset: datasets.Dataset,
  *,
  split: str,
  batch_size: int,
  image_size: int,
  seed: int,
  shuffle_window: int,
  crop_padding: int,
  start_example: int = 0,
  crop_area: tuple[float, float] = (0.08, 1.0),
  flip: bool = True,
  augment_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
  resize_method: str = 'bicubic_tf1',
  image_dtype: str = 'uint8',
  max_bad_share: float = 0.01,
  process_index: int = 0,
  process_count: int = 1,
) -> bad_examples.TrainBatches:
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
    shuffle_window: records in a window, per process; see `order.py`.
    crop_padding: see `preprocess.center_crop_box`.
    start_example: examples already consumed by all processes together. The stream
      continues there exactly if process_count is what it was.
    crop_area: smallest and largest part of the image's area that a crop keeps.
    flip: mirror half of the images.
    augment_fn: (uint8 [S, S, 3], seed) -> uint8 [S, S, 3], after crop and flip.
    resize_method: a key of preprocess.RESIZE_METHODS.
    image_dtype: one of preprocess.IMAGE_DTYPES.
    max_bad_share: of examples that cannot be decoded; more of them end the stream.
    process_index: which process this is, below process_count.
    process_count: number of processes.

  Raises:
    UserError: the split is unknown or too small, batch_size is not divisible, another
      value is out of its range; from the iterator: too many bad examples.
  """
  local_batch_size = _local_batch_size(batch_size, process_count)
  preprocess.check_options(resize_method, image_dtype)
  if shuffle_window < 1:
    raise errors.UserError(
      f'shuffle_window {shuffle_window} is too small; allowed: 1 or more'
    )
  spans = dataset.spans(split)
  share = sum(span.take for span in spans) // process_count
  if not share:
    raise errors.UserError(
      f'split {split!r} of data set {dataset.name!r} has fewer examples than there '
      f'are processes ({process_count})'
    )
  spans = order.cut(spans, process_index * share, (process_index + 1) * share)
  start = start_example // process_count

  def example(position, record, guard):
    position = position * process_count + process_index
    example_seed = tf.random.experimental.stateless_fold_in(
      tf.constant([seed, _AUGMENT], tf.int64), position
    )
    crop_seed, flip_seed, augment_seed = tf.unstack(tf.random.split(example_seed, 3))
    box_fn = functools.partial(
      preprocess.random_crop_box,
      seed=crop_seed,
      image_size=image_size,
      area_range=crop_area,
      crop_padding=crop_padding,
    )

    def finish(crop):
      image = preprocess.resize(crop, image_size, resize_method)
      if augment_fn is not None:
        image = preprocess.to_bytes(image)
      else:
        image = preprocess.to_dtype(image, image_dtype)
      if flip:  # Bytes, if it may be: the fewer the faster.
        image = preprocess.random_flip(image, flip_seed)
      if augment_fn is not None:
        image = preprocess.to_dtype(augment_fn(image, augment_seed), image_dtype)
      return image

    return _example(dataset, record, box_fn, finish, guard)

  def open_at(num_batches, guard):
    first = start + num_batches * local_batch_size
    shuffled = order.shuffled(
      dataset, spans, seed=seed, start=first, window_size=shuffle_window
    )
    example_fn = functools.partial(example, guard=guard)
    examples = shuffled.enumerate(first).map(example_fn, NUM_PARALLEL_EXAMPLES)
    return _with_options(examples.batch(local_batch_size, drop_remainder=True))

  return bad_examples.TrainBatches(
    open_at, bad_examples.BadExamples(f'split {split!r}', share, max_bad_share)
  )


def eval_batches(
  dataset: datasets.Dataset,
  *,
  split: str,
  batch_size: int,
  image_size: int,
  crop_padding: int,
  resize_method: str = 'bicubic_tf1',
  image_dtype: str = 'uint8',
  max_bad_share: float = 0.01,
  process_index: int = 0,
  process_count: int = 1,
) -> bad_examples.EvalBatches:
  """Returns the batches of one pass over a split, in a fixed order.

  All processes together show each example once, and each has the same number of
  batches: what is missing is filled with black images of mask False.

  Args: see `train_batches`.

  Raises:
    UserError: the split is unknown, batch_size is not divisible; from the iterator: too
      many bad examples.
  """
  local_batch_size = _local_batch_size(batch_size, process_count)
  preprocess.check_options(resize_method, image_dtype)
  spans = dataset.spans(split)
  total = sum(span.take for span in spans)
  # The shares of the processes differ by at most one example.
  begin = process_index * total // process_count
  end = (process_index + 1) * total // process_count
  num_batches = -(-total // batch_size)
  spans = order.cut(spans, begin, end)

  def box_fn(shape):
    return preprocess.center_crop_box(shape, image_size, crop_padding)

  def finish(crop):
    image = preprocess.resize(crop, image_size, resize_method)
    return preprocess.to_dtype(image, image_dtype)

  examples = order.in_order(dataset, spans).map(
    lambda record: _example(dataset, record, box_fn, finish), NUM_PARALLEL_EXAMPLES
  )
  padding = {
    'image': tf.zeros([image_size, image_size, 3], image_dtype),
    'label': tf.constant(0),
    'mask': tf.constant(False),
    'problem': tf.constant(decode.GOOD),
    'name': tf.constant(''),
  }
  missing = num_batches * local_batch_size - (end - begin)
  padding = tf.data.Dataset.from_tensors(padding).repeat(missing)
  batches = examples.concatenate(padding).batch(local_batch_size, drop_remainder=True)
  return bad_examples.EvalBatches(
    _with_options(batches),
    num_batches,
    functools.partial(
      bad_examples.BadExamples, f'split {split!r}', end - begin, max_bad_share
    ),
  )


def _example(dataset, record, box_fn, finish, guard=True):
  """Returns a record as an element of a batch, and what is wrong with it."""
  encoded, label, name = dataset.parse_fn(record)
  crop, problem = decode.decode_crop(encoded, box_fn, guard=guard)
  return {
    'image': finish(crop),
    'label': tf.cast(label, tf.int32),
    'mask': tf.constant(True),
    'problem': problem,
    'name': name,
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
