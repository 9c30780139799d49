"""Tests what becomes of bad files: real ones, through the whole pipeline."""

import dataclasses
import itertools
import logging

import image_recipe
import numpy as np
import pytest
import tiny_imagenet

from advprop_jax import errors
from advprop_jax.input import bad_examples, batches, datasets, decode, order

pytestmark = pytest.mark.usefixtures('fast_compilation')  # What comes where counts.

BAD = {
  'truncated.JPEG': tiny_imagenet.truncated_jpeg(),
  'corrupt.JPEG': tiny_imagenet.corrupt_jpeg(),
  'empty.JPEG': b'',
  'huge.JPEG': tiny_imagenet.huge_jpeg(),
  'gif.JPEG': tiny_imagenet.gif(),
}
ODD = {
  'a_png.JPEG': tiny_imagenet.png(),
  'cmyk.JPEG': tiny_imagenet.jpeg(50, 40, 'CMYK'),
  'grey.JPEG': tiny_imagenet.jpeg(40, 50, 'L'),
}
NUM_GOOD = 11  # With the odd ones.


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """Two classes: good and odd images, all white bars; and bad ones."""
  root = tmp_path_factory.mktemp('images')
  for name in ('good', 'bad'):
    (root / 'train' / name).mkdir(parents=True)
  for i in range(NUM_GOOD - len(ODD)):
    (root / 'train' / 'good' / f'{i}.JPEG').write_bytes(
      tiny_imagenet.jpeg(60, 60, seed=i)
    )
  for name, encoded in ODD.items():
    (root / 'train' / 'good' / name).write_bytes(encoded)
  for name, encoded in BAD.items():
    (root / 'train' / 'bad' / name).write_bytes(encoded)
  dataset = datasets.open_dataset(f'folder:{root}')
  assert dataset.class_names == ('bad', 'good')
  return dataset


def train_stream(dataset, **options):
  defaults = dict(
    split='train',
    batch_size=4,
    image_size=16,
    seed=0,
    crop_area=(1.0, 1.0),  # The whole image: what is half there is bad.
    shuffle_window=100,
    max_bad_share=0.01,
    start_example=0,
    hosts=order.ONE_HOST,
  )
  return batches.train_batches(dataset, **image_recipe.split(defaults, options))


def eval_pass(dataset, **options):
  defaults = dict(split='train', image_size=16, hosts=order.ONE_HOST)
  return batches.eval_batches(dataset, **image_recipe.split(defaults, options))


def test_training_goes_on_without_bad_examples(dataset, caplog):
  stream = train_stream(dataset)
  batches = list(itertools.islice(stream, 8))  # Two epochs of 16 examples.
  for batch in batches:
    assert batch.keys() == {'image', 'label', 'mask'}
    assert (batch['label'] == 1).all()  # Those of class 0 are all bad.
    assert batch['mask'].all()
    assert (batch['image'].std(axis=(1, 2, 3)) > 10).all()  # None is black.
  assert stream.num_bad == 2 * len(BAD)
  for name in BAD:
    problem = decode.PROBLEMS[
      {'huge.JPEG': decode.TOO_LARGE, 'gif.JPEG': decode.OTHER}.get(name, 1)
    ]
    assert caplog.text.count(f'{name} {problem}') == 1  # Not in every epoch.
  assert not any(name in caplog.text for name in ODD)


def test_good_examples_keep_their_places(dataset):
  def images(batches):
    return np.concatenate([x['image'] for x in itertools.islice(batches, 4)])

  untouched = train_stream(dataset)
  raw_batches = [untouched._read() for _ in range(4)]
  ours, raw = images(train_stream(dataset)), images(iter(raw_batches))
  good = np.concatenate([x['problem'] for x in raw_batches]) == decode.GOOD
  assert np.count_nonzero(good) == NUM_GOOD
  np.testing.assert_array_equal(ours[good], raw[good])
  assert not raw[~good].any()


