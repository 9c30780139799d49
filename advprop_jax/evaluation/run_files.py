"""Reads what a run has left behind: its config, its log of numbers, its results."""

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from advprop_jax import errors

# What a report reads of eval/<suite>.json and of its cells; see `suite_run.py`.
_SUITE_TYPES = {'title': str, 'date': str, 'complete': bool, 'checkpoint': dict}
_SUITE_TYPES |= {'summary': dict, 'cells': dict, 'notes': list, 'class_names': list}
_CELL_TYPES = {'data': dict, 'input': dict, 'num_examples': int, 'branches': dict}
# What branches have besides if the worst case over attacks was taken, see
# `robustness.describe`: the types of those that are there.
_ATTACKED_TYPES: dict[str, type] = {
  'by_attack': dict,
  'by_epsilon': dict,
  'loss_by_step': dict,
}
_ATTACKED_TYPES |= {'stages': list, 'checks': list}

# Suites that a training evaluates -> what marks them in the names of its numbers.
IN_TRAINING = {'val': '', 'pgd': 'pgd_'}


class Run(NamedTuple):
  """The files of a run, read."""

  name: str  # Its directory, as a report calls it.
  path: pathlib.Path  # Of the last phase, if there are phases.
  config: dict[str, Any]  # {} if it is not there.
  lines: list[dict[str, Any]]  # Of results.jsonl.
  suites: dict[str, dict[str, Any]]  # eval/<suite>.json, by suite.
  pictures: list[pathlib.Path]

  @property
  def model(self) -> str:
    """The name of the network, '' if it is not known."""
    names = [self.config.get('model', {}).get('name')]
    names += [suite.get('model') for suite in self.suites.values()]
    return str(next((name for name in names if name), ''))

  @property
  def newest(self) -> dict[str, Any] | None:
    """The suite that was evaluated last."""

    def date(suite):  # Results that were kept keep the date of their evaluation.
      return max(suite['date'], str(suite.get('taken_up', '')))

    return max(self.suites.values(), key=date, default=None)

  @property
  def branch_names(self) -> list[str]:
    """The norms that have results, `clean` first."""
    found = {x for suite in self.suites.values() for x in suite['summary']}
    for line in self.lines:
      found |= {
        x[1] for key in line if (x := re.fullmatch(r'val/(\w+?)(?:_pgd)?_top1', key))
      }
    return sorted(found, key=lambda x: (x != 'clean', x))

  def scores(self, suite: str, branch: str) -> dict[str, Any]:
    """Returns the numbers of a suite for tables, {} if there are none.

    Without a file of `val` or `pgd` they are those of the last evaluation in training.
    """
    if suite in self.suites:
      return self.suites[suite]['summary'].get(branch, {})
    if suite not in IN_TRAINING:
      return {}
    start = f'val/{branch}_{IN_TRAINING[suite]}'
    found = [line for line in self.lines if f'{start}top1' in line][-1:]
    return {
      key.removeprefix(start): x
      for line in found
      for key, x in line.items()
      if re.fullmatch(re.escape(start) + '[a-z0-9]+', key)
    }

  def first_cell(self, suite: str) -> dict[str, Any]:
    """Returns the first set of images of a suite, {} if there is none."""
    return next(iter(self.suites.get(suite, {}).get('cells', {}).values()), {})

  def points(self, key: str) -> list[tuple[float, float]]:
    """Returns (step, value) of every finite number with a name in results.jsonl."""
    return [
      (line['step'], line[key]) for line in self.lines if is_number(line.get(key))
    ]


def read_runs(workdirs: Iterable[str]) -> list[Run]:
  """Returns the files of some runs, with the shortest names that tell them apart.

  Args:
    workdirs: local directories, as they were given to main.py; one given twice counts
      once.

  Raises:
    UserError: see `read_run`.
  """
  runs = [read_run(workdir) for workdir in workdirs]
  runs = list({run.path.resolve(): run for run in runs}.values())
  parts = [pathlib.Path(os.path.abspath(run.name)).parts for run in runs]
  length = 1
  while len({x[-length:] for x in parts}) < len(runs):
    length += 1
  return [
    run._replace(name='/'.join(x[-length:])) for run, x in zip(runs, parts, strict=True)
  ]


