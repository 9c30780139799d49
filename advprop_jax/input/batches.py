"""Batches of images: a training stream and evaluation passes.

A batch is a dict of numpy arrays, for this process; `batch_size` is always global:

  image  uint8 [b, S, S, 3], RGB; b = batch_size // hosts.count. Or a float type in
         [0, 1], see `pixels.py`: a quarter of the bytes to move, or no rounding
  plain_image  like `image`, if a recipe asks for it: the same without augmentation
  label  int32 [b]; in evaluation -1 for an example without one, in training an error.
         In evaluation also int32 [b, L]: several that are right, padded with -1
  mask   bool [b], False for padding, bad examples and those without a label (only ever
         in evaluation)
  position  int32 [b], in evaluation: the example's place in the whole split; -1 for
         padding

The training stream is a pure function of the seed and the position in it: the order
(see `order.py`), and the augmentation of the example at position p, drawn from
(seed, p). So a run can be resumed at any example. Hosts read disjoint, contiguous
shares of the records.

tf.data, because it decodes on all cores outside of Python's lock, and its ops are those
that the published networks were trained with.
"""

import functools

import tensorflow as tf

from advprop_jax import errors
from advprop_jax.input import (
  bad_examples,
  cores,
  datasets,
  decode,
  graph,
  order,
  preprocess,
)

# Fixed, see `_with_options`: a thread for every core, and two batches ahead.
NUM_PARALLEL_EXAMPLES = cores.count()
PREFETCHED_BATCHES = 2

# Second half of the run's seed; `order.py` draws orders with another.
_AUGMENT = 1


def train_batches(
  dataset: datasets.Dataset,
  *,
  split: str,
  batch_size: int,
  recipe: preprocess.Recipe,
  seed: int,
  shuffle_window: int,
  max_bad_share: float,
  start_example: int,
  hosts: order.Hosts,
) -> bad_examples.TrainBatches:
  """Returns the endless stream of augmented training batches.

  Every epoch shows each example once; batches run across the borders of epochs. With
  several hosts an epoch of N examples is N // hosts.count of each, and which
  N % hosts.count examples are left out changes from epoch to epoch.

  Args:
    dataset: see `open_dataset`.
    split: name of the split, also part of one ('train[:90%]') for tfds data.
    batch_size: examples per step on all hosts together.
    recipe: what is done to an image.
    seed: of order and augmentation.
    shuffle_window: records in a window, per host; see `order.py`.
    max_bad_share: of examples that cannot be decoded; more of them end the stream.
    start_example: examples already consumed by all hosts together. The stream
      continues there exactly if hosts.count is what it was.
    hosts: which process this is.

  Raises:
    UserError: the split is unknown or too small, batch_size is not divisible, another
      value is out of its range; from the iterator: too many bad examples.
  """
  local_batch_size = _local_batch_size(batch_size, hosts)
  preprocess.check_options(recipe)
  if shuffle_window < 1:
    raise errors.UserError(
      f'shuffle_window {shuffle_window} is too small; allowed: 1 or more'
    )
  spans = dataset.spans(split)
  num_records = sum(span.take for span in spans) // hosts.count
  if not num_records:
    raise errors.UserError(
      f'split {split!r} of data set {dataset.name!r} has fewer examples than there '
      f'are processes ({hosts.count})'
    )
  spans = order.share(spans, hosts)
  start = start_example // hosts.count

  @tf.autograph.experimental.do_not_convert
  def example(position, record, guard):
    position = position * hosts.count + hosts.index
    example_seed = tf.random.experimental.stateless_fold_in(
      tf.constant([seed, _AUGMENT], tf.int64), position
    )
    crop_seed, flip_seed, augment_seed = tf.unstack(tf.random.split(example_seed, 3))
    box_fn = functools.partial(
      preprocess.random_crop_box,
      seed=crop_seed,
      image_size=recipe.image_size,
      area_range=recipe.crop_area,
      crop_padding=recipe.crop_padding,
    )

    def finish(crop):
      image = preprocess.resize(crop, recipe.image_size, recipe.resize_method)
      if recipe.augment_fn is not None:
        image = preprocess.to_bytes(image)
      else:
        image = preprocess.to_dtype(image, recipe.image_dtype)
      if recipe.flip:  # Bytes, if it may be: the fewer the faster.
        image = preprocess.random_flip(image, flip_seed)
      plain = preprocess.to_dtype(image, recipe.image_dtype)
      if recipe.augment_fn is not None:
        image = recipe.augment_fn(image, augment_seed)
        image = preprocess.to_dtype(image, recipe.image_dtype)
      views = {'image': image}
      return {**views, preprocess.PLAIN_IMAGE: plain} if recipe.plain_image else views

    return _example(dataset, record, recipe, box_fn, finish, guard)

  def open_at(num_batches, guard):
    first = start + num_batches * local_batch_size
    shuffled = order.shuffled(
      dataset,
      spans,
      num_records=num_records,
      seed=seed,
      start=first,
      window_size=shuffle_window,
    )
    example_fn = functools.partial(example, guard=guard)
    examples = shuffled.enumerate(first).map(example_fn, NUM_PARALLEL_EXAMPLES)
    return _with_options(examples.batch(local_batch_size, drop_remainder=True))

  return bad_examples.TrainBatches(
    open_at, bad_examples.BadExamples(f'split {split!r}', num_records, max_bad_share)
  )


