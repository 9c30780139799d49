"""Reads what a run has left behind: its config, its log of numbers, its results."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from advprop_jax import errors, json_files
from advprop_jax.evaluation import shapes
from advprop_jax.evaluation.shapes import is_number

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
  config = _read_json(path / 'config.json', shapes.problem_of_config)
  suites = {
    file.stem: _read_json(file, shapes.problem_of_suite)
    for file in sorted(path.glob('eval/*.json'))
  }
  lines = list(_read_lines(path / 'results.jsonl'))
  if not suites and not lines:
    raise errors.UserError(
      f'{workdir} has no results; allowed: a directory that main.py has trained in, or '
      f'evaluated by python main.py --mode=evaluate --workdir={workdir}'
    )
  pictures = [x for x in sorted(path.glob('pictures/*.png')) if x.is_file()]
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


def _last_phase(root: pathlib.Path) -> pathlib.Path:
  files = [*root.glob('phase_*/results.jsonl'), *root.glob('phase_*/eval')]
  found = json_files.numbers(x.parent.name.removeprefix('phase_') for x in files)
  return root / f'phase_{found[-1]}' if found else root


def _read_json(
  path: pathlib.Path, problem_of: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
  """Returns the JSON object in a file; {} if there is none.

  Args:
    path: of the file.
    problem_of: returns which key is not as it was written, or ''.

  Raises:
    UserError: it holds something else.
  """
  try:
    content = json_files.read_object(path)
  except FileNotFoundError:
    return {}
  except json_files.UnreadableError as e:
    raise errors.UserError(f'{path} {e}; allowed: a file as main.py writes it') from e
  if problem := problem_of(content):
    raise errors.UserError(
      f'{path} is damaged: {problem!r} is not as it was written; allowed: a file as '
      'main.py writes it; evaluating again replaces it'
    )
  return content


def _read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the lines of results, with what can be shown of them."""
  try:
    for line in json_files.read_lines(path):
      if is_number(line.get('step')):
        yield {
          key: x
          for key, x in line.items()
          if key.isprintable() and ('/' not in key or x is None or is_number(x))
        }
  except json_files.UnreadableError as e:
    raise errors.UserError(f'{path} {e}; allowed: a file as main.py writes it') from e
