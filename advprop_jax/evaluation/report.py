r"""Writes one page about one or several runs: tables, charts, adversarial examples.

  python -m advprop_jax.evaluation.report runs/A runs/B --out=report.html
  python -m advprop_jax.evaluation.report runs/A --format=md

The page needs no other file and asks no server. jinja2, since it escapes what users
have called their runs and classes.
"""

import argparse
import base64
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import jinja2

from advprop_jax import errors
from advprop_jax.evaluation import (
  charts,
  corruption_error,
  labels,
  run_files,
  tables,
)
from advprop_jax.evaluation.run_files import Run

FORMATS = ('html', 'md')
SUITES_SHOWN = ('val', 'pgd', 'corruptions')  # Whose absence is mentioned.


class Chart(NamedTuple):
  """A picture with its title."""

  title: str
  svg: str


class Section(NamedTuple):
  """A part of the page."""

  title: str
  text: str
  charts: list[Chart]


def create_report(workdirs: Iterable[str], *, format_name: str = 'html') -> str:
  """Returns the page about some runs.

  Args:
    workdirs: local directories, as they were given to main.py.
    format_name: one of FORMATS.

  Raises:
    UserError: a directory holds no run, or a damaged one.
  """
  errors.check_choice('--format', format_name, FORMATS)
  runs = _shorten([run_files.read_run(x) for x in workdirs])
  table = tables.create_table(runs)
  notes = [note for run in runs for x in run.suites.values() for note in x['notes']]
  page: dict[str, Any] = {
    'title': ', '.join(x.name for x in runs) if len(runs) < 4 else f'{len(runs)} runs',
    'runs': [{'name': x.name, 'model': x.model, 'state': _state(x)} for x in runs],
    'table': table,
    'attacks': tables.attacks(runs),
    'notes': list(dict.fromkeys(notes)),
    'missing': _missing(runs),
  }
  if format_name == 'md':
    lines = [f'# {page["title"]}', tables.to_markdown(table)]
    lines += [f'Attack of {x}.' for x in page['attacks']]
    lines += [f'- {x}' for x in page['notes']]
    if page['missing']:
      lines.append(f'Without a result: {"; ".join(page["missing"])}.')
    return '\n\n'.join(lines) + '\n'
  page['sections'] = [x for x in _sections(runs) if x.charts]
  page['pictures'] = [x for run in runs for x in _pictures(run)]
  page['differences'] = _differences(runs)
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  template = pathlib.Path(__file__).with_name('report.html').read_text('utf-8')
  return environment.from_string(template).render(page)


def _shorten(runs: list[Run]) -> list[Run]:
  """Returns the runs by the last parts of their names, if these tell them apart."""
  names = [pathlib.PurePath(run.name).name or run.name for run in runs]
  if len(set(names)) < len(names):
    return runs
  return [run._replace(name=x) for run, x in zip(runs, names, strict=True)]


def _state(run: Run) -> str:
  """Returns ', step 449 of 2026-11-29' of the newest result, or ''."""
  newest = max(run.suites.values(), key=lambda x: x['date'], default=None)
  if newest is None:
    return f', step {run.lines[-1]["step"]}'
  weights = 'averaged' if newest['checkpoint']['averaged'] else 'plain'
  step, day = newest['checkpoint']['step'], newest['date'][:10]
  return f', step {step}, {weights} weights, {day}'


def _missing(runs: Iterable[Run]) -> list[str]:
  found = []
  for run in runs:
    absent = [x for x in SUITES_SHOWN if x not in run.suites]
    partly = [k for k, x in run.suites.items() if not x['complete']]
    if absent:
      found.append(f'{run.name}: {", ".join(absent)}')
    if partly:
      found.append(f'{run.name}: {", ".join(partly)} in part')
  return found


def _sections(runs: list[Run]):
  """Yields the parts of the page that have charts."""
  yield Section('Training', '', list(_curves(runs)))
  yield Section(
    'Norms',
    'Top-1 on images as they are and under attack, attacked and classified through the '
    'same norm.',
    list(_branch_bars(runs)),
  )
  yield Section(
    'Corruptions',
    'Top-1 through the norm clean, mean over five severities. The mean over all '
    'corruptions is of those that are not extra.',
    list(_corruption_bars(runs)),
  )
  yield Section(
    'Calibration',
    'Accuracy over confidence through the norm clean; the size of a dot is the number '
    'of its images, and on the dotted line a network is as sure as it is right.',
    list(_reliability(runs)),
  )
  yield Section(
    'Which class is taken for which',
    'Clean images through the norm clean.',
    list(_confusions(runs)),
  )
  yield Section(
    'Where the time went',
    'Seconds of all starts of a run together.',
    list(_goodput(runs)),
  )


