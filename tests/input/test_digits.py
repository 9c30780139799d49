"""Tests the embedded data set against scikit-learn's own arrays."""

import hashlib
import socket

import image_recipe
import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from advprop_jax import errors
from advprop_jax.input import batches, datasets, order
from advprop_jax.input.datasets import digits

SIZES = {'train': 1437, 'test': 360}


def read(digits_dir, split):
  """Returns all images and labels of a split, as they leave the pipeline."""
  dataset = datasets.open_dataset('digits', data_dir=str(digits_dir))
  found = list(
    batches.eval_batches(
      dataset,
      split=split,
      batch_size=100,
      recipe=image_recipe.RECIPE,
      max_bad_share=0.0,
      hosts=order.ONE_HOST,
    )
  )
  images, labels, mask = (
    np.concatenate([batch[key] for batch in found])
    for key in ('image', 'label', 'mask')
  )
  return images[mask], labels[mask]


def sorted_rows(images, labels):
  rows = np.column_stack([images.reshape(len(images), -1), labels])
  return rows[np.lexsort(rows.T)]


def test_images_and_labels_are_scikit_learns_through_the_whole_pipeline(digits_dir):
  images, labels = map(
    np.concatenate, zip(*(read(digits_dir, split) for split in SIZES), strict=True)
  )
  bundle = sklearn_datasets.load_digits()
  # Bit for bit what the stored PNGs mean ...
  stored = np.round(bundle.images * 255 / 16).astype(np.uint8)
  channels = np.repeat(stored[..., np.newaxis], 3, axis=-1)
  np.testing.assert_array_equal(
    sorted_rows(images, labels), sorted_rows(channels, bundle.target)
  )
  # ... and nothing of the original is lost in storing them.
  counts = np.round(images[..., 0] / 255 * 16)
  np.testing.assert_array_equal(
    sorted_rows(counts, labels), sorted_rows(bundle.images, bundle.target)
  )


@pytest.mark.parametrize('split', SIZES)
def test_each_split_holds_its_share_of_every_class(digits_dir, split):
  _, labels = read(digits_dir, split)
  assert len(labels) == SIZES[split]
  everything = np.bincount(sklearn_datasets.load_digits().target)
  share = SIZES[split] / sum(SIZES.values())
  assert np.all(np.abs(np.bincount(labels) - share * everything) < 1)


def test_the_split_never_changes():
  # Published accuracies refer to this test split: a changed digest needs a new VERSION.
  images, labels = digits.load_split('test')
  digest = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes())
  assert digest.hexdigest()[:16] == '50633b623f555b34'


def test_preparing_is_silent_and_asks_no_network(tmp_path, monkeypatch, capfd, caplog):
  def no_network(*args, **kwargs):
    raise AssertionError('the network was used')

  monkeypatch.setattr(socket, 'socket', no_network)
  dataset = datasets.open_dataset('digits', data_dir=str(tmp_path))
  assert {split: dataset.num_examples(split) for split in SIZES} == SIZES
  assert capfd.readouterr() == ('', '')
  assert not caplog.records


def test_a_second_opening_reuses_what_is_prepared(digits_dir, monkeypatch):
  read(digits_dir, 'test')
  monkeypatch.setattr(digits, 'load_split', None)
  read(digits_dir, 'test')


def test_losing_the_race_to_prepare_is_no_error(tmp_path, monkeypatch):
  prepare = digits.Digits.download_and_prepare

  def lose(self, **kwargs):
    prepare(digits.Digits(data_dir=str(tmp_path)), **kwargs)
    raise FileExistsError('the other process was faster')

  monkeypatch.setattr(digits.Digits, 'download_and_prepare', lose)
  dataset = datasets.open_dataset('digits', data_dir=str(tmp_path))
  assert dataset.num_examples('train') == SIZES['train']


def test_an_unwritable_data_dir_is_an_error_that_names_it(tmp_path):
  (tmp_path / 'file').write_text('')
  data_dir = str(tmp_path / 'file' / 'below')
  with pytest.raises(errors.UserError, match='file/below: Not a directory; data_dir'):
    datasets.open_dataset('digits', data_dir=data_dir)
