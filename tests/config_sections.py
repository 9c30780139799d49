"""The named sections of configs/default.py, by the place they may stand in."""

from configs import default

SECTIONS = {
  'model': [default.EFFICIENTNET, default.RESNET],
  'method': [default.STREAMS, default.FAST_ADVPROP],
  'attack': [
    default.PGD,
    default.IFGSM,
    default.FGSM,
    default.GD,
    default.PGD_L2,
    default.PGD_SAT,
  ],
  'eval.attack': [
    default.PGD_EVAL,
    *(
      {key: x for key, x in section.items() if key != 'statistics'}
      for section in (default.IFGSM, default.FGSM, default.GD, default.PGD_L2)
    ),
  ],
  'data.augmentation': [
    default.NO_AUGMENTATION,
    default.AUTOAUGMENT,
    default.RANDAUGMENT,
    default.COLOR_JITTER,
  ],
  'optim.optimizer': [default.RMSPROP, default.SGD],
  'optim.schedule': [default.STAIRCASE, default.COSINE, default.MILESTONES],
}


def leaves(section, place=''):
  """Yields the keys of all values, and the values."""
  for name, value in section.items():
    key = f'{place}.{name}' if place else name
    if hasattr(value, 'items'):
      yield from leaves(value, key)
    else:
      yield key, value
