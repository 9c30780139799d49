"""What a config may hold: the type and the range of every value, in one table."""

import math
import os
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from advprop_jax import errors

_TINY = float(np.finfo(np.float32).tiny)  # The least that is more than 0.
_HUGE = float(np.finfo(np.float64).max)


class Section(dict):
  """A section of a config: a dict whose keys are attributes, too."""

  def __getattr__(self, key: str) -> Any:
    try:
      return self[key]
    except KeyError:
      raise AttributeError(key) from None


class Range(NamedTuple):
  """The numbers from low to high, both included."""

  low: float
  high: float = math.inf
  length: int | None = None  # Of a tuple of such numbers.
  integer: bool = False
  note: str = ''  # What the user may have meant.

  def allows(self, value) -> bool:
    """Returns whether a value, or each of a tuple, is a number in the range."""
    if self.length is None:
      return self._allows_one(value)
    is_tuple = isinstance(value, tuple) and len(value) == self.length
    return is_tuple and all(map(self._allows_one, value))

  def _allows_one(self, x) -> bool:
    if isinstance(x, bool) or not isinstance(x, int if self.integer else int | float):
      return False
    # JSON and Python have whole numbers that no float can be.
    return self.low <= x <= self.high and -_HUGE < x < _HUGE

  def __str__(self):
    if self.low == -math.inf:
      numbers = 'finite numbers'
    elif self.low == _TINY:
      numbers = 'more than 0, ' + (
        'finite' if self.high == math.inf else f'up to {self.high}'
      )
    elif self.high == math.inf:
      numbers = f'{self.low} or more, {"whole" if self.integer else "finite"}'
    else:
      numbers = f'{self.low} to {self.high}' + (', whole' if self.integer else '')
    if self.length is not None:
      return f'{self.length} numbers in brackets, {numbers}{self.note}'
    return numbers + self.note


class Kind(NamedTuple):
  """The values of a type that is no number."""

  kind: type
  name: str  # What to call them in a message.
  of: type | types.UnionType | None = None  # What a tuple holds.

  def allows(self, value) -> bool:
    """Returns whether a value is of this kind."""
    values = value if isinstance(value, tuple) and self.of is not None else [value]
    if any(isinstance(x, str) and not _can_be_named(x) for x in values):
      return False
    if self.of is not None:
      return isinstance(value, tuple) and all(isinstance(x, self.of) for x in value)
    return isinstance(value, self.kind)

  def __str__(self):
    return self.name


def _can_be_named(text: str) -> bool:
  """Returns whether a text can be (in) the name of a file; JSON has others."""
  try:
    return b'\0' not in os.fsencode(text)
  except UnicodeEncodeError:
    return False


POSITIVE = Range(_TINY)
NOT_NEGATIVE = Range(0)
COUNT = Range(1, integer=True)
SHARE = Range(0, 1)
PIXELS = Range(0, 1, note=", in units of pixels in [0, 1]: the papers' 8 is 8/255")
TEXT = Kind(str, 'text')
FLAG = Kind(bool, 'True or False')
NAMES = Kind(tuple, "names in quotes and brackets, as in ('one',)", of=str)
EPOCHS = Kind(tuple, 'numbers in brackets, as in (30.0, 60.0)', of=int | float)
RADII = Kind(tuple, 'numbers in brackets, as in (2/255, 4/255)', of=int | float)
PHASES = Kind(tuple, 'dicts of values, set in a config file', of=dict)

