"""The config of an earlier run, `--config=runs/trial/config.json`, to be changed again.

`main.py` hands this file the text of the JSON. Keys that are younger than the run have
their default values.
"""

import json

from configs import default


def get_config(text: str):
  """Returns the config that a JSON object holds.

  Args:
    text: the contents of a `config.json`.
  """
  config = default.get_config().unlock()
  for name, value in _tuples(json.loads(text)).items():
    if name in ('data', 'optim', 'eval', 'checkpoint') and isinstance(value, dict):
      for key, x in value.items():
        _put(config[name], key, x)
    else:
      _put(config, name, value)
  return config.lock()


def _put(section, key, value):
  try:
    section[key] = value
  except TypeError:  # As ConfigDict calls a number in the place of a section.
    raise ValueError(
      f'{key} of the config.json is {value!r}; allowed: as a run writes it'
    ) from None


def _tuples(value):
  """Returns a value of JSON with tuples for its lists, as configs have them."""
  if isinstance(value, dict):
    return {key: _tuples(x) for key, x in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
