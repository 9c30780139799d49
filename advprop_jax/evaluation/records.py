"""What eval/<suite>.json holds: the scores of every branch, as JSON values."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from advprop_jax.evaluation import runner, scores, suites

MAX_CONFUSION_CLASSES = 100  # Of more, a table of K x K is too large for a file.


def of_branches(
  result: runner.Result, branch_names: Iterable[str], *, attacked: bool
) -> dict[str, dict[str, Any]]:
  """Returns the scores of each branch on a cell.

  Args:
    result: of one kind of images, clean or attacked.
    branch_names: those that were evaluated.
    attacked: which kind.
  """
  found = {}
  for branch in branch_names:
    name = f'{branch}_pgd' if attacked else branch
    values = {
      score: _finite(result.metrics[f'{name}_{score}'])
      for score in (*scores.SCORES, 'ece')
      if f'{name}_{score}' in result.metrics
    }
    if name in result.details:
      values |= _of_details(result.details[name])
    found[branch] = values
  return found


def summarize(
  suite: suites.Suite,
  cells: Mapping[str, Mapping[str, Any]],
  branch_names: Iterable[str],
) -> dict[str, dict[str, Any]]:
  """Returns what tables show of each branch.

  Args:
    suite: what the cells belong to.
    cells: by name, with their 'branches'; some may be missing.
    branch_names: those that were evaluated.
  """
  return {
    branch: suite.summarize(
      {
        name: cells[name]['branches'][branch] if name in cells else None
        for name in suite.cells
      }
    )
    for branch in branch_names
  }


def _of_details(details: runner.Details) -> dict[str, Any]:
  count, confidence, right = details.bins
  examples = details.confusion.sum(axis=1)
  with np.errstate(invalid='ignore'):
    values: dict[str, Any] = {
      'reliability': {
        'count': [int(x) for x in count],
        'confidence': [_finite(x) for x in confidence / count],
        'accuracy': [_finite(x) for x in right / count],
      },
      'class_top1': [_finite(x) for x in details.confusion.diagonal() / examples],
    }
  if len(examples) <= MAX_CONFUSION_CLASSES:
    values['confusion'] = details.confusion.tolist()
  return values


def _finite(x) -> float | None:
  """Returns a number as JSON has it: None for what is not finite."""
  return float(x) if math.isfinite(x) else None
