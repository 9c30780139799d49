"""Tests that every value of a config has a type and a range, and the right ones."""

import json
import math

import ml_collections
import pytest
from config_sections import SECTIONS, leaves

from advprop_jax import errors, schema
from configs import default, saved


def all_keys():
  """Returns the keys of the whole config, whichever kind its sections are of."""
  keys = {key for key, _ in leaves(default.get_config())} - {'streams'}
  listed = [x for kinds in SECTIONS.values() for x in kinds]
  named = [x for x in vars(default).values() if isinstance(x, dict) and 'name' in x]
  # A new section of default.py must be listed above.
  assert all(x in [*listed, default.CLEAN, default.ADV] for x in named)
  for place, kinds in SECTIONS.items():
    keys |= {key for section in kinds for key, _ in leaves(section, place)}
  return keys | {f'streams.{key}' for key in default.CLEAN if key != 'attack'}


def test_every_value_has_a_type_and_every_type_a_value():
  assert all_keys() == schema.VALUES.keys()


def test_the_defaults_are_in_range():
  config = default.get_config()
  assert schema.read(config) == config.to_dict()


RANGES = [key for key, x in schema.VALUES.items() if isinstance(x, schema.Range)]
KINDS = [key for key in schema.VALUES if key not in RANGES]


def check(key, value):
  place, _, name = key.rpartition('.')
  schema.check_section(place, {name: value})


@pytest.mark.parametrize('key', sorted(RANGES))
def test_what_lies_beside_the_range_or_is_no_number_is_one_line(key):
  allowed = schema.VALUES[key]
  wrong = [math.nan, math.inf, 'imagenet', None, True, '0.5']
  if allowed.low > -math.inf:
    wrong.append(math.nextafter(allowed.low, -math.inf))
  if allowed.high < math.inf:
    wrong.append(math.nextafter(allowed.high, math.inf))
  if allowed.integer:
    wrong.append(allowed.low + 1.0)
  wrong = [(x,) * allowed.length if allowed.length else x for x in wrong]
  if allowed.length:
    wrong += [0.5, '(0.5, 0.5)', (0.5,), [0.5] * allowed.length]
  for value in wrong:
    with pytest.raises(errors.UserError, match=f'^{key} is .*; allowed: ') as e:
      check(key, value)
    assert '\n' not in str(e.value)
  for value in (max(allowed.low, -(10**9)), min(allowed.high, 10**9)):
    check(key, (value,) * allowed.length if allowed.length else value)


@pytest.mark.parametrize('key', sorted(KINDS))
def test_a_value_of_another_type_is_one_line(key):
  right = {schema.TEXT: 'a', schema.FLAG: True, schema.NAMES: ('a', 'b')}
  right |= {schema.EPOCHS: (1.0, 2.0), schema.PHASES: ({},)}
  right |= {schema.RADII: right[schema.EPOCHS]}
  allowed = schema.VALUES[key]
  check(key, right[allowed])
  for value in [
    0.5,
    1,
    None,
    ('a', 1),
    *(x for x in right.values() if x != right[allowed]),
  ]:
    with pytest.raises(
      errors.UserError, match=f'^{key} is .*; allowed: {allowed}'[:20]
    ):
      check(key, value)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda c: c['data'].pop('name'), 'the config has no data.name; allowed'),
    (lambda c: c.pop('eval'), 'the config has no eval.attack'),
    (lambda c: c['data'].update(nam='x'), 'unknown config key data.nam; did you mean'),
    (lambda c: c.update(model='resnet'), "model is 'resnet'; allowed: a section"),
    (lambda c: c.update(attack=None), 'attack is None; allowed: a section'),
    (lambda c: c['model'].update(mean='imagenet'), 'model.mean is .*; allowed: 3 num'),
    (lambda c: c.update(num_epochs=math.inf), 'num_epochs is inf; .* more than 0, fin'),
    (lambda c: c['data'].update(image_size=224.0), 'image_size is 224.0; .* whole'),
  ],
)
def test_a_config_that_is_incomplete_or_wrong_is_one_line(change, message):
  config = json.loads(json.dumps(default.get_config().to_dict()))
  change(config)
  with pytest.raises(errors.UserError, match=message) as e:
    schema.read(config)
  assert '\n' not in str(e.value)


def test_what_json_makes_of_a_config_reads_as_the_config():
  config = default.get_config()
  loaded = json.loads(json.dumps(config.to_dict()))
  for form in (config, config.to_dict(), loaded, ml_collections.ConfigDict(loaded)):
    read = schema.read(form)
    assert read == config.to_dict() and type(read.data.crop_area) is tuple
    assert all(type(stream) is schema.Section for stream in read.streams)
  assert schema.read(read) == read


def test_an_older_config_is_completed_and_a_wrong_one_refused():
  values = default.get_config().to_dict()
  del values['data']['class_names'], values['checkpoint']
  values['optim']['schedule'] = default.COSINE
  config = saved.get_config(json.dumps(values))
  assert config.data.class_names == () and config.checkpoint.keep_last == 2
  assert config.optim.schedule.to_dict() == default.COSINE
  assert config.is_locked
