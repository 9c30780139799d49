"""The named sections of configs/default.py, by the place they may stand in."""

from configs import default

SECTIONS = {
  'model': [default.EFFICIENTNET],
  'attack': [default.PGD],
  'eval.attack': [default.PGD_EVAL],
  'data.augmentation': [
    default.NO_AUGMENTATION,
    default.AUTOAUGMENT,
    default.RANDAUGMENT,
  ],
  'optim.optimizer': [default.RMSPROP, default.SGD],
  'optim.schedule': [default.STAIRCASE, default.COSINE],
}


def leaves(section, place=''):
  """Yields the keys of all values, and the values."""
  for name, value in section.items():
    key = f'{place}.{name}' if place else name
    if hasattr(value, 'items'):
      yield from leaves(value, key)
    else:
      yield key, value