@pytest.mark.parametrize(
  'bad, num_hosts',
  [
    (BAD['huge.JPEG'], 1),
    (tiny_imagenet.png()[:8], 1),  # Quoted in TensorFlow's message, it is no text.
    (BAD['truncated.JPEG'], 2),
  ],
  ids=['huge', 'start_of_a_png', 'two_hosts'],
)
def test_one_bad_file_changes_no_other_example(tmp_path, bad, num_hosts):
  folder = tmp_path / 'train' / 'bars'
  folder.mkdir(parents=True)
  for i in range(11):
    (folder / f'{i}.JPEG').write_bytes(tiny_imagenet.jpeg(60, 60, seed=i))

  def two_epochs(encoded):
    (folder / 'one.JPEG').write_bytes(encoded)
    dataset, images, num_bad = datasets.open_dataset(f'folder:{tmp_path}'), [], 0
    for index in range(num_hosts):
      stream = train_stream(
        dataset,
        batch_size=2 * num_hosts,
        seed=3,
        crop_area=(0.9, 1.0),
        hosts=order.Hosts(index, num_hosts),
      )
      batches = itertools.islice(stream, 12 // num_hosts)
      images.extend(batch['image'] for batch in batches)
      num_bad += stream.num_bad
    return np.concatenate(images), num_bad

  expected, _ = two_epochs(tiny_imagenet.jpeg(60, 60, seed=11))
  images, num_bad = two_epochs(bad)
  different = np.flatnonzero((images != expected).any(axis=(1, 2, 3)))
  assert len(different) == num_bad == 2
  # The first batch of that process was decoded without a guard.
  assert different[0] % (24 // num_hosts) >= 2


def test_files_that_cannot_be_read_are_bad_examples(tmp_path, caplog):
  folder = tmp_path / 'train' / 'bars'
  folder.mkdir(parents=True)
  for i in range(8):
    (folder / f'{i}.JPEG').write_bytes(tiny_imagenet.jpeg(60, 60, seed=i))
  (folder / 'dangling.jpg').symlink_to(tmp_path / 'nowhere.jpg')
  (folder / 'directory.jpg').mkdir()
  dataset = datasets.open_dataset(f'folder:{tmp_path}')
  (folder / '7.JPEG').unlink()  # After it was listed.
  (batch,) = eval_pass(dataset, batch_size=10, max_bad_share=0.01)
  assert np.count_nonzero(batch['mask']) == 7
  stream = train_stream(dataset, batch_size=5)
  images = np.concatenate([x['image'] for x in itertools.islice(stream, 2)])
  assert stream.num_bad == 3 and (images.std(axis=(1, 2, 3)) > 10).all()
  for name in ('dangling.jpg', 'directory.jpg', '7.JPEG'):
    assert f'{name} cannot be decoded' in caplog.text


def test_a_resumed_stream_replaces_the_same_examples_by_the_same(dataset):
  whole = list(itertools.islice(train_stream(dataset), 6))
  rest = list(itertools.islice(train_stream(dataset, start_example=12), 3))
  for left, right in zip(whole[3:], rest, strict=True):
    np.testing.assert_array_equal(left['image'], right['image'])


def test_evaluation_counts_good_examples_only(dataset):
  batches = eval_pass(dataset, batch_size=10, max_bad_share=0.01)
  for _ in range(2):  # Every pass starts to count afresh.
    mask = np.concatenate([batch['mask'] for batch in batches])
    label = np.concatenate([batch['label'] for batch in batches])
    assert len(mask) == 20 and np.count_nonzero(mask) == NUM_GOOD
    assert (label[mask] == 1).all()


def test_too_many_bad_examples_end_the_run_with_their_number(dataset):
  with pytest.raises(errors.UserError, match='examples of .* allowed: at most 0, '):
    list(itertools.islice(train_stream(dataset, max_bad_share=0.0), 8))
  batches = eval_pass(dataset, batch_size=16, max_bad_share=0.004)
  with pytest.raises(
    errors.UserError, match='^5 of 16 examples of split .*at most 4, '
  ):
    list(batches)


def test_in_training_an_example_without_a_label_is_an_error_that_names_the_split(
  dataset,
):
  unlabelled = without_labels(dataset)
  with pytest.raises(
    errors.UserError, match="^split 'train' has examples without a la"
  ):
    next(train_stream(unlabelled))


def test_in_evaluation_examples_without_a_label_are_masked(dataset):
  (whole,) = eval_pass(without_labels(dataset), batch_size=16, max_bad_share=0.01)
  (labelled,) = eval_pass(dataset, batch_size=16, max_bad_share=0.01)
  lost = labelled['label'] == 1
  np.testing.assert_array_equal(whole['label'], np.where(lost, -1, 0))
  np.testing.assert_array_equal(whole['mask'], labelled['mask'] & ~lost)


def without_labels(dataset):
  """The same data set, with the label of its second class as large as its classes."""
  names = dataset.class_names[:1]
  return dataclasses.replace(dataset, class_names=names)


def batch(problems, start=0):
  count = len(problems)
  return {
    'image': np.arange(start, start + count),
    'label': 10 * np.arange(start, start + count),
    'mask': np.ones(count, bool),
    'problem': np.array(problems, np.int32),
    'name': np.array([b'file %d' % i for i in range(start, start + count)], object),
  }


class Stream(bad_examples.TrainBatches):
  """A training stream of these problems, again and again, resumed at a batch."""

  def __init__(self, *problems, first=0, num_epochs=1):
    size = len(problems[0])
    self._all = itertools.cycle(batch(x, size * i) for i, x in enumerate(problems))
    num_examples = size * len(problems) // num_epochs
    bad = bad_examples.BadExamples("split 'train'", num_examples, 1.0)
    super().__init__(lambda *_: self, bad)
    for _ in range(first):
      next(self._all)

  def as_numpy_iterator(self):
    return self._all


def test_the_next_good_example_of_the_batch_stands_in():
  result = next(Stream([0, 1, 1, 0, 2]))
  np.testing.assert_array_equal(result['image'], [0, 3, 3, 3, 0])
  np.testing.assert_array_equal(result['label'], [0, 30, 30, 30, 0])
  assert result.keys() == {'image', 'label', 'mask'}


def test_for_a_batch_of_bad_examples_alone_the_next_good_example_stands_in():
  problems = [1, 1, 1], [0, 1, 0], [3, 2, 1], [1, 1, 1], [1, 0, 0]
  expected = [3, 3, 3], [3, 5, 5], [13, 13, 13], [13, 13, 13], [13, 13, 14]
  for first in range(5):  # Wherever the run is resumed.
    stream = Stream(*problems, first=first)
    for i in range(first, first + 7):
      result = next(stream)
      np.testing.assert_array_equal(result['image'], expected[i % 5])
      np.testing.assert_array_equal(result['label'], np.multiply(10, expected[i % 5]))


def test_a_good_example_is_found_that_comes_first_and_in_the_next_epoch_last():
  stream = Stream([0, 1], [1, 1], [1, 1], [1, 0], num_epochs=2)
  images = [next(stream)['image'].tolist() for _ in range(4)]
  assert images == [[0, 0], [7, 7], [7, 7], [7, 7]]


def test_a_split_without_a_good_example_is_an_error():
  with pytest.raises(errors.UserError, match="none of the 4 examples of split 'train'"):
    next(Stream([1, 1], [1, 2]))


@pytest.mark.parametrize('num_examples', [1, 2, 90, 10_000])
def test_one_bad_file_ends_no_run(num_examples):
  bad = bad_examples.BadExamples('x', num_examples, 0.01)
  for _ in range(3):  # Passes, of which the bad file is the first.
    bad.add(batch([1]), 1)
    if num_examples > 1:
      bad.add(batch([0]), num_examples - 1)
  assert bad.count == 3


@pytest.mark.parametrize('num_examples, allowed', [(90, 10), (15, 7), (2000, 10)])
def test_the_share_is_judged_over_a_thousand_examples_and_never_over_half(
  num_examples, allowed
):
  bad = bad_examples.BadExamples('x', num_examples, 0.01)
  bad.add(batch([1] * allowed), allowed)
  message = f'^{allowed + 1} of {allowed + 1} .* at most {allowed}, '
  with pytest.raises(errors.UserError, match=message):
    bad.add(batch([1], allowed), 1)


def test_of_a_large_split_the_share_is_that_of_the_examples_seen():
  bad = bad_examples.BadExamples('x', 10_000, 0.01)
  bad.add(batch([1] * 10 + [0] * 40), 50)
  for i in range(1, 30):
    bad.add(batch([0] * 50, 50 * i), 50)
  bad.add(batch([1] * 5 + [0] * 45), 50)  # 15 of 1,550.
  with pytest.raises(errors.UserError, match='^16 of 1551 .* at most 15, .*=0.01'):
    bad.add(batch([1, 0]), 1)


def test_the_same_bad_examples_in_every_epoch_do_not_add_up():
  bad = bad_examples.BadExamples('x', 100, 0.002)
  for _ in range(20):
    bad.add(batch([1, 1] + [0] * 48), 50)
    bad.add(batch([0] * 50), 50)
  assert bad.count == 40
  with pytest.raises(errors.UserError, match='^3 of 50 .* at most 2, .*=0.002'):
    bad.add(batch([1, 1, 1] + [0] * 47), 50)


def test_only_the_first_bad_examples_are_named(caplog):
  caplog.set_level(logging.WARNING)
  bad = bad_examples.BadExamples("split 'train'", 100, 1.0)
  for i in range(5):
    bad.add(batch([1, 1, 1, 0], 4 * i), 4)
  named = [r.message for r in caplog.records if r.message.startswith('bad example in')]
  assert len(named) == bad_examples.NUM_NAMED
  assert named[3] == "bad example in split 'train': file 4 cannot be decoded"
  assert caplog.text.count('counted, not named') == 1
  assert bad.count == 15
