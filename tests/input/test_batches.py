"""Tests the training stream, evaluation passes and every way to name a data set."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import image_recipe
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tiny_imagenet

from advprop_jax import errors
from advprop_jax.input import augment, batches, datasets, decode, order

pytestmark = pytest.mark.usefixtures('fast_compilation')


def numbered(*file_sizes):
  """A data set in memory: its labels count through the records of all its files."""
  starts = np.cumsum((0, *file_sizes))
  spans = [
    datasets.Span(str(start), 0, size)
    for start, size in zip(starts, file_sizes, strict=False)
  ]

  def read_file(span):
    start = tf.strings.to_number(span.path, tf.int64) + span.skip
    return tf.data.Dataset.range(start, start + span.take).map(tf.strings.as_string)

  return datasets.Dataset(
    name='numbered',
    class_names=tuple(map(str, range(sum(file_sizes)))),
    spans_fn={'train': spans}.get,
    read_fn=lambda spans: spans.flat_map(read_file),
    parse_fn=functools.partial(parse, np.zeros([1, 1, 3])),
  )


def parse(image, record):
  """Gives every record the same image."""
  encoded = tf.io.encode_png(tf.constant(image, tf.uint8))
  return encoded, tf.strings.to_number(record, tf.int64), record


def noisy(dataset):
  """The same data set with one 32x32 image of noise for every example."""
  noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
  return dataclasses.replace(dataset, parse_fn=functools.partial(parse, noise))


def train_stream(dataset, **options):
  defaults = dict(
    split='train',
    batch_size=1,
    seed=0,
    shuffle_window=1000,
    max_bad_share=0.01,
    start_example=0,
    hosts=order.ONE_HOST,
  )
  return batches.train_batches(dataset, **image_recipe.split(defaults, options))


def take(dataset, num_batches, **kwargs):
  """Returns `num_batches` of the stream, concatenated."""
  batches = list(itertools.islice(train_stream(dataset, **kwargs), num_batches))
  return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def eval_pass(dataset, **options):
  defaults = dict(split='train', batch_size=4, max_bad_share=0.01, hosts=order.ONE_HOST)
  return batches.eval_batches(dataset, **image_recipe.split(defaults, options))


def assert_equal_batches(left, right):
  assert left.keys() == right.keys()
  for key in left:
    np.testing.assert_array_equal(left[key], right[key])


@pytest.fixture
def optimized(fast_compilation):
  """Leaves TensorFlow's graph optimizations in: where pixels have to be another's."""
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False})


@pytest.fixture
def undecoded(monkeypatch):
  """Makes every image one white pixel: to build the decoder takes most of a second."""

  def decode_crop(encoded, box_fn, **kwargs):
    return tf.fill([1, 1, 3], tf.constant(255, tf.uint8)), tf.constant(decode.GOOD)

  monkeypatch.setattr(decode, 'decode_crop', decode_crop)


@pytest.fixture(scope='module')
def digits(digits_dir):
  return datasets.open_dataset('digits', data_dir=str(digits_dir))


@pytest.fixture(scope='module')
def sharded_digits(tmp_path_factory):
  """The digits in seven files, as large data sets are."""
  data_dir = str(tmp_path_factory.mktemp('sharded'))
  config = tfds.download.DownloadConfig(num_shards=7)
  tfds.builder('digits', data_dir=data_dir).download_and_prepare(download_config=config)
  dataset = datasets.open_dataset('digits', data_dir=data_dir)
  assert len(dataset.spans('train')) == 7
  return dataset


@pytest.mark.parametrize('num_hosts, batch_size', [(1, 4), (1, 7), (3, 6), (2, 10)])
def test_evaluation_says_which_example_of_the_split_each_one_is(
  num_hosts, batch_size, undecoded
):
  found = []
  for index in range(num_hosts):
    hosts = order.Hosts(index, num_hosts)
    for batch in eval_pass(numbered(5, 9, 9), batch_size=batch_size, hosts=hosts):
      np.testing.assert_array_equal(batch['position'] >= 0, batch['mask'])
      found += batch['position'][batch['mask']].tolist()
      np.testing.assert_array_equal(
        batch['label'][batch['mask']], batch['position'][batch['mask']]
      )
  assert sorted(found) == list(range(23))


# What a data set says of itself.


def test_labels_are_mapped_by_name(digits):
  names = ('ten', *'9876543210')
  mapped = digits.with_labels(np.arange(10, 0, -1), names)
  assert mapped.class_names == names and mapped.num_classes == 11
  (theirs,) = eval_pass(digits, split='test[:40]', batch_size=40)
  (ours,) = eval_pass(mapped, split='test[:40]', batch_size=40)
  np.testing.assert_array_equal(ours['label'], 10 - theirs['label'])


def test_labels_outside_of_the_range_stay_outside(undecoded):
  dataset = dataclasses.replace(numbered(5), class_names=('a', 'b', 'c'))
  mapped = dataset.with_labels(np.array([2, 1, 0]), ('c', 'b', 'a'))
  (batch,) = eval_pass(mapped, batch_size=5)
  assert batch['label'].tolist() == [2, 1, 0, -1, -1]
  assert batch['mask'].tolist() == [True] * 3 + [False] * 2


def write_images(root, sizes):
  for path, size in sizes.items():
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))


@pytest.mark.parametrize(
  'sizes, expected',
  [
    ({'train/a/3.png': 5}, '3 files then, 4 now'),
    (
      {'train/a/1.png': 20, 'train/b/2.png': 10},
      'same names of files, but other sizes',
    ),
    ({'test/a/1.png': 20}, None),  # Another split.
  ],
)
def test_a_folder_that_has_changed_is_told(tmp_path, sizes, expected):
  write_images(tmp_path, {'train/a/0.png': 1, 'train/a/1.png': 10, 'train/b/2.png': 20})
  before = datasets.open_dataset(f'folder:{tmp_path}').fingerprint('train')
  write_images(tmp_path, sizes)
  now = datasets.open_dataset(f'folder:{tmp_path}').fingerprint('train')
  found = datasets.describe_change(json.loads(json.dumps(before)), now)
  assert expected in found if expected else found is None


def test_a_renamed_file_is_told_and_a_moved_folder_is_not(tmp_path):
  write_images(tmp_path / 'x', {'train/a/0.png': 1, 'train/a/1.png': 10})
  before = datasets.open_dataset(f'folder:{tmp_path}/x').fingerprint('train')
  (tmp_path / 'x').rename(tmp_path / 'y')
  dataset = datasets.open_dataset(f'folder:{tmp_path}/y')
  assert dataset.fingerprint('train') == before
  (tmp_path / 'y/train/a/1.png').rename(tmp_path / 'y/train/a/2.png')
  now = datasets.open_dataset(f'folder:{tmp_path}/y').fingerprint('train')
  assert 'other names' in datasets.describe_change(before, now)


def test_the_fingerprint_of_prepared_data_has_its_slice(digits, sharded_digits):
  whole = digits.fingerprint('train')
  assert whole == digits.fingerprint('train') and whole['num_examples'] == 1437
  part = digits.fingerprint('train[:99]')
  assert datasets.describe_change(whole, part) == '1437 images then, 99 now'
  other = sharded_digits.fingerprint('train')
  assert datasets.describe_change(whole, other) == '1 files then, 7 now'


# The training stream.


@pytest.mark.parametrize('window', [1, 7, 1000])
@pytest.mark.parametrize('file_sizes', [(23,), (5, 1, 8, 9), (1,) * 23])
def test_every_epoch_shows_every_example_once(file_sizes, window, undecoded):
  labels = take(numbered(*file_sizes), 23, batch_size=3, shuffle_window=window)['label']
  for epoch in labels.reshape(3, 23):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(23))


def test_epochs_and_seeds_differ_in_order(undecoded):
  dataset = numbered(50, 50)
  orders = [
    take(dataset, 4, batch_size=50, seed=seed)['label'] for seed in (0, 2**40, -1)
  ]
  epochs = [tuple(epoch) for order in orders for epoch in order.reshape(2, 100)]
  assert len(set(epochs)) == 6


def test_every_example_may_come_at_every_place_of_its_window(undecoded):
  labels = take(numbered(25, 25), 40, batch_size=50)['label'].reshape(40, 50)
  places = np.argsort(labels, axis=1)  # Of example i in epoch e: uniform in 0..49.
  four_sigma = 4 * np.sqrt(50**2 / 12 / 40)
  assert np.abs(places.mean(axis=0) - 24.5).max() < four_sigma
  assert np.all(np.ptp(places, axis=0) > 35)


def test_files_meet_in_windows_in_every_combination(undecoded):
  dataset = numbered(*[10] * 4)
  labels = take(dataset, 80, batch_size=20, shuffle_window=20)['label']
  pairs = {tuple(np.unique(window // 10)) for window in labels.reshape(80, 20)}
  assert pairs == set(itertools.combinations(range(4), 2))


def test_files_read_ahead_come_in_their_order(sharded_digits):
  spans = sharded_digits.spans('train')[::-1]
  records = list(order.in_order(sharded_digits, spans).as_numpy_iterator())
  one_by_one = tf.data.TFRecordDataset([span.path for span in spans])
  assert records == list(one_by_one.as_numpy_iterator())
  assert len(records) == 1437


def test_the_same_seed_gives_bit_identical_batches(digits):
  options = dict(batch_size=100, seed=3, shuffle_window=500)
  assert_equal_batches(take(digits, 16, **options), take(digits, 16, **options))


@pytest.mark.parametrize('window', [1, 10, 1000])
def test_the_stream_can_be_entered_at_any_position(window, undecoded):
  dataset = numbered(5, 1, 8, 9)
  whole = take(dataset, 70, shuffle_window=window)['label']
  for start in (1, 10, 22, 23, 46):
    labels = take(dataset, 23, shuffle_window=window, start_example=start)['label']
    np.testing.assert_array_equal(labels, whole[start : start + 23])


def test_a_resumed_stream_repeats_the_augmentation():
  def replace(image, seed):  # By noise.
    noise = tf.random.stateless_uniform(image.shape, seed, 0, 256, tf.int32)
    return tf.cast(noise, tf.uint8)

  options = dict(batch_size=5, augment_fn=replace, crop_area=(1.0, 1.0), flip=False)
  whole = take(noisy(numbered(23)), 9, **options)
  assert len(np.unique(whole['image'].reshape(45, -1), axis=0)) == 45
  rest = take(noisy(numbered(23)), 4, start_example=25, **options)
  assert_equal_batches(rest, {key: values[25:] for key, values in whole.items()})


def test_a_resumed_stream_is_bit_identical(sharded_digits):
  options = dict(batch_size=100, image_size=12, shuffle_window=300)
  whole = take(sharded_digits, 32, **options)
  for start in (100, 1400, 2900):  # 14.37 batches an epoch.
    rest = take(sharded_digits, 3, start_example=start, **options)
    expected = {key: values[start : start + 300] for key, values in whole.items()}
    assert_equal_batches(rest, expected)


def test_a_stream_far_ahead_starts_at_once(undecoded):
  batch = take(numbered(10, 10), 1, start_example=20 * 10**12 + 3, batch_size=40)
  assert len(batch['label']) == 40


def test_files_that_are_skipped_are_not_opened(tmp_path, undecoded):
  spans = []
  for i in range(6):
    spans.append(datasets.Span(str(tmp_path / str(i)), 0, 10))
    with tf.io.TFRecordWriter(spans[-1].path) as writer:
      for _ in range(10):
        writer.write(str(i).encode())
  dataset = dataclasses.replace(
    numbered(),
    class_names=tuple('012345'),
    spans_fn=lambda split: spans,
    read_fn=lambda spans: spans.flat_map(lambda s: tf.data.TFRecordDataset(s.path)),
  )
  whole = take(dataset, 60, shuffle_window=20)['label']
  for skipped in np.unique(whole[:40]):
    (tmp_path / str(skipped)).unlink()
  rest = take(dataset, 20, shuffle_window=20, start_example=40)['label']
  np.testing.assert_array_equal(rest, whole[40:])


def test_examples_that_are_skipped_are_not_decoded(tmp_path):
  (tmp_path / 'train' / 'a').mkdir(parents=True)
  for i in range(10):
    PIL.Image.new('L', (8, 8), i).save(tmp_path / 'train' / 'a' / f'{i}.png')
  dataset = datasets.open_dataset(f'folder:{tmp_path}')
  whole = take(dataset, 10)['image']
  for skipped in whole[:6, 0, 0, 0]:
    (tmp_path / 'train' / 'a' / f'{skipped}.png').unlink()
  rest = take(dataset, 4, start_example=6)['image']
  np.testing.assert_array_equal(rest, whole[6:])


def test_training_images_are_made_by_the_official_code_s_ops(imagenet_dir, optimized):
  """Crop, TensorFlow 1's resize, flip, bytes without fractions, AutoAugment."""
  dataset = datasets.open_dataset('imagenet2012', data_dir=str(imagenet_dir))
  options = dict(batch_size=24, image_size=96, seed=5, shuffle_window=24)
  options |= dict(split='train[:24]', crop_padding=32, start_example=24)
  batch = take(dataset, 1, augment_fn=augment.autoaugment, **options)
  plain = take(dataset, 1, **options)
  spans = dataset.spans('train[:24]')
  stream = order.shuffled(
    dataset, spans, num_records=24, seed=5, start=24, window_size=24
  )
  v1, flips = tf.compat.v1, 0
  for i, record in enumerate(stream.take(24).as_numpy_iterator()):
    example = tf.train.Example.FromString(record)
    (jpeg,) = example.features.feature['image'].bytes_list.value
    seed = tf.random.experimental.stateless_fold_in(
      tf.constant([5, 1], tf.int64), tf.constant(24 + i, tf.int64)
    )
    seeds = tf.unstack(tf.random.split(seed, 3))
    shape = tf.io.extract_jpeg_shape(jpeg)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape,
      tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
      seed=seeds[0],
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
    )
    box = [*begin[:2].numpy(), *size[:2].numpy()]
    height, width = shape.numpy()[:2]
    if box[2:] == [height, width]:
      side = int(96 / 128 * min(height, width))
      box = [(height - side + 1) // 2, (width - side + 1) // 2, side, side]
    crop = tf.image.decode_and_crop_jpeg(jpeg, box, channels=3)
    resized = v1.image.resize_bicubic(crop[np.newaxis], [96, 96])[0]
    flipped = tf.image.stateless_random_flip_left_right(resized, seeds[1])
    flips += np.any(flipped != resized)
    levels = np.clip(flipped, 0, 255)
    np.testing.assert_allclose(plain['image'][i], levels, atol=0.5001)
    augmented = augment.autoaugment(tf.constant(levels.astype(np.uint8)), seeds[2])
    np.testing.assert_array_equal(batch['image'][i], augmented)
    assert batch['label'][i] == example.features.feature['label'].int64_list.value[0]
  assert 5 < flips < 19


def test_a_shard_that_is_gone_or_broken_is_an_error_in_one_line(
  tmp_path, digits, digits_dir
):
  """And the process can end: threads that read ahead must not outlive it."""
  for what in ('gone', 'broken'):
    shutil.copytree(digits_dir, tmp_path / what)
  code = """
import os, sys
import tensorflow as tf
from image_recipe import RECIPE
from advprop_jax import errors
from advprop_jax.input import batches, datasets, decode, order
decode.decode_crop = lambda *_, **__: (tf.zeros([1, 1, 3], tf.uint8), tf.constant(0))
for what in ('gone', 'broken'):
  dataset = datasets.open_dataset('digits', data_dir=f'{sys.argv[1]}/{what}')
  (span,) = dataset.spans('train')
  if what == 'gone':
    os.remove(span.path)
  else:
    with open(span.path, 'r+b') as f:
      f.seek(500); f.write(b'wrong bytes')
  stream = batches.train_batches(dataset, split='train', batch_size=4,
                                 recipe=RECIPE, seed=0, shuffle_window=50,
                                 max_bad_share=0,
                                 start_example=0, hosts=order.ONE_HOST)
  try:
    next(stream)
  except errors.UserError as e:
    print(e)
"""
  tests = pathlib.Path(__file__).parent.parent
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': f'{tests}:{tests.parent}'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  gone, broken = done.stdout.splitlines()
  assert gone.startswith('cannot read the data: NotFoundError: ')
  assert broken.startswith('cannot read the data: DataLossError: ')
  assert '{{' not in gone + broken and '[Op' not in gone + broken
  assert 'digits-train.tfrecord' in gone and done.returncode == 0


def test_augmentation_is_drawn_anew_for_every_position():
  images = take(noisy(numbered(1)), 50)['image']
  assert len(np.unique(images.reshape(50, -1), axis=0)) > 45  # Whole images may repeat.


def test_without_crop_and_flip_training_images_are_the_originals(digits):
  # No crop of the whole area has another shape than the image: all are fall-backs.
  options = dict(split='train[:400]', batch_size=400)
  train = take(digits, 1, crop_area=(1.0, 1.0), flip=False, **options)['image']
  (original,) = eval_pass(digits, **options)
  rows, expected = (x.reshape(400, -1) for x in (train, original['image']))
  np.testing.assert_array_equal(
    rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)]
  )