def _curves(runs: list[Run]):
  for title, keys, is_share in (
    ('top-1 while training', ('train/{}_top1',), True),
    ('loss while training', ('train/loss',), False),
    ('top-1 on images held out', ('val/{}_top1', 'val/{}_pgd_top1'), True),
  ):
    series = {}
    for run in runs:
      for key in sorted({key for line in run.lines for key in line}):
        branch = key.partition('/')[2].partition('_')[0]
        if key not in [x.format(branch) for x in keys]:
          continue
        points = [(x['step'], x[key]) for x in run.lines if x.get(key) is not None]
        name = key.partition('/')[2].removesuffix('_top1').replace('_pgd', ', attacked')
        name = run.name if key == 'train/loss' else f'{_prefix(run, runs)}{name}'
        if points:
          series[name] = [x for x, _ in points], [y for _, y in points]
    if series:
      yield Chart(title, charts.lines(title, series, is_share=is_share))


def _branch_bars(runs: list[Run]):
  groups: dict[str, dict[str, float | None]] = {}
  for run in runs:
    for suite, name in (('val', 'clean images'), ('pgd', 'under attack')):
      for branch, scores in run.suites.get(suite, {}).get('summary', {}).items():
        groups.setdefault(f'{_prefix(run, runs)}{branch}', {})[name] = scores.get(
          'top1'
        )
  if groups:
    yield Chart('top-1 by norm', charts.bars('top-1 by norm', groups))


def _corruption_bars(runs: list[Run]):
  for suite in ('corruptions', 'c', 'c_extra', 'c_tfds'):
    groups: dict[str, dict[str, float | None]] = {}
    title = ''
    for run in runs:
      if content := run.suites.get(suite):
        title = content['title']
        found = content['summary'].get('clean', {}).get('by_corruption', {})
        for name in (*corruption_error.ALEXNET, *corruption_error.EXTRA):
          if name in found:
            extra = ' (extra)' if name in corruption_error.EXTRA else ''
            groups.setdefault(f'{name}{extra}', {})[run.name] = found[name]
    if groups:
      yield Chart(title, charts.bars(title, groups))


def _reliability(runs: list[Run]):
  for suite, title in (('val', 'clean images'), ('pgd', 'under attack')):
    series = {}
    for run in runs:
      scores = _scores(run, suite)
      if 'reliability' in scores:
        series[f'{run.name}, ECE {100 * scores["ece"]:.1f} %'] = scores['reliability']
    if series:
      yield Chart(title, charts.reliability(f'calibration, {title}', series))


def _confusions(runs: list[Run]):
  for run in runs:
    scores = _scores(run, 'val')
    if 'confusion' in scores:
      names = [labels.display_name(x) for x in run.suites['val']['class_names']]
      yield Chart(run.name, charts.confusion(run.name, scores['confusion'], names))


def _goodput(runs: list[Run]):
  found = {}
  for run in runs:
    for line in run.lines:
      secs = {k.removeprefix('secs/'): x for k, x in line.items() if k[:5] == 'secs/'}
      if secs:
        found[run.name] = secs
  if found:
    yield Chart('seconds by phase', charts.stacked('seconds by phase', found))


def _scores(run: Run, suite: str) -> dict[str, Any]:
  """Returns the scores of the network's own norm on the one cell of a suite."""
  for cell in run.suites.get(suite, {}).get('cells', {}).values():
    return cell['branches'].get('clean', {})
  return {}


def _pictures(run: Run):
  if run.pictures:
    newest = max(run.pictures, key=lambda x: x.stat().st_mtime)
    data = base64.b64encode(newest.read_bytes()).decode()
    yield {
      'title': f'{run.name}: {newest.stem}',
      'data': f'data:image/png;base64,{data}',
    }


def _differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
  """Returns the keys whose values are not the same in all runs, with the values."""
  configs = [run_files.flatten(run.config) for run in runs]
  keys = sorted({key for config in configs for key in config})
  rows = [(key, [config.get(key, '') for config in configs]) for key in keys]
  return [(key, values) for key, values in rows if len(set(values)) > 1]


def _prefix(run: Run, runs: list[Run]) -> str:
  """Returns what goes before a name to say whose it is, if there are several runs."""
  return f'{run.name}: ' if len(runs) > 1 else ''


def main(argv=None):
  """Runs the command; ends the process with one line if the input is at fault."""
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.evaluation.report',
    description='Writes a page about one or several runs.',
  )
  parser.add_argument('workdirs', metavar='WORKDIR', nargs='+')
  parser.add_argument('--format', default='html', help=' or '.join(FORMATS))
  parser.add_argument('--out', default='', help='File; default: md goes to stdout.')
  options = parser.parse_args(argv)
  out = options.out or ('report.html' if options.format == 'html' else '')
  try:
    text = create_report(options.workdirs, format_name=options.format)
    if out:
      _write(pathlib.Path(out).expanduser(), text)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  print(f'wrote {out}' if out else text)


def _write(path: pathlib.Path, text: str):
  """Writes a file that takes the place of an old one when it is whole."""
  new = path.with_name(f'{path.name}.{os.getpid()}.new')
  try:
    new.write_text(text, 'utf-8')
    new.replace(path)
  except OSError as e:
    raise errors.UserError(
      f'cannot write to --out {path}: {e.strerror or e}; allowed: a file in a '
      'directory that you may write to'
    ) from e
  finally:
    new.unlink(missing_ok=True)


if __name__ == '__main__':
  main()