ATTACK: dict[str, Range | Kind] = {
  'name': TEXT,
  'epsilon': PIXELS,
  'step_size': PIXELS,
  'num_steps': Range(0, integer=True),
  'targeted': FLAG,
  'prob_start_from_clean': SHARE,
  'step_size_floor': FLAG,
  'learning_rate': NOT_NEGATIVE,
  'epsilon_l2': NOT_NEGATIVE,
  'step_size_l2': NOT_NEGATIVE,
}
# Sections that come in kinds, each with arguments of its own. Their keys are checked
# against the function that takes them, see `registry.create`.
KINDS = (
  'model',
  'method',
  'attack',
  'eval.attack',
  'data.augmentation',
  'optim.optimizer',
  'optim.schedule',
)
# Sections that come in kinds are listed with the keys of all kinds.
VALUES: dict[str, Range | Kind] = {
  'seed': Range(0, 2**31 - 1, integer=True),
  'init_from': TEXT,
  'on_nonfinite': TEXT,
  'num_epochs': POSITIVE,
  'log_every_steps': COUNT,
  'profile_steps': Range(0, integer=True),
  'data.name': TEXT,
  'data.data_dir': TEXT,
  'data.holdout_share': SHARE,
  'data.train_split': TEXT,
  'data.eval_split': TEXT,
  'data.class_names': NAMES,
  'data.image_size': Range(1, 2**14, integer=True),
  'data.batch_size': COUNT,
  'data.eval_batch_size': COUNT,
  'data.shuffle_window': COUNT,
  'data.crop_area': Range(_TINY, 1, length=2),
  'data.flip': FLAG,
  'data.crop_padding': Range(0, 2**14, integer=True),
  'data.resize_method': TEXT,
  'data.max_bad_share': SHARE,
  'data.max_megapixels': POSITIVE,
  'data.exif_orientation': TEXT,
  'data.augmentation.name': TEXT,
  'data.augmentation.num_layers': COUNT,
  'data.augmentation.magnitude': NOT_NEGATIVE,
  'data.augmentation.brightness': SHARE,
  'data.augmentation.contrast': SHARE,
  'data.augmentation.saturation': SHARE,
  'data.augmentation.lighting': NOT_NEGATIVE,
  'model.name': TEXT,
  'model.drop_connect_rate': SHARE,
  'model.activation': TEXT,
  'model.even_pool_padding': FLAG,
  'model.smooth_backward': TEXT,
  'model.mean': Range(-math.inf, length=3),
  'model.std': Range(_TINY, length=3),
  'model.dtype': TEXT,
  'model.remat_blocks': FLAG,
  'model.cpu_kernels': FLAG,
  'model.bn_momentum': SHARE,
  'model.bn_epsilon': POSITIVE,
  'model.bn_scope': TEXT,
  'method.name': TEXT,
  'method.adversarial_share': SHARE,
  'method.epsilon': PIXELS,
  'method.step_size': PIXELS,
  'method.statistics': TEXT,
  'method.reuse_gradient': FLAG,
  'method.shuffle_over_devices': FLAG,
  'method.noise_weight': NOT_NEGATIVE,
  'method.adversarial_weight': NOT_NEGATIVE,
  'method.own_counts': FLAG,
  'streams.name': TEXT,
  'streams.image_key': TEXT,
  'streams.label_key': TEXT,
  'streams.branch': TEXT,
  'streams.weight': NOT_NEGATIVE,
  **{f'attack.{key}': x for key, x in ATTACK.items()},
  'attack.statistics': TEXT,
  'optim.optimizer.name': TEXT,
  'optim.optimizer.momentum': SHARE,
  'optim.optimizer.decay': SHARE,
  'optim.optimizer.epsilon': POSITIVE,
  'optim.optimizer.weight_decay': NOT_NEGATIVE,
  'optim.optimizer.decay_biases': FLAG,
  'optim.optimizer.nesterov': FLAG,
  'optim.schedule.name': TEXT,
  'optim.schedule.learning_rate': NOT_NEGATIVE,
  'optim.schedule.warmup_epochs': NOT_NEGATIVE,
  'optim.schedule.decay_epochs': POSITIVE,
  'optim.schedule.decay_rate': SHARE,
  'optim.schedule.warmup_learning_rate': NOT_NEGATIVE,
  'optim.schedule.milestones_epochs': EPOCHS,
  'optim.label_smoothing': SHARE,
  'optim.ema_decay': SHARE,
  'optim.freeze': NAMES,
  'optim.layer_decay': Range(_TINY, 1),
  'optim.accumulate_steps': COUNT,
  'phases': PHASES,
  'eval.every_epochs': POSITIVE,
  'eval.suites': NAMES,
  **{f'eval.attack.{key}': x for key, x in ATTACK.items()},
  'eval.robustness.version': TEXT,
  'eval.robustness.norm': TEXT,
  'eval.robustness.epsilon': NOT_NEGATIVE,
  'eval.robustness.epsilons': RADII,
  'eval.robustness.num_restarts': COUNT,
  'eval.robustness.num_examples': Range(0, integer=True),
  'eval.robustness.subset_seed': Range(0, 2**31 - 1, integer=True),
  'eval.robustness.branch': TEXT,
  'eval.robustness.attack_branch': TEXT,
  'checkpoint.every_epochs': POSITIVE,
  'checkpoint.keep_last': COUNT,
}


