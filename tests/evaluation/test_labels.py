"""Tests that classes are told apart by their names."""

import pytest

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
