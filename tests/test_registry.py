"""Tests that a section makes the right object, and that a wrong key is one line."""

import functools

import flax.linen as nn
import pytest

from advprop_jax import errors, registry


class Layer(nn.Module):
  width: int
  depth: int = 2
  num_classes: int = 3


TABLE = {
  'pair': lambda *, left, right=2, num_classes: (left, right, num_classes),
  'plain': lambda: 'made',
  'layer': functools.partial(Layer, width=5),
}


def create(section, **kwargs):
  return registry.create('section', TABLE, section, num_classes=9, **kwargs)


def test_values_come_from_the_section_the_defaults_and_the_program():
  assert create({'name': 'pair', 'left': 1}) == (1, 2, 9)
  assert create({'name': 'pair', 'left': 1, 'right': 7}) == (1, 7, 9)
  assert create({'name': 'plain'}) == 'made'  # It asks for no number of classes.
  layer = create({'name': 'layer', 'depth': 4})
  assert (layer.width, layer.depth, layer.num_classes) == (5, 4, 9)


def test_keys_that_the_caller_reads_do_not_reach_the_function():
  section = {'name': 'pair', 'left': 1, 'mood': 'x'}
  assert create(section, also=('mood',)) == (1, 2, 9)


@pytest.mark.parametrize(
  'section, message',
  [
    (
      {'name': 'pear'},
      "unknown section.name 'pear'; did you mean 'pair'. allowed: layer, pair, plain",
    ),
    (
      {'name': 'pair', 'left': 1, 'rihgt': 1},
      "unknown key 'rihgt' in section, which is 'pair'; did you mean 'right'. allowed: "
      'left, right',
    ),
    ({'name': 'pair', 'right': 1}, "has no value for 'left'; allowed: .* left$"),
    ({'name': 'plain', 'left': 1}, "'left' in section, .* allowed: none"),
    # What the program gives is no key of the section, nor is what Flax adds.
    ({'name': 'pair', 'left': 1, 'num_classes': 1}, "unknown key 'num_classes'"),
    ({'name': 'layer', 'parent': None}, "unknown key 'parent'"),
  ],
)
def test_a_wrong_section_is_one_line(section, message):
  with pytest.raises(errors.UserError, match=message) as e:
    create(section)
  assert '\n' not in str(e.value)