def read(config) -> Section:
  """Returns a config as sections of plain values, checked.

  Args:
    config: with the keys of `configs/default.py`: a ConfigDict, a dict, or what JSON
      makes of either, with lists in the place of tuples.

  Raises:
    UserError: a key is missing or unknown, or a value would fail late, or silently do
      nothing.
  """
  result = to_sections(config)
  _check_keys(result)
  check_section('', {k: x for k, x in result.items() if k != 'streams'})
  smallest, largest = result.data.crop_area
  if smallest > largest:
    raise errors.UserError(
      f'data.crop_area is {(smallest, largest)}; allowed: the smaller share first'
    )
  return result


def to_sections(value) -> Any:
  """Returns a config, or a value of one, as sections of plain values, not checked."""
  if hasattr(value, 'items'):
    return Section((key, to_sections(x)) for key, x in value.items())
  if isinstance(value, list | tuple):
    return tuple(to_sections(x) for x in value)
  return value


def check_saved(config: Any, *, needs: Iterable[str] = ()):
  """Raises UserError for a config of a checkpoint that no training can have had.

  Args:
    config: what JSON has made of it; an older one may lack keys, or have others.
    needs: sections that it has to have.
  """
  sections = to_sections(config)
  for key in needs:
    if not isinstance(sections.get(key), Section):
      raise errors.UserError(f'{key} is {sections.get(key)!r}; allowed: a section')
  tuples = ('streams', 'phases')
  check_section('', {key: x for key, x in sections.items() if key not in tuples})


def _check_keys(config: Section):
  """Raises UserError unless a config has all keys but those of kinds, and no others."""
  inside = tuple(f'{section}.' for section in ('streams', *KINDS))
  expected = {key for key in VALUES if not key.startswith(inside)} | {'streams', *KINDS}
  found = set(_keys(config))
  for key in sorted(expected - found):
    raise errors.UserError(
      f'the config has no {key}; allowed: all keys of configs/default.py'
    )
  for key in sorted(found - expected):
    hint = errors.nearest(key, expected)
    raise errors.UserError(
      f'unknown config key {key}; {hint}allowed: those of configs/default.py'
    )


def _keys(section: Mapping[str, Any], place: str = ''):
  """Yields the keys of all values; a section that comes in kinds is one value."""
  for name, value in section.items():
    key = f'{place}{name}'
    if isinstance(value, Mapping) and key not in KINDS:
      yield from _keys(value, f'{key}.')
    else:
      yield key


def check_section(place: str, section: Mapping[str, Any]):
  """Raises UserError for a value of another type, or out of its range.

  Args:
    place: of the section in the config: 'optim.schedule'; '' is the whole config.
    section: its keys and values; of keys that the table does not have, any.
  """
  for name, value in section.items():
    key = f'{place}.{name}' if place else name
    if isinstance(value, Mapping):
      check_section(key, value)
    elif key in KINDS:
      raise errors.UserError(f"{key} is {value!r}; allowed: a section with a 'name'")
    elif name == 'epsilon' and section.get('norm') == 'l2':
      pass  # A norm over all values of an image; the attack checks it.
    elif key in VALUES and not VALUES[key].allows(value):
      raise errors.UserError(f'{key} is {value!r}; allowed: {VALUES[key]}')