def read_run(workdir: str) -> Run:
  """Returns the files of a run; of a run in phases, those of the last with results.

  Args:
    workdir: local directory, as it was given to main.py.

  Raises:
    UserError: there is no run, it has no results, or a file of it is damaged.
  """
  root = pathlib.Path(workdir).expanduser()
  if not root.is_dir():
    raise errors.UserError(
      f'there is no directory {workdir}; allowed: local directories that main.py '
      'trained in or evaluated'
    )
  path = _last_phase(root)
  config = _read_json(path / 'config.json') if (path / 'config.json').exists() else {}
  suites = {}
  for file in sorted(path.glob('eval/*.json')):
    suites[file.stem] = _read_json(file)
    _check_suite(suites[file.stem], file)
  lines = list(_read_lines(path / 'results.jsonl'))
  if not suites and not lines:
    raise errors.UserError(
      f'{workdir} has no results; allowed: a directory that main.py has trained in, or '
      f'evaluated by python main.py --mode=evaluate --workdir={workdir}'
    )
  pictures = sorted(path.glob('pictures/*.png'))
  return Run(str(workdir), path, config, lines, suites, pictures)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """Returns {'optim.ema_decay': '0.9999', ...} of nested sections."""
  values: dict[str, str] = {}
  for key, x in config.items():
    if isinstance(x, dict) and x:
      values |= flatten(x, f'{prefix}{key}.')
    else:
      values[prefix + key] = x if isinstance(x, str) else json.dumps(x)
  return values


def is_number(x) -> bool:
  """Returns whether a JSON value is a finite number."""
  return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _last_phase(root: pathlib.Path) -> pathlib.Path:
  files = [*root.glob('phase_*/results.jsonl'), *root.glob('phase_*/eval')]
  numbers = [x.parent.name.removeprefix('phase_') for x in files]
  found = max((int(x) for x in numbers if x.isdecimal()), default=None)
  return root if found is None else root / f'phase_{found}'


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text('utf-8'))
  except OSError as e:
    raise errors.UserError(
      f'cannot read {path}: {e.strerror or e}; allowed: files that you may read'
    ) from e
  except (ValueError, RecursionError):
    content = None
  if not isinstance(content, dict):
    raise errors.UserError(
      f'{path} is damaged: no JSON object; allowed: a file as main.py writes it'
    )
  return content


def _check_suite(suite: dict[str, Any], file: pathlib.Path):
  """Raises UserError if a file lacks what a report reads, whoever wrote it."""
  problem = _wrong(suite, _SUITE_TYPES)
  if not problem:
    parts: list[tuple[str, Any, dict]] = [
      ('summary', x, {}) for x in suite['summary'].values()
    ]
    for cell in suite['cells'].values():
      parts.append(('cells', cell, _CELL_TYPES))
      if not _wrong(cell, _CELL_TYPES):
        for x in cell['branches'].values():
          parts += _parts_of_branch(x)
    if suite.get('attack') is not None:
      parts.append(('attack', suite['attack'], {}))
    problem = next((key for key, x, types in parts if _wrong(x, types)), '')
  if problem:
    raise errors.UserError(
      f'{file} is damaged: {problem!r} is not as it was written; allowed: a file as '
      'main.py writes it; evaluating again replaces it'
    )


def _parts_of_branch(x) -> Iterator[tuple[str, Any, dict]]:
  """Yields what has to be JSON objects, with the types of what is in them."""
  if not isinstance(x, dict):
    yield 'branches', x, {}
    return
  types = {key: kind for key, kind in _ATTACKED_TYPES.items() if key in x}
  yield 'branches', x, types
  if not _wrong(x, types):
    for key in ('stages', 'checks'):
      yield from ((key, item, {}) for item in x.get(key, ()))


def _wrong(x, types: Mapping[str, type]) -> str:
  """Returns the first key that lacks a value of its type; '' if all is well."""
  if not isinstance(x, dict):
    return 'the whole'
  return next((k for k, kind in types.items() if not isinstance(x.get(k), kind)), '')


def _read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the whole lines of a file of JSON objects, none if there is no file."""
  if not path.is_file():
    return
  try:
    text = path.read_text('utf-8', errors='replace')
  except OSError as e:
    raise errors.UserError(
      f'cannot read {path}: {e.strerror or e}; allowed: files that you may read'
    ) from e
  for line in text.splitlines():
    try:
      value = json.loads(line)
    except (ValueError, RecursionError):  # Half a line of a killed run.
      continue
    if isinstance(value, dict) and is_number(value.get('step')):
      yield value
