"""Reads what a run has left behind: its config, its log of numbers, its results."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from advprop_jax import errors

# Of eval/<suite>.json, what a report needs.
SUITE_KEYS = (
  *('title', 'checkpoint', 'attack', 'complete', 'date', 'notes', 'class_names'),
  *('cells', 'summary'),
)


class Run(NamedTuple):
  """The files of a run, read."""

  name: str  # Its directory, as the user calls it.
  path: pathlib.Path  # Of the last phase, if there are phases.
  config: dict[str, Any]
  lines: list[dict[str, Any]]  # Of results.jsonl.
  suites: dict[str, dict[str, Any]]  # eval/<suite>.json, by suite.
  pictures: list[pathlib.Path]  # The newest of each kind.

  @property
  def model(self) -> str:
    return self.config.get('model', {}).get('name', 'unknown')


def read_run(workdir: str) -> Run:
  """Returns the files of a run; those that are not there are empty.

  Args:
    workdir: local directory, as it was given to main.py.

  Raises:
    UserError: there is no run, or a file of it is damaged.
  """
  root = pathlib.Path(workdir).expanduser()
  phases = [x.parent for x in root.glob('phase_*/results.jsonl')]
  path = max(phases, key=lambda x: int(x.name.rpartition('_')[2]), default=root)
  config_file = path / 'config.json'
  if not config_file.is_file():
    raise errors.UserError(
      f'there is no {config_file}; allowed: local directories that main.py trained in, '
      'or that weights were converted to'
    )
  config = _read_json(config_file)
  suites = {x.stem: _read_suite(x) for x in sorted(path.glob('eval/*.json'))}
  lines = list(_read_lines(path / 'results.jsonl'))
  if not suites and not lines:
    raise errors.UserError(
      f'{workdir} has no results; allowed: a directory that was trained in, or '
      f'evaluated by python main.py --mode=evaluate --workdir={workdir}'
    )
  newest: dict[str, pathlib.Path] = {}
  for picture in sorted(path.glob('pictures/*.png')):  # Their steps have zeros before.
    newest[picture.stem.rpartition('_step_')[0]] = picture
  return Run(str(workdir), path, config, lines, suites, list(newest.values()))


def flatten(config: dict[str, Any], prefix: str = '') -> dict[str, str]:
  """Returns {'optim.ema_decay': '0.9999', ...} of nested sections."""
  values: dict[str, str] = {}
  for key, x in config.items():
    if isinstance(x, dict):
      values |= flatten(x, f'{prefix}{key}.')
    else:
      values[prefix + key] = json.dumps(x)
  return values


def _read_suite(path: pathlib.Path) -> dict[str, Any]:
  content = _read_json(path)
  if missing := [key for key in SUITE_KEYS if key not in content]:
    raise errors.UserError(
      f'{path} has no {", ".join(missing)}; allowed: what main.py writes; evaluating '
      'again replaces it'
    )
  return content


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise errors.UserError(
      f'{path} is damaged ({type(e).__name__}); allowed: a file as main.py writes it; '
      'evaluating again replaces it'
    ) from e
  if not isinstance(content, dict):
    raise errors.UserError(f'{path} holds no JSON object; allowed: what main.py writes')
  return content


def _read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the whole lines of a file of JSON objects, none if there is no file."""
  if not path.is_file():
    return
  for line in path.read_text('utf-8', errors='replace').splitlines():
    try:
      value = json.loads(line)
    except (ValueError, RecursionError):  # Half a line of a killed run.
      continue
    if isinstance(value, dict) and 'step' in value:
      yield value
