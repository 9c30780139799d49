"""Tests that classes are told apart by their names, and how people call them."""

import pathlib
import re
import tomllib

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.siscore import labels as siscore_labels

from advprop_jax import errors
from advprop_jax.evaluation import labels

MODEL = ('cat', 'dog', 'flower', 'tree')


@pytest.mark.parametrize(
  'data, expected',
  [
    (('tree', 'flower', 'dog', 'cat'), [3, 2, 1, 0]),
    (('dog', 'tree'), [1, 3]),
    (('flower',), [2]),
  ],
)
def test_names_in_another_order_or_fewer_are_found(data, expected):
  found = labels.columns(data, MODEL, data_name='x')
  assert found.tolist() == expected and found.dtype == 'int32'


def test_the_same_names_need_no_mapping():
  assert labels.columns(MODEL, MODEL, data_name='x') is None


def test_unknown_names_are_listed():
  with pytest.raises(
    errors.UserError,
    match="^folder:x is another data set: .* 2 of its 3 .*: 'bird', 'fish'; .*'flower'",
  ):
    labels.columns(('bird', 'cat', 'fish'), MODEL, data_name='folder:x')
  names = tuple(map(str, range(1000)))
  with pytest.raises(errors.UserError, match="'9', ...; allowed") as e:
    labels.columns(names, MODEL, data_name='x')
  assert len(str(e.value)) < 300


def test_imagenet_has_its_thousand_classes_in_the_order_of_tensorflow_datasets():
  synsets = labels.imagenet_synsets()
  assert len(synsets) == 1000 and list(synsets) == sorted(set(synsets))
  file = tfds.core.tfds_path('datasets/imagenet2012/labels.txt')
  assert list(synsets) == file.read_text().split()


def test_names_of_imagenet_are_those_of_tensorflow_datasets():
  """SI-Score has ImageNet's names in label order, and says which crane is meant."""
  names = [
    re.sub(r'^crane \((bird|machine)\)$', 'crane', name)
    for name in siscore_labels.IMAGENET_LABELS_LIST
  ]
  assert list(labels._imagenet_names().values()) == names


@pytest.mark.parametrize(
  'class_name, name',
  [
    ('n01440764', 'tench'),
    ('n15075141', 'toilet tissue'),
    ('n02012849', 'crane'),  # The bird.
    ('n03126707', 'crane'),  # The machine.
    ('n03710637', 'maillot'),
    ('n03710721', 'maillot'),
    ('n00001740', 'n00001740'),  # WordNet's entity, no class of ImageNet.
    ('7', '7'),
    ('T-shirt/top', 'T-shirt/top'),
    ('crane, of Lego', 'crane, of Lego'),
  ],
)
def test_only_classes_of_imagenet_have_another_name_for_display(class_name, name):
  assert labels.display_name(class_name) == name


def test_the_names_and_their_licence_are_parts_of_the_package():
  root = pathlib.Path(__file__).parents[2]
  table = tomllib.loads((root / 'pyproject.toml').read_text())
  shipped = table['tool']['setuptools']['package-data']['advprop_jax.evaluation']
  files = (root / 'advprop_jax' / 'evaluation').iterdir()
  assert set(shipped) == {x.name for x in files if x.suffix not in ('.py', '')}
