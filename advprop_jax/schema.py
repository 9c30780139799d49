"""Which numbers a config may hold."""

import functools
import math

import numpy as np

from advprop_jax import errors


def check_ranges(config):
  """Raises UserError for numbers that would fail late, or silently do nothing."""
  positive = np.finfo(np.float32).tiny
  for key, low, high in [
    ('seed', 0, 2**31 - 1),
    ('num_epochs', positive, None),
    ('log_every_steps', 1, None),
    ('data.image_size', 1, None),
    ('data.crop_area', positive, 1),
    ('data.crop_padding', 0, None),
    ('data.randaugment_layers', 1, None),
    ('data.randaugment_magnitude', 0, None),
    ('data.max_bad_share', 0, 1),
    ('model.drop_connect_rate', 0, 1),
    ('model.mean', -math.inf, None),
    ('model.std', positive, None),
    ('model.bn_momentum', 0, 1),
    ('model.bn_epsilon', positive, None),
    ('optim.learning_rate', 0, None),
    ('optim.momentum', 0, 1),
    ('optim.rmsprop_decay', 0, 1),
    ('optim.rmsprop_epsilon', positive, None),
    ('optim.warmup_epochs', 0, None),
    ('optim.decay_epochs', positive, None),
    ('optim.decay_rate', 0, 1),
    ('optim.weight_decay', 0, None),
    ('optim.label_smoothing', 0, 1),
    ('optim.ema_decay', 0, 1),
    ('eval.every_epochs', positive, None),
    ('eval.num_pictures', 1, None),
    ('checkpoint.every_epochs', positive, None),
    ('checkpoint.keep_last', 1, None),
  ]:
    value = functools.reduce(lambda node, name: node[name], key.split('.'), config)
    for x in value if isinstance(value, tuple) else [value]:
      if not (low <= x <= (high or math.inf) and math.isfinite(x)):
        allowed = 'more than 0' if low == positive else f'{low} or more, finite'
        allowed += '' if high is None else f', up to {high}'
        raise errors.UserError(f'{key} is {value}; allowed: {allowed}')
  for key, value, length in [
    ('data.crop_area', config.data.crop_area, 2),
    ('model.mean', config.model.mean, 3),
    ('model.std', config.model.std, 3),
  ]:
    if len(value) != length:
      raise errors.UserError(f'{key} is {value}; allowed: {length} numbers')
  if config.data.crop_area[0] > config.data.crop_area[1]:
    raise errors.UserError(
      f'data.crop_area is {config.data.crop_area}; allowed: the smaller share first'
    )
