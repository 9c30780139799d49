"""Tests that every number of a config has a range, and that it is the right one."""

import math

import pytest

from advprop_jax import errors, schema
from configs import default


def numbers(section, place=''):
  """Yields the keys of all numbers and tuples of numbers."""
  for name, value in section.items():
    key = f'{place}.{name}' if place else name
    if hasattr(value, 'items'):
      yield from numbers(value, key)
    elif isinstance(value, tuple) and all(isinstance(x, int | float) for x in value):
      yield key
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield key


def all_numbers():
  """Returns the keys of the whole config, whichever kind its sections are of."""
  keys = set(numbers(default.get_config()))
  sections = {
    'model': [default.EFFICIENTNET],
    'attack': [default.PGD],
    'eval.attack': [default.PGD_EVAL],
    'data.augmentation': [default.RANDAUGMENT],
    'optim.optimizer': [default.RMSPROP, default.SGD],
    'optim.schedule': [default.STAIRCASE, default.COSINE],
  }
  listed = [x for kinds in sections.values() for x in kinds]
  named = [x for x in vars(default).values() if isinstance(x, dict) and 'name' in x]
  streams = [default.CLEAN, default.ADV]
  without_numbers = [default.NO_AUGMENTATION, default.AUTOAUGMENT]
  # A new section of default.py must be listed above.
  assert all(x in listed + streams + without_numbers for x in named)
  for place, kinds in sections.items():
    keys |= {key for section in kinds for key in numbers(section, place)}
  return keys


def test_every_number_has_a_range_and_every_range_a_number():
  assert all_numbers() == schema.RANGES.keys()


def test_the_defaults_are_in_range():
  schema.check(default.get_config().to_dict())


@pytest.mark.parametrize('key', sorted(schema.RANGES))
def test_what_lies_beside_the_range_is_one_line(key):
  allowed = schema.RANGES[key]
  place, _, name = key.rpartition('.')
  wrong = [math.nan, math.inf]
  if allowed.low > -math.inf:
    wrong.append(math.nextafter(allowed.low, -math.inf))
  if allowed.high < math.inf:
    wrong.append(math.nextafter(allowed.high, math.inf))
  for value in wrong:
    given = (value,) * allowed.length if allowed.length else value
    with pytest.raises(errors.UserError, match=f'^{key} is .*; allowed: ') as e:
      schema.check_section(place, {name: given})
    assert '\n' not in str(e.value)
  for value in (max(allowed.low, -1e9), min(allowed.high, 1e9)):
    given = (value,) * allowed.length if allowed.length else value
    schema.check_section(place, {name: given})