# Several processes.


@pytest.mark.parametrize('num_hosts', [2, 4])  # They leave out 1 and 3.
def test_hosts_share_each_epoch_and_leave_out_others_each_time(num_hosts, undecoded):
  share, rest = divmod(23, num_hosts)
  num_epochs = share + 1  # So many records has a host that leaves out one.

  def stream(index, num_epochs, start_epoch=0):
    labels = take(
      numbered(5, 1, 8, 9),
      num_epochs * share,
      batch_size=num_hosts,
      hosts=order.Hosts(index, num_hosts),
      shuffle_window=6,
      start_example=start_epoch * share * num_hosts,
    )['label']
    return labels.reshape(num_epochs, share)

  streams = [stream(index, num_epochs) for index in range(num_hosts)]
  left_out = []
  for epoch in np.concatenate(streams, axis=1):
    assert len(np.unique(epoch)) == share * num_hosts
    left_out.extend(set(range(23)) - set(epoch))
  # Each record of a host with one more, once.
  assert len(left_out) == rest * num_epochs == len(set(left_out))
  for index, whole in enumerate(streams):
    np.testing.assert_array_equal(stream(index, 2, start_epoch=3), whole[3:5])


def test_a_process_resumes_its_own_stream(sharded_digits):
  options = dict(batch_size=100, hosts=order.Hosts(1, 2), crop_area=(0.2, 1))
  whole = take(sharded_digits, 17, **options)
  rest = take(sharded_digits, 2, start_example=1500, **options)
  assert_equal_batches(rest, {key: values[-100:] for key, values in whole.items()})


