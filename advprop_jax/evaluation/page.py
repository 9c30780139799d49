"""What a report shows of its runs: the values that report.html puts on a page."""

import base64
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from advprop_jax import errors, json_files
from advprop_jax.evaluation import charts, panels, robust_panels, suites, tables
from advprop_jax.evaluation.run_files import Run, flatten, is_number

MAX_PICTURE_BYTES = 2**20  # Larger pictures are made smaller.
ON_REQUEST = ('autoattack',)  # Suites that take hours: a run without is complete.
SCORES = ('top1', 'top5', 'loss', 'brier', 'ece')


def describe(runs: Sequence[Run]) -> dict[str, Any]:
  """Returns the values of the template, strings that it has to escape and SVG.

  Args:
    runs: at least one.
  """
  dates = sorted({x['date'][:10] for run in runs for x in run.suites.values()})
  return {
    'title': ', '.join(x.name for x in runs) if len(runs) < 4 else f'{len(runs)} runs',
    'dates': ' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else '',
    'num_colours': charts.NUM_COLOURS,
    'runs': [_describe_run(run) for run in runs],
    'table': tables.create_table(runs),
    'marks': tables.STALE + tables.TRAINING + tables.FAILED,
    'missing': list(missing(runs)),
    'notes': list(notes(runs)),
    'scores': list(_scores(runs)),
    'robustness': list(robust_panels.results(runs)),
    'robustness_charts': list(robust_panels.curves(runs)),
    'falls': panels.falls(runs),
    'curves': list(panels.curves(runs)),
    'corrupted': list(panels.corrupted(runs)),
    'reliability': list(panels.reliability(runs)),
    'confusions': list(panels.confusions(runs)),
    'pictures': list(_pictures(runs)),
    'time': panels.time_spent(runs),
    'differences': differences(runs),
  }


def _describe_run(run: Run) -> dict[str, Any]:
  """Returns what a run is and of when its results are."""
  newest, cell = run.newest, run.first_cell('val')
  steps = [line['step'] for line in run.lines if any(x[:6] == 'train/' for x in line)]
  trained, step = max(steps, default=None), None
  weights = ''
  if newest is not None:
    step = newest['checkpoint'].get('step')
    weights = 'averaged' if newest['checkpoint'].get('averaged') else 'plain'
  warnings = []
  if is_number(step) and trained is not None and trained > step:
    warnings.append(f'trained to step {trained}, evaluated at step {step}')
  bad = {
    name: max((x.get('num_bad', 0) for x in suite['cells'].values()), default=0)
    for name, suite in run.suites.items()
  }
  if words := [f'{n} of {name}' for name, n in bad.items() if n]:
    warnings.append(f'images that could not be read do not count: {", ".join(words)}')
  return {
    'name': run.name,
    'model': run.model,
    'data': tables.data_of(run),
    'num_examples': cell.get('num_examples'),
    'step': trained if step is None else step,
    'weights': weights,
    'date': newest['date'][:10] if newest else '',
    'warnings': warnings,
  }


def missing(runs: Sequence[Run]) -> Iterator[dict[str, str]]:
  """Yields what a run lacks of all suites, with the command that evaluates it."""
  shown = [*suites.OWN, *(x for run in runs for x in run.suites)]
  expected = [x for x in dict.fromkeys(shown) if x not in ON_REQUEST]
  for run in runs:
    absent = [x for x in expected if x not in run.suites]
    if 'c' in run.suites and 'corruptions' in absent:
      absent.remove('corruptions')
    partly = [key for key, suite in run.suites.items() if not suite['complete']]
    words = [f'no result of {", ".join(absent)}'] if absent else []
    words += [f'a part of {", ".join(partly)} alone'] if partly else []
    if words:
      command = f'--workdir={run.path} --suites={",".join([*absent, *partly])}'
      yield {
        'run': run.name,
        'what': '; '.join(words),
        'command': f'python main.py --mode=evaluate {command}',
      }


def notes(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
  """Yields (suite, note) of what results say of themselves, each once."""
  found = [
    (k, x) for run in runs for k, suite in run.suites.items() for x in suite['notes']
  ]
  yield from dict.fromkeys((k, str(x)) for k, x in found)


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
  """Returns the keys whose values are not the same in all runs, with the values."""
  configs = [flatten(run.config) for run in runs]
  keys = sorted({key for config in configs for key in config})
  rows = [(key, [config.get(key, '') for config in configs]) for key in keys]
  return [(key, values) for key, values in rows if len(set(values)) > 1]


def _scores(runs: Sequence[Run]):
  """Yields a row for every suite, run and branch, with how it was evaluated."""
  for name in dict.fromkeys(x for run in runs for x in run.suites):
    for run in runs:
      if name not in run.suites:
        continue
      cell = run.first_cell(name)
      size = cell.get('input', {}).get('image_size')
      padding = cell.get('input', {}).get('crop_padding')
      for branch, found in run.suites[name]['summary'].items():
        values = [found.get(key) for key in SCORES]
        shares = [tables.percent(x) for x in (*values[:2], values[4])]
        nats = ['' if x is None else f'{x:.3f}' for x in values[2:4]]
        yield {
          'suite': name,
          'title': run.suites[name]['title'],
          'run': run.name,
          'branch': branch,
          'count': cell.get('num_examples', ''),
          'input': f'{size} px of {size + padding}' if is_number(padding) else '',
          'cells': [*shares[:2], *nats, shares[2]],
        }


def _pictures(runs: Sequence[Run]):
  """Yields the newest picture of each run, as a part of the page."""
  for i, run in enumerate(runs):
    if run.pictures:
      newest = max(run.pictures, key=_age)
      yield {'run': i, 'name': newest.stem, 'data': _data_uri(newest)}


def _age(path: pathlib.Path):
  step = path.stem.rpartition('_step_')[2]
  return int(step) if step.isdecimal() else -1, path.stat().st_mtime, path.name


def _data_uri(path: pathlib.Path) -> str:
  try:
    content = json_files.read_bytes(path)
    while len(content) > MAX_PICTURE_BYTES:
      with Image.open(io.BytesIO(content), formats=['PNG']) as picture:
        size = max(1, picture.width * 2 // 3), max(1, picture.height * 2 // 3)
        buffer = io.BytesIO()
        picture.convert('RGB').resize(size).save(buffer, 'PNG')
      content = buffer.getvalue()
  # Of Pillow, for damaged pictures and for those of more than 179 million pixels.
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
    raise errors.UserError(
      f'cannot read picture {path}; allowed: PNG as main.py writes it; remove it, and '
      'the one before is shown'
    ) from e
  return f'data:image/png;base64,{base64.b64encode(content).decode()}'
