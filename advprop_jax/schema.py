"""Which numbers a config may hold: the range of every one of them, in one table."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from advprop_jax import errors

_TINY = float(np.finfo(np.float32).tiny)  # The least that is more than 0.


class Range(NamedTuple):
  """The numbers from low to high, both included."""

  low: float
  high: float = math.inf
  length: int | None = None  # Of a tuple of such numbers.
  note: str = ''  # What the user may have meant.

  def check(self, key: str, value):
    """Raises UserError unless a value, or each of a tuple, is a number in the range."""
    values = value if isinstance(value, tuple | list) else [value]
    if self.length is not None and len(values) != self.length:
      raise errors.UserError(f'{key} is {value}; allowed: {self.length} numbers')
    for x in values:
      if not (self.low <= x <= self.high and math.isfinite(x)):
        raise errors.UserError(f'{key} is {value}; allowed: {self}{self.note}')

  def __str__(self):
    if self.low == -math.inf:
      return 'finite numbers'
    if self.low == _TINY:
      return 'more than 0' + ('' if self.high == math.inf else f', up to {self.high}')
    return f'{self.low} ' + (
      'or more, finite' if self.high == math.inf else f'to {self.high}'
    )


POSITIVE = Range(_TINY)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1)
PIXELS = Range(0, 1, note=", in units of pixels in [0, 1]: the papers' 8 is 8 / 255")

ATTACK = {
  'epsilon': PIXELS,
  'step_size': PIXELS,
  'num_steps': NOT_NEGATIVE,
  'prob_start_from_clean': SHARE,
}
# Sections are listed with the keys of all their kinds.
RANGES = {
  'seed': Range(0, 2**31 - 1),
  'num_epochs': POSITIVE,
  'log_every_steps': COUNT,
  'data.image_size': COUNT,
  'data.batch_size': COUNT,
  'data.eval_batch_size': COUNT,
  'data.shuffle_window': COUNT,
  'data.crop_area': Range(_TINY, 1, length=2),
  'data.crop_padding': NOT_NEGATIVE,
  'data.max_bad_share': SHARE,
  'data.augmentation.num_layers': COUNT,
  'data.augmentation.magnitude': NOT_NEGATIVE,
  'model.drop_connect_rate': SHARE,
  'model.mean': Range(-math.inf, length=3),
  'model.std': Range(_TINY, length=3),
  'model.bn_momentum': SHARE,
  **{f'attack.{key}': x for key, x in ATTACK.items()},
  'optim.optimizer.momentum': SHARE,
  'optim.optimizer.decay': SHARE,
  'optim.optimizer.epsilon': POSITIVE,
  'optim.optimizer.weight_decay': NOT_NEGATIVE,
  'optim.schedule.learning_rate': NOT_NEGATIVE,
  'optim.schedule.warmup_epochs': NOT_NEGATIVE,
  'optim.schedule.decay_epochs': POSITIVE,
  'optim.schedule.decay_rate': SHARE,
  'optim.label_smoothing': SHARE,
  'optim.ema_decay': SHARE,
  'eval.every_epochs': POSITIVE,
  **{f'eval.attack.{key}': x for key, x in ATTACK.items()},
  'checkpoint.every_epochs': POSITIVE,
  'checkpoint.keep_last': COUNT,
}


def check(config: Mapping[str, Any]):
  """Raises UserError for numbers that would fail late, or silently do nothing."""
  check_section('', config)
  smallest, largest = config['data']['crop_area']
  if smallest > largest:
    raise errors.UserError(
      f'data.crop_area is {(smallest, largest)}; allowed: the smaller share first'
    )


def check_section(place: str, section: Mapping[str, Any]):
  """Raises UserError for a number of a section, or of those in it, out of its range.

  Args:
    place: of the section in the config: 'optim.schedule'; '' is the whole config.
    section: its keys and values.
  """
  for name, value in section.items():
    key = f'{place}.{name}' if place else name
    if isinstance(value, Mapping):
      check_section(key, value)
    elif key in RANGES:
      RANGES[key].check(key, value)
