"""What the files of a run have to look like for those that read them."""

import math
from typing import Any

MOST = 1e24  # What tables can show.


def is_number(x) -> bool:
  """Returns whether a JSON value is a finite number, and none beyond all measure."""
  is_some = isinstance(x, int | float) and not isinstance(x, bool)
  return is_some and math.isfinite(x) and abs(x) < MOST


def are_numbers(x) -> bool:
  """Returns whether a JSON value is a list of such numbers."""
  return isinstance(x, list) and all(map(is_number, x))


def _is_score(x) -> bool:
  return x is None or is_number(x)  # None stands for what is not finite.


def _is_count(x) -> bool:
  return type(x) is int and 0 <= x < MOST


# A shape is a type, a function that allows a value, [shape], or {key: shape}: a
# question mark behind a key says that it need not be there, and ALL stands for others.
ALL = '*'
_SCORES = {ALL: _is_score}
# The worst case over attacks has more, see `robustness.describe`.
_BRANCH = {
  'top1?': _is_score,
  'top5?': _is_score,
  'loss?': _is_score,
  'brier?': _is_score,
  'ece?': _is_score,
  'clean_top1?': _is_score,
  'reliability?': {x: [_is_score] for x in ('count', 'confidence', 'accuracy')},
  'class_top1?': [_is_score],
  'confusion?': [[_is_count]],
  'by_attack?': _SCORES,
  'by_epsilon?': dict,
  'loss_by_step?': dict,
  'by_corruption?': _SCORES,
  'stages?': [dict],
  'checks?': [dict],
}
_CELL = {
  'data': {'name': str, 'split': str},
  'input': {'image_size?': _is_score, 'crop_padding?': _is_score},
  'num_examples': _is_count,
  'num_bad?': _is_count,
  'seconds?': is_number,
  'notes?': [str],
  'branches': {ALL: _BRANCH},
}
_SUMMARY = {
  **_BRANCH,
  ALL: lambda x: _is_score(x) or not _is_wrong(x, _SCORES),
}
_SUITE = {
  'title': str,
  'date': str,
  'taken_up?': str,
  'model?': str,
  'complete': bool,
  'checkpoint': {'step?': _is_count},
  'summary': {ALL: _SUMMARY},
  'cells': {ALL: _CELL},
  'notes': [str],
  'class_names': [str],
  'attack?': lambda x: x is None or isinstance(x, dict),
}


_CONFIG = {
  'model?': {'name?': str},
  'data?': {'name': str, 'eval_split?': str},
  'eval?': {'attack?': dict},
}


def problem_of_config(config: dict[str, Any]) -> str:
  """Returns which key of a config.json is not as it was written; '' if all are."""
  return next((x for x, part in _CONFIG.items() if _is_wrong(config, {x: part})), '')


def problem_of_suite(suite: dict[str, Any]) -> str:
  """Returns which key of an eval/<suite>.json is not as it was written, or ''."""
  for key, part in _SUITE.items():
    if _is_wrong(suite, {key: part}):
      return key.removesuffix('?')
  count = len(suite['class_names'])
  for cell in suite['cells'].values():
    for x in cell['branches'].values():
      matrix = x.get('confusion', [])
      if any(len(y) not in (0, count) for y in (x.get('class_top1', ()), *matrix)):
        return 'class_names'
      if len(matrix) not in (0, count) or len({*map(len, _bins(x))}) > 1:
        return 'cells'
  return ''


def problem_to_go_on(suite: dict[str, Any]) -> str:
  """Returns the same of a file whose results an evaluation takes over."""
  if problem := problem_of_suite(suite):
    return problem
  names = suite.get('branch_names', ())
  if _is_wrong(names, [str]):
    return 'branch_names'
  cell = {
    'num_unlabelled': _is_count,
    'seconds': is_number,
    'branches': {name: {'top1': _is_score} for name in names},
  }
  return 'cells' if _is_wrong(suite['cells'], {ALL: cell}) else ''


def _bins(branch: dict[str, Any]):
  return branch.get('reliability', {}).values()


def _is_wrong(x, shape) -> bool:
  """Returns whether a value, or one inside it, is of another shape."""
  if isinstance(shape, type):
    return not isinstance(x, shape)
  if isinstance(shape, list):
    return not isinstance(x, list) or any(_is_wrong(y, shape[0]) for y in x)
  if not isinstance(shape, dict):
    return not shape(x)
  if not isinstance(x, dict):
    return True
  named = {key.removesuffix('?'): part for key, part in shape.items() if key != ALL}
  if any(key in named and key not in x for key in shape):
    return True
  parts = {key: named.get(key, shape.get(ALL)) for key in x}
  return any(_is_wrong(x[key], part) for key, part in parts.items() if part)
