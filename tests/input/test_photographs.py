"""Tests foolbox's photographs of ImageNet's classes against foolbox's own reader."""

import io
import pathlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from advprop_jax import errors
from advprop_jax.evaluation import labels
from advprop_jax.input import datasets
from advprop_jax.input.datasets import photographs

SIZES = {'all': 20, 'train': 10, 'test': 10}
# Seen in the pictures.
NAMES = {0: 'bull mastiff', 4: 'strawberry', 9: 'bottlecap', 16: 'dalmatian'}


def read(data_dir, split):
  """Returns {number: (encoded image, label)} of the prepared data set."""
  examples = tfds.load(
    'photographs',
    split=split,
    data_dir=data_dir,
    download=False,
    decoders={'image': tfds.decode.SkipDecoding()},
  )
  return {
    int(x['file_name'].decode().split('_')[1]): (x['image'], int(x['label']))
    for x in tfds.as_numpy(examples)
  }


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Returns a data_dir with the photographs of the package, prepared once."""
  pytest.importorskip('foolbox', reason='foolbox, of requirements-test.txt, is missing')
  data_dir = tmp_path_factory.mktemp('tensorflow_datasets')
  datasets.open_dataset('photographs', data_dir=str(data_dir))
  return str(data_dir)


def test_images_and_labels_are_those_that_foolbox_reads(data_dir):
  from foolbox import utils

  images, expected = utils._samples(
    dataset='imagenet',
    index=0,
    batchsize=20,
    shape=(512, 512),
    data_format='channels_last',
    bounds=(0, 255),
  )
  found = read(data_dir, 'all')
  assert sorted(found) == list(range(20))
  for number, (encoded, label) in found.items():
    image = Image.open(io.BytesIO(encoded)).resize((512, 512))
    np.testing.assert_array_equal(np.asarray(image, np.float32), images[number])
    assert label == expected[number]


def test_labels_are_classes_of_imagenet(data_dir):
  dataset = datasets.open_dataset('photographs', data_dir=data_dir)
  assert dataset.class_names == labels.imagenet_synsets()
  found = read(data_dir, 'all')
  names = {n: labels.display_name(dataset.class_names[found[n][1]]) for n in NAMES}
  assert names == NAMES


def test_even_numbers_are_the_training_split(data_dir):
  dataset = datasets.open_dataset('photographs', data_dir=data_dir)
  assert {split: dataset.num_examples(split) for split in SIZES} == SIZES
  assert sorted(read(data_dir, 'train')) == list(range(0, 20, 2))
  assert sorted(read(data_dir, 'test')) == list(range(1, 20, 2))


def test_a_part_of_all_is_an_error_in_one_line(data_dir):
  dataset = datasets.open_dataset('photographs', data_dir=data_dir)
  with pytest.raises(errors.UserError, match=r"^unknown split 'all\[:5\]' of [^\n]*$"):
    dataset.num_examples('all[:5]')


def test_files_are_found_without_importing_foolbox(tmp_path, monkeypatch):
  folder = tmp_path / 'foolbox' / 'data'
  folder.mkdir(parents=True)
  (tmp_path / 'foolbox' / '__init__.py').write_text('raise AssertionError')
  for name in ('imagenet_00_7', 'imagenet_01_9', 'imagenet_20_5', 'fashionMNIST_02_2'):
    (folder / f'{name}.jpg').touch()
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'foolbox', raising=False)
  found = {split: photographs.find_files(split) for split in photographs.SPLITS}
  assert found == {
    'train': [(folder / 'imagenet_00_7.jpg', 7), (folder / 'imagenet_20_5.jpg', 5)],
    'test': [(folder / 'imagenet_01_9.jpg', 9)],
  }


def test_without_foolbox_it_is_said_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'foolbox', None)  # As if it were not installed.
  with pytest.raises(errors.UserError, match='^[^\n]*pip install foolbox[^\n]*$') as e:
    datasets.open_dataset('photographs', data_dir=str(tmp_path))
  assert "pip install '.[demo]'" in str(e.value)
  assert not [x for x in pathlib.Path(tmp_path).rglob('*') if x.is_file()]
