"""Tests how the labels of suites are matched to logits."""

import hashlib

import numpy as np
import pytest

from advprop_jax import errors
from advprop_jax.evaluation import label_spaces, labels

SYNSETS = labels.imagenet_synsets()
SPACES = label_spaces.LABEL_SPACES


def match(name, data_classes, model_classes=SYNSETS):
  return SPACES[name](tuple(data_classes), tuple(model_classes), data_name='x')


@pytest.mark.parametrize(
  'name, digest',
  [('imagenet_a', '973e8c3e530bf5db'), ('imagenet_r', 'a1d9a9ace3098120')],
)
def test_the_lists_are_the_published_ones(name, digest):
  indices = label_spaces._class_lists()[name]
  assert len(indices) == 200 and indices == sorted(indices)
  text = ','.join(map(str, indices))
  assert hashlib.sha256(text.encode()).hexdigest().startswith(digest)


def test_a_network_may_have_its_classes_in_any_order():
  backwards = SYNSETS[::-1]
  for name in ('imagenet_a', 'imagenet', 'several', 'objectnet'):
    if name == 'objectnet':
      classes = [f'thing_{i:03}' for i in range(313)]
      here, there = match(name, classes), match(name, classes, backwards)
      np.testing.assert_array_equal(there.columns, np.arange(1000)[::-1])
      np.testing.assert_array_equal(here.sets, there.sets)
      continue
    here, there = match(name, SYNSETS), match(name, SYNSETS, backwards)
    logit = np.arange(1000) if here.columns is None else here.columns
    np.testing.assert_array_equal(there.columns, 999 - logit)
    if here.new_labels is not None:
      np.testing.assert_array_equal(here.new_labels, there.new_labels)


def test_of_a_part_of_the_classes_all_thousand_count():
  space = match('imagenet', SYNSETS[7:9])
  assert space.columns is None and space.new_labels.tolist() == [7, 8]
  assert space.class_names == SYNSETS
  assert space.notes == ('x has 2 of the 1000 classes',)


def test_folders_with_numbers_are_no_texts():
  names = sorted(map(str, range(1000)))
  assert names[:3] == ['0', '1', '10']
  space = match('imagenet', names)
  assert space.new_labels[:3].tolist() == [0, 1, 10] and not space.notes


def test_whether_a_network_fits_is_known_before_there_are_data():
  half = SYNSETS[:500]
  for name in SPACES:
    label_spaces.check_network(name, SYNSETS)
  label_spaces.check_network('names', half)
  indices = label_spaces._class_lists()['imagenet_a']
  label_spaces.check_network('imagenet_a', tuple(SYNSETS[i] for i in indices))
  for name in ('imagenet', 'imagenet_r', 'several', 'objectnet'):
    with pytest.raises(
      errors.UserError, match='the network lacks .* of ImageNet that .* its own 500 are'
    ):
      label_spaces.check_network(name, half)


def test_objectnet_has_the_published_number_of_classes():
  space = match('objectnet', [f'thing_{i:03}' for i in range(313)])
  assert len(space.class_names) == 113 == len(space.sets)
  assert space.sets.shape[1] == 3 and (space.sets[:, 1] >= 0).sum() == 9
  assert (space.sets >= 0).sum() == 125 and (space.new_labels >= 0).sum() == 113


@pytest.mark.parametrize(
  'name, data_classes, message',
  [
    ('imagenet', ['0', '1000'], "class '1000' among numbers; allowed: 0 to 999"),
    ('imagenet', ['0', 'n01440764'], "class 'n01440764' among numbers"),
    ('imagenet', ['cat'], "does not know 1 of its 1 classes: 'cat'"),
    ('imagenet_a', ['cat'], "does not know 1 of its 1 classes: 'cat'"),
    ('imagenet_a', SYNSETS[:1], 'x has none of the 200 classes; allowed'),
    ('objectnet', ['a', 'b'], "x has 2 folders with images; allowed: ObjectNet's 313"),
    ('several', ['cat'], "does not know 1 of its 1 classes: 'cat'"),
  ],
)
def test_what_does_not_fit_is_one_line(name, data_classes, message):
  with pytest.raises(errors.UserError, match=message) as e:
    match(name, data_classes)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['imagenet', 'imagenet_a', 'objectnet', 'several'])
def test_a_network_of_other_classes_does_not_fit(name):
  classes = [f'thing_{i}' for i in range(313)] if name == 'objectnet' else SYNSETS
  with pytest.raises(errors.UserError, match='the network does not know'):
    match(name, classes, model_classes=('cat', 'dog'))