def test_processes_augment_differently():
  images = [
    take(noisy(numbered(2)), 20, batch_size=2, hosts=order.Hosts(i, 2))
    for i in range(2)
  ]
  images = np.concatenate([batch['image'] for batch in images])
  assert len(np.unique(images.reshape(40, -1), axis=0)) > 35


# Evaluation.


def test_evaluation_images_are_those_of_tensorflow_1(imagenet_dir, optimized):
  """With the official code's ops and crop, for images of every shape and colour."""
  dataset = datasets.open_dataset('imagenet2012', data_dir=str(imagenet_dir))
  options = dict(split='train[:24]', batch_size=24, image_size=224, crop_padding=32)
  (batch,) = eval_pass(dataset, image_dtype='float32', **options)
  record_batch = next(
    order.in_order(dataset, dataset.spans('train[:24]')).batch(24).as_numpy_iterator()
  )
  channels = set()
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    encoded = v1.placeholder(tf.string)
    shape = v1.image.extract_jpeg_shape(encoded)
    box = v1.placeholder(tf.int32, [4])
    crop = v1.image.decode_and_crop_jpeg(encoded, box, channels=3)
    image = v1.image.resize_bicubic([crop], [224, 224])[0]
    for record, found in zip(record_batch, batch['image'], strict=True):
      example = tf.train.Example.FromString(record)
      (jpeg,) = example.features.feature['image'].bytes_list.value
      height, width, c = session.run(shape, {encoded: jpeg})
      side = int(0.875 * min(height, width))
      at = [(height - side + 1) // 2, (width - side + 1) // 2, side, side]
      expected = session.run(image, {encoded: jpeg, box: at}).clip(0, 255) / 255
      np.testing.assert_allclose(found, expected, atol=1e-6)
      channels.add(c)
  assert channels == {1, 3, 4}
  # In other types: the nearest of 256 levels, and of 8 significant bits.
  (levels,) = eval_pass(dataset, **options)
  np.testing.assert_allclose(levels['image'], batch['image'] * 255, atol=0.5001)
  (short,) = eval_pass(dataset, image_dtype='bfloat16', **options)
  assert short['image'].dtype.name == 'bfloat16'
  np.testing.assert_allclose(np.float32(short['image']), batch['image'], rtol=2**-8)


@pytest.mark.parametrize(
  'num_examples, batch_size, num_hosts',
  [
    (1, 4, 4),
    (1, 24, 1),
    (23, 12, 2),
    (23, 4, 4),
    (23, 24, 1),
    (24, 12, 4),
    (24, 4, 2),
  ],
)
def test_evaluation_counts_every_example_once(
  num_examples, batch_size, num_hosts, undecoded
):
  seen, lengths = [], set()
  for index in range(num_hosts):
    batches = eval_pass(
      numbered(*[2] * (num_examples // 2), num_examples % 2),
      batch_size=batch_size,
      hosts=order.Hosts(index, num_hosts),
    )
    lengths |= {len(batches), len(list(batches))}
    for batch in batches:
      assert batch['label'].shape == (batch_size // num_hosts,)
      assert not batch['image'][~batch['mask']].any()
      seen.extend(batch['label'][batch['mask']])
  assert lengths == {-(-num_examples // batch_size)}
  np.testing.assert_array_equal(seen, np.arange(num_examples))  # In order, too.


def test_an_evaluation_can_be_repeated(digits):
  batches = eval_pass(digits, split='test', batch_size=100)
  for left, right in zip(batches, batches, strict=True):
    assert_equal_batches(left, right)
  assert sum(batch['mask'].sum() for batch in batches) == 360


def test_batches_have_the_promised_shapes_and_types(digits):
  options = dict(batch_size=6, image_size=16, hosts=order.Hosts(0, 2))
  batches = [
    next(train_stream(digits, **options)),
    next(iter(eval_pass(digits, split='test', **options))),
  ]
  position = batches[1].pop('position')
  assert position.tolist() == [0, 1, 2] and position.dtype == np.int32
  for batch in batches:
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      'image': ((3, 16, 16, 3), 'uint8'),
      'label': ((3,), 'int32'),
      'mask': ((3,), 'bool'),
    }


# Names.


def test_a_part_of_a_split_is_a_split(digits):
  assert digits.num_examples('train[:10%]') == 144
  assert digits.num_examples('train[:10%]') + digits.num_examples('train[10%:]') == 1437
  assert len(eval_pass(digits, split='test[50:62]')) == 3


@pytest.fixture
def folder(tmp_path):
  """A user's own images: of several sizes, formats and colour models."""
  colors = {'cat': (255, 0, 0), 'dog': (0, 0, 255)}
  sizes = [(9, 9), (20, 30), (31, 17)]
  kinds = [('jpg', 'RGB'), ('png', 'RGB'), ('png', 'RGBA'), ('JPEG', 'RGB')]
  for split in ('train', 'val'):
    for name, color in colors.items():
      path = tmp_path / split / name
      path.mkdir(parents=True)
      for i, (size, (suffix, mode)) in enumerate(itertools.product(sizes, kinds)):
        image = PIL.Image.new('RGB', size, color)
        image.convert(mode).save(path / f'{i}.{suffix}')
  (tmp_path / 'train' / 'dog' / 'notes.txt').write_text('no image')
  (tmp_path / 'annotations' / 'xml').mkdir(parents=True)
  return tmp_path


def test_a_folder_of_images_is_a_data_set(folder):
  dataset = datasets.open_dataset(f'folder:{folder}')
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.num_examples('train') == 24
  for batch in (take(dataset, 24), *eval_pass(dataset, split='val', batch_size=24)):
    assert np.bincount(batch['label']).tolist() == [12, 12]
    expected = 255 * np.eye(3)[2 * batch['label']]  # Red cats, blue dogs.
    error = np.abs(batch['image'] - expected[:, np.newaxis, np.newaxis])
    assert error.max() <= 4  # JPEG.


def test_every_colour_model_becomes_rgb(tmp_path):
  values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
  image, modes = PIL.Image.fromarray(values), ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')
  for mode in modes:  # Each in a class of its own, which says where it is.
    (tmp_path / 'train' / mode).mkdir(parents=True)
    image.convert(mode).save(tmp_path / 'train' / mode / 'image.png')
  dataset = datasets.open_dataset(f'folder:{tmp_path}')
  assert dataset.class_names == modes
  (batch,) = eval_pass(dataset, batch_size=6)
  assert sorted(batch['label']) == list(range(6))
  for label, found in zip(batch['label'], batch['image'], strict=True):
    expected = np.asarray(image.convert(modes[label]).convert('RGB'))
    np.testing.assert_array_equal(found, expected, modes[label])


def test_files_that_are_no_images_by_name_are_counted_in_a_note(folder):
  for name in ('a.tif', 'b.TIF', 'c.heic', 'README'):
    (folder / 'train' / 'cat' / name).touch()
  dataset = datasets.open_dataset(f'folder:{folder}')
  (note,) = dataset.notes
  assert '5 files are passed over' in note and '(2 .tif, ' in note
  assert '1 .heic' in note and '1 no ending' in note and '\n' not in note
  assert 'train/cat/' in note and 'magick mogrify' in note
  (folder / 'train' / 'dog' / 'notes.txt').unlink()
  for name in ('a.tif', 'b.TIF', 'c.heic', 'README'):
    (folder / 'train' / 'cat' / name).unlink()
  clean = datasets.open_dataset(f'folder:{folder}')
  assert not clean.notes and clean.spans('train') == dataset.spans('train')


def test_a_split_that_lacks_a_class_is_named_in_a_note(folder):
  (folder / 'train' / 'dog' / 'notes.txt').unlink()
  shutil.rmtree(folder / 'val' / 'dog')
  dataset = datasets.open_dataset(f'folder:{folder}')
  assert dataset.class_names == ('cat', 'dog')
  assert "split 'val' has no image of 1 of the 2 classes: dog" in dataset.notes[0]


def test_hidden_files_and_folders_are_never_data(folder):
  before = datasets.open_dataset(f'folder:{folder}')
  for path in (
    'train/.cache/z.jpg',
    '.git/x/y.jpg',
    'train/cat/._0.jpg',
    'val/.x/.y.png',
  ):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b'x')
  (folder / 'train' / 'cat' / '.DS_Store').touch()
  after = datasets.open_dataset(f'folder:{folder}')
  assert after.class_names == ('cat', 'dog') and after.notes == before.notes
  for split in ('train', 'val'):
    assert after.spans(split) == before.spans(split)
  with pytest.raises(errors.UserError, match='allowed: train, val$'):
    after.spans('.git')


def test_every_usual_name_of_an_image_is_read(tmp_path):
  (tmp_path / 'train' / 'a').mkdir(parents=True)
  image = PIL.Image.new('RGB', (9, 9), (255, 0, 0))
  suffixes = ('jpg', 'JPG', 'jfif', 'jpe', 'png', 'bmp', 'webp')
  for suffix in suffixes:
    kind = suffix.upper() if suffix in ('png', 'bmp', 'webp') else 'JPEG'
    image.save(tmp_path / 'train' / 'a' / f'{suffix}.{suffix}', kind)
  dataset = datasets.open_dataset(f'folder:{tmp_path}')
  (batch,) = eval_pass(dataset, batch_size=len(suffixes))
  assert batch['mask'].all() and batch['image'][..., 0].min() > 250


@pytest.mark.parametrize(
  'split, expected',
  [
    ('train[:75%]', slice(0, 18)),
    ('train[75%:]', slice(18, 24)),
    ('train[5:7]', slice(5, 7)),
    ('train[-3:]', slice(21, 24)),
  ],
)
def test_a_folder_takes_slices(split, expected, folder):
  dataset = datasets.open_dataset(f'folder:{folder}')
  assert dataset.spans(split) == dataset.spans('train')[expected]
  assert dataset.fingerprint(split)['num_files'] == dataset.num_examples(split)


def test_a_folder_is_the_same_however_its_path_is_spelt(folder, monkeypatch):
  monkeypatch.chdir(folder.parent)
  spellings = [
    folder,
    folder.name,
    f'./{folder.name}',
    f'{folder.parent}//{folder.name}/',
  ]
  found = [datasets.open_dataset(f'folder:{x}').fingerprint('train') for x in spellings]
  assert all(x == found[0] for x in found[1:])


def test_slices_of_a_folder_add_up(folder):
  dataset = datasets.open_dataset(f'folder:{folder}')
  both = dataset.spans('train[:2]+val[:1]')
  assert both == dataset.spans('train')[:2] + dataset.spans('val')[:1]
  for wrong in ('train[5', 'trian', 'train[:900]', 'train[a:b]', ''):
    with pytest.raises(errors.UserError, match='unknown split .*allowed: train, val$'):
      dataset.spans(wrong)


def test_a_share_of_a_folder_is_held_out_by_name(tmp_path):
  def paths(split):
    opened = datasets.open_dataset(f'folder:{tmp_path}', holdout_share=0.25)
    return {span.path for span in opened.spans(split)}

  for i in range(200):
    path = tmp_path / 'train' / f'class{i % 2}' / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  everything = datasets.open_dataset(f'folder:{tmp_path}').spans('train')
  rest, held = paths('train'), paths('holdout')
  assert rest | held == {span.path for span in everything} and not rest & held
  assert 35 <= len(held) <= 65
  # The same for ever: by this definition, whatever else comes or goes.
  for path in rest | held:
    name = '/'.join(path.split('/')[-2:])
    first = hashlib.sha256(name.encode()).hexdigest()[:2]
    assert (path in held) == (int(first, 16) < 64)
  for i in range(0, 200, 3):
    (tmp_path / 'train' / f'class{i % 2}' / f'{i}.png').unlink()
    (tmp_path / 'train' / f'class{i % 2}' / f'new{i}.png').touch()
  assert not paths('train') & held and not paths('holdout') & rest


@pytest.mark.parametrize(
  'splits, share, message',
  [
    (('train', 'holdout'), 0.5, "has the splits holdout, train; .*none called 'hold"),
    (('val',), 0.5, "has the splits val; allowed: 0, or a folder with a split 'train'"),
    (('train',), 1e-9, "split 'holdout' of .* none of the 1 images"),
    (('train',), 1.0, "split 'train' of .* none of the 1 images"),
  ],
)
def test_what_cannot_be_held_out_is_one_line(splits, share, message, tmp_path):
  for split in splits:
    (tmp_path / split / 'a').mkdir(parents=True)
    (tmp_path / split / 'a' / '0.png').touch()
  with pytest.raises(errors.UserError, match=message) as e:
    datasets.open_dataset(f'folder:{tmp_path}', holdout_share=share)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'name, share, is_seen',
  [
    ('folder:a', 0.2, True),
    ('folder:a', 0.1, False),
    ('folder:./a/', 0.2, True),
    ('folder:b/../a', 0.2, True),
    ('folder:b', 0.2, False),
    ('a', 0.2, False),
  ],
)
def test_a_larger_share_of_the_same_folder_holds_out_seen_images(name, share, is_seen):
  before = {'name': 'folder:a', 'holdout_share': 0.1}
  now = {'name': name, 'holdout_share': share}
  assert datasets.holds_out_seen_images(before, now) == is_seen
  # Older configs have no such share.
  assert datasets.holds_out_seen_images({'name': 'folder:a'}, now) == (
    is_seen or (name, share) == ('folder:a', 0.1)
  )


def test_prepared_data_hold_nothing_out(digits_dir):
  with pytest.raises(
    errors.UserError, match=r'is no folder; allowed: 0, .*train\[:90%'
  ):
    datasets.open_dataset('digits', data_dir=str(digits_dir), holdout_share=0.1)


def test_folder_images_are_listed_in_the_same_order_every_time(folder):
  names = [datasets.open_dataset(f'folder:{folder}').spans('train') for _ in range(2)]
  assert names[0] == names[1]
  half = [span.path.split('/')[-2] for span in names[0][:12]]
  assert set(half) == {'cat', 'dog'}  # A process's share is not one class.


# Bad input.


def assert_user_error(call, *fragments):
  with pytest.raises(errors.UserError) as raised:
    call()
  message = str(raised.value)
  assert '\n' not in message
  for fragment in fragments:
    assert fragment in message, message


@pytest.mark.parametrize(
  'name, fragments',
  [
    (
      'imagnet2012',
      ["unknown data set 'imagnet2012'", 'imagenet2012', 'folder:<path>'],
    ),
    ('digit', ['nearest names: digits']),
    ('qqqqqq', ['nearest names: none']),
    ('huggingface:mnist', ['unknown', 'nearest names: mnist']),
    ('cifar10_corrupted/brightnes_1', ['brightnes_1 not found', 'brightness_1']),
    ('two words', ['cannot open data set', 'two words']),
    ('', ["cannot open data set ''"]),
  ],
)
def test_an_unknown_name_is_an_error_that_lists_the_nearest(tmp_path, name, fragments):
  assert_user_error(
    lambda: datasets.open_dataset(name, data_dir=str(tmp_path)), *fragments
  )


@pytest.mark.parametrize('name', ['imagenet2012', 'mnist'])
def test_data_that_are_not_prepared_are_an_error_that_tells_the_command(tmp_path, name):
  with pytest.raises(errors.UserError) as raised:
    datasets.open_dataset(name, data_dir=str(tmp_path))
  message = str(raised.value)
  assert '\n' not in message
  assert message.startswith(f'data set {name!r} is not prepared in {tmp_path}; ')
  archives = (
    'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (image-net.org, after '
    f'registration) into {tmp_path}/downloads/manual and prepare it with: '
  )
  assert (archives in message) == (name == 'imagenet2012')
  assert f'tfds build {name} --data_dir={tmp_path})' in message
  assert not list(tmp_path.iterdir())  # Nothing was begun.


def test_the_command_that_the_error_tells_prepares_imagenet(tmp_path):
  tiny_imagenet.write_archives(tmp_path / 'downloads' / 'manual')
  with pytest.raises(errors.UserError) as raised:
    datasets.open_dataset('imagenet2012', data_dir=str(tmp_path))
  command = re.search(r'with: (.* -c ".*?") ', str(raised.value)).group(1)
  subprocess.run(command, shell=True, check=True, capture_output=True)
  dataset = datasets.open_dataset('imagenet2012', data_dir=str(tmp_path))
  assert dataset.num_classes == 1000
  assert dataset.num_examples('train') == 8 * tiny_imagenet.TRAIN_IMAGES_PER_CLASS


def test_a_data_dir_may_lie_in_the_home(digits_dir, monkeypatch):
  monkeypatch.setenv('HOME', str(digits_dir.parent))
  data_dir = f'~/{digits_dir.name}'
  dataset = datasets.open_dataset('digits', data_dir=data_dir)
  assert dataset.spans('test')[0].path.startswith(str(digits_dir))


def test_a_data_dir_that_is_a_file_is_an_error_that_names_it(tmp_path):
  (tmp_path / 'file').write_text('')
  assert_user_error(
    lambda: datasets.open_dataset('mnist', data_dir=str(tmp_path / 'file')),
    f"data_dir '{tmp_path / 'file'}' is not a readable folder",
  )


class Unlabelled(tfds.core.GeneratorBasedBuilder):
  """One image, and nothing to learn from it."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'image': tfds.features.Image(), 'caption': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    yield 0, {'image': np.zeros([2, 2, 3], np.uint8), 'caption': 'black'}


def test_data_without_labels_are_an_error_that_lists_the_features(tmp_path):
  tfds.builder('unlabelled', data_dir=str(tmp_path)).download_and_prepare()
  assert_user_error(
    lambda: datasets.open_dataset('unlabelled', data_dir=str(tmp_path)),
    "'unlabelled' needs the features image: Image(uint8) and label: ClassLabel",
    'caption',
  )


def test_another_file_format_is_an_error_that_names_it(tmp_path):
  datasets.open_dataset('digits', data_dir=str(tmp_path))
  (info,) = tmp_path.glob('digits/*/dataset_info.json')
  info.write_text(info.read_text().replace('tfrecord', 'array_record'))
  assert_user_error(
    lambda: datasets.open_dataset('digits', data_dir=str(tmp_path)),
    'stored as array_record; allowed: tfrecord, the default',
  )


@pytest.mark.parametrize('split', ['validation', 'train[', '', 'train[5000:]'])
def test_an_unknown_split_is_an_error_that_lists_the_known(digits, split):
  for stream in (train_stream, eval_pass):
    assert_user_error(
      lambda stream=stream: stream(digits, split=split),
      f"unknown split {split!r} of data set 'digits'; allowed: test, train",
    )


def test_an_empty_split_is_an_error(digits):
  assert_user_error(lambda: train_stream(digits, split='train[5:5]'), 'is empty')


def test_an_evaluation_split_a_folder_lacks_is_an_error(folder):
  dataset = datasets.open_dataset(f'folder:{folder}')
  assert_user_error(
    lambda: eval_pass(dataset, split='test'), "'test'", 'allowed: train, val'
  )


@pytest.mark.parametrize(
  'files, message',
  [
    ([], 'no class folders'),
    (['cat/1.jpg'], 'no class folders'),
    (['train/1.jpg'], 'no class folders'),
    (['train/cat/1.gif'], 'no images in its class folders'),
  ],
)
def test_a_folder_of_another_shape_is_an_error_that_shows_the_right_one(
  tmp_path, files, message
):
  for file in files:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
  assert_user_error(
    lambda: datasets.open_dataset(f'folder:{tmp_path}'),
    message,
    f'expected {tmp_path}/<split>/<class>/*.jpg',
  )


@pytest.mark.parametrize('name', ['nowhere', 'file'])
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, name):
  (tmp_path / 'file').touch()
  assert_user_error(
    lambda: datasets.open_dataset(f'folder:{tmp_path / name}'),
    f"cannot read folder '{tmp_path / name}'",
  )


def test_a_file_name_that_is_no_text_is_an_error(folder):
  (folder / 'train' / 'cat' / os.fsdecode(b'caf\xe9.jpg')).touch()
  assert_user_error(
    lambda: datasets.open_dataset(f'folder:{folder}'), 'is not UTF-8', "b'caf\\xe9.jpg'"
  )


@pytest.mark.parametrize('batch_size', [0, 3, -2])
def test_a_batch_that_does_not_divide_is_an_error(digits, batch_size):
  for stream in (train_stream, eval_pass):
    assert_user_error(
      lambda stream=stream: stream(
        digits, batch_size=batch_size, hosts=order.Hosts(0, 2)
      ),
      f'batch_size {batch_size} ',
      'multiples of 2',
    )


def test_more_processes_than_examples_are_an_error():
  assert_user_error(
    lambda: train_stream(numbered(3), batch_size=4, hosts=order.Hosts(0, 4)),
    'fewer examples than there are processes (4)',
  )


def test_an_unknown_resize_method_is_an_error(digits):
  for stream in (train_stream, eval_pass):
    assert_user_error(
      lambda stream=stream: stream(digits, resize_method='cubic'), 'bicubic'
    )


def test_a_window_without_records_is_an_error(digits):
  assert_user_error(lambda: train_stream(digits, shuffle_window=0), 'shuffle_window 0')