def eval_batches(
  dataset: datasets.Dataset,
  *,
  split: str,
  batch_size: int,
  recipe: preprocess.Recipe,
  max_bad_share: float,
  hosts: order.Hosts,
) -> bad_examples.EvalBatches:
  """Returns the batches of one pass over a split, in a fixed order.

  All hosts together show each example once, and each has the same number of batches:
  what is missing is filled with black images of mask False.

  Args: see `train_batches`.

  Raises:
    UserError: the split is unknown, batch_size is not divisible; from the iterator: too
      many bad examples.
  """
  local_batch_size = _local_batch_size(batch_size, hosts)
  preprocess.check_options(recipe)
  spans = dataset.spans(split)
  num_records = sum(span.take for span in spans)
  num_batches = -(-num_records // batch_size)
  first = hosts.index * num_records // hosts.count  # As `order.share` has it.
  spans = order.share(spans, hosts)
  num_examples = sum(span.take for span in spans)

  def box_fn(shape):
    if not recipe.resize:
      return tf.concat([[0, 0], shape[:2]], axis=0)
    border = tf.minimum(recipe.border, (shape[:2] - 1) // 2)  # Something is left.
    box = preprocess.center_crop_box(
      shape[:2] - 2 * border, recipe.image_size, recipe.crop_padding
    )
    return box + tf.concat([border, [0, 0]], axis=0)

  size = recipe.image_size

  def finish(crop):
    image = preprocess.resize(crop, size, recipe.resize_method)
    values = {'image': preprocess.to_dtype(image, recipe.image_dtype)}
    if not recipe.resize:
      has_size = tf.reduce_all(tf.shape(crop)[:2] == size)
      values['problem'] = tf.where(has_size, decode.GOOD, decode.OTHER_SIZE)
    return values

  @tf.autograph.experimental.do_not_convert
  def example(position, record):
    values = _example(dataset, record, recipe, box_fn, finish)
    return {**values, 'position': tf.cast(position, tf.int32)}

  def padding(label_shape):
    return {
      'image': tf.zeros([size, size, 3], recipe.image_dtype),
      'label': tf.zeros(label_shape, tf.int32),
      'mask': tf.constant(False),
      'position': tf.constant(-1),
      'problem': tf.constant(decode.GOOD),
      'name': tf.constant(''),
    }

  missing = num_batches * local_batch_size - num_examples

  def create():
    examples = order.in_order(dataset, spans).enumerate(first)
    examples = examples.map(example, NUM_PARALLEL_EXAMPLES)
    label_shape = examples.element_spec['label'].shape
    filled = tf.data.Dataset.from_tensors(padding(label_shape)).repeat(missing)
    examples = examples.concatenate(filled)
    return _with_options(examples.batch(local_batch_size, drop_remainder=True))

  return bad_examples.EvalBatches(
    create,
    num_batches,
    functools.partial(
      bad_examples.BadExamples, f'split {split!r}', num_examples, max_bad_share
    ),
  )


def _example(dataset, record, recipe, box_fn, finish, guard=True):
  """Returns a record as an element of a batch, and what is wrong with it."""
  encoded, label, name = dataset.parse_fn(record)
  if dataset.load_fn is not None:
    # What cannot be read is like an empty file: it cannot be decoded.
    load_fn = dataset.load_fn
    encoded = graph.or_else(load_fn, encoded, '') if guard else load_fn(encoded)
  crop, problem = decode.decode_crop(
    encoded,
    box_fn,
    max_megapixels=recipe.max_megapixels,
    exif_orientation=recipe.exif_orientation,
    guard=guard,
  )
  is_label = (label >= 0) & (label < dataset.num_classes)
  values = finish(crop)
  # Of what cannot be decoded, that is the problem.
  problem = tf.where(problem == decode.GOOD, values.pop('problem', problem), problem)
  return {
    **values,
    'label': tf.cast(tf.where(is_label, label, -1), tf.int32),
    'mask': tf.constant(True),
    'problem': problem,
    'name': name,
  }


def _local_batch_size(batch_size: int, hosts: order.Hosts) -> int:
  if batch_size < 1 or batch_size % hosts.count:
    raise errors.UserError(
      f'batch_size {batch_size} is not divisible by the number of processes; '
      f'allowed: multiples of {hosts.count}'
    )
  return batch_size // hosts.count


def _with_options(batches: tf.data.Dataset) -> tf.data.Dataset:
  options = tf.data.Options()
  options.deterministic = True
  # Its model grows with every epoch's new iterators, and the process cannot end before
  # it has been optimised: up to 40 s on small data.
  options.autotune.enabled = False
  # Examples are mapped in parallel; threads inside one op would only compete.
  options.threading.max_intra_op_parallelism = 1
  return batches.prefetch(PREFETCHED_BATCHES).with_options(options)
