"""From runs to the charts and class tables of a report."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from advprop_jax.evaluation import charts, corruption_error, labels, tables
from advprop_jax.evaluation.run_files import Run, is_number

MATRIX_CLASSES = 20  # Of more, a confusion matrix is not legible.
NUM_WORST = 10  # Classes that are listed instead.
MAX_LABELS = 6  # At the ends of lines.
# Column, the median of its values -> key of results.jsonl, and how it is written.
SPEEDS = {
  'images/s': ('train/images_per_sec', '{:,.0f}'),
  'model FLOP utilisation': ('train/mfu', '{:.1%}'),
}
_SECS = 'secs/'  # Beginning of the keys of seconds, by phase.
MODEL = 'clean'  # The branch that is the network.
GROUPS = {
  'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
  'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
  'weather': ('snow', 'frost', 'fog', 'brightness'),
  'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
  'extra, not in the mean': corruption_error.EXTRA,
}
# Title and suites, whose corruptions are shown together.
CORRUPTED = (
  ('own images, corrupted', ('corruptions',)),
  ('ImageNet-C', ('c', 'c_extra')),
  ("tensorflow-datasets' imagenet2012_corrupted", ('c_tfds',)),
)


def curves(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
  """Yields (title, chart) of loss and top-1, each with all runs."""
  for score, is_share in (('loss', False), ('top1', True)):
    for images, start, end in (
      ('training images', 'train/', ''),
      ('held-out images', 'val/', ''),
      ('held-out images, attacked', 'val/', '_pgd'),
    ):
      series = []
      for i, run in enumerate(runs):
        for j, name in enumerate(_streams(run, start, f'{end}_{score}')):
          if points := run.points(f'{start}{name}{end}_{score}'):
            # Of several runs the colour says which, and most lines are of `clean`.
            label = name if len(runs) == 1 or name != MODEL else ''
            series.append(charts.Line(i, j, label, points))
      if sum(bool(x.name) for x in series) > MAX_LABELS:
        series = [x._replace(name='') for x in series]
      if series:
        title = f'{"top-1" if is_share else "loss"}, {images}'
        yield title, charts.lines(title, series, is_share=is_share)


def _streams(run: Run, start: str, end: str) -> list[str]:
  """Returns the streams or branches that have numbers of a name, `clean` first."""
  keys = {x for line in run.lines for x in line if x.startswith(start)}
  found = [x.removeprefix(start).removesuffix(end) for x in keys if x.endswith(end)]
  plain = [x for x in found if not x.endswith('_pgd') and '/' not in x]
  return sorted(plain, key=lambda x: (x != MODEL, x))


def falls(runs: Sequence[Run]) -> str:
  """Returns the chart of the accuracy of each branch; '' if there is none."""
  rows = []
  for i, run in enumerate(runs):
    for branch in run.branch_names:
      suites = ('val', 'c' if 'c' in run.suites else 'corruptions', 'pgd')
      values = [run.scores(suite, branch).get('top1') for suite in suites]
      name = branch if len(runs) == 1 else f'{run.name}, {branch}'
      if any(is_number(x) for x in values):
        rows.append(charts.Fall(name, i, *values))
  return charts.falls('accuracy of each branch', rows) if rows else ''


def corrupted(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
  """Yields the charts of the accuracies on corrupted images, through `clean`."""
  for title, suites in CORRUPTED:
    found = [_by_corruption(run, suites) for run in runs]
    pictures = []
    for group, names in GROUPS.items():
      values = {
        name.replace('_', ' '): {i: x[name] for i, x in enumerate(found) if name in x}
        for name in names
      }
      if any(values.values()):
        full = f'{title}: {group}'
        pictures.append((group, charts.bars(full, values)))
    series = [
      charts.Line(i, 0, '', points)
      for i, run in enumerate(runs)
      if (points := list(_by_severity(run, suites[0])))
    ]
    if series:
      full = f'{title}: by severity'
      svg = charts.lines(full, series, is_share=True, x_name='severity')
      pictures.append(('mean of the 15, by severity', svg))
    if pictures:
      absent = [run.name for run, x in zip(runs, found, strict=True) if not x]
      yield {'title': title, 'charts': pictures, 'absent': absent}


def _by_corruption(run: Run, suites: Sequence[str]) -> dict[str, float]:
  found: dict[str, float] = {}
  for suite in suites:
    found |= run.scores(suite, MODEL).get('by_corruption') or {}
  return found


def _by_severity(run: Run, suite: str):
  """Yields (severity, mean top-1 of the 15) of those that are complete."""
  cells = run.suites.get(suite, {}).get('cells', {})
  for severity in corruption_error.SEVERITIES:
    names = [corruption_error.cell_name(x, severity) for x in corruption_error.ALEXNET]
    found = [cells.get(name, {}) for name in names]
    top1 = [x.get('branches', {}).get(MODEL, {}).get('top1') for x in found]
    if all(is_number(x) for x in top1):
      yield severity, sum(top1) / len(top1)


def reliability(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
  """Yields a chart of each run, with the ECE of what it shows."""
  for i, run in enumerate(runs):
    bins, words = {}, []
    for kind, suites in (('clean', ('val', 'imagenet')), ('attacked', ('pgd',))):
      for suite in suites:
        found = run.first_cell(suite).get('branches', {}).get(MODEL, {})
        if 'reliability' in found and kind not in bins:
          bins[kind] = found['reliability']
          words.append(f'{kind} {tables.percent(found.get("ece"))} %')
    if bins:
      svg = charts.reliability(f'calibration of {run.name}', i, bins)
      yield {'run': i, 'ece': ', '.join(words), 'chart': svg}


def confusions(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
  """Yields which class was taken for which, of all runs on one kind of images."""
  for title, suite in (
    ('clean images', 'val'),
    ('attacked images', 'pgd'),
    ('ImageNet', 'imagenet'),
  ):
    found = [(i, _confusion(run, suite)) for i, run in enumerate(runs)]
    if shown := [{'run': i, **x} for i, x in found if x]:
      yield {'title': title, 'tables': shown}


def _confusion(run: Run, suite: str) -> dict[str, Any]:
  """Returns a table of all classes, or of those with the lowest top-1 of many."""
  scores = run.first_cell(suite).get('branches', {}).get(MODEL, {})
  matrix, top1 = scores.get('confusion'), scores.get('class_top1')
  if not top1:
    return {}
  names = [labels.display_name(str(x)) for x in run.suites[suite]['class_names']]
  if not matrix or len(names) > MATRIX_CLASSES:
    return {'worst': _worst(names, top1, matrix)}
  rows = [
    {
      'name': name,
      'cells': [(x, round(x / max(1, sum(counts)), 3)) for x in counts],
      'top1': tables.percent(share),
    }
    for name, counts, share in zip(names, matrix, top1, strict=True)
  ]
  return {'names': names, 'rows': rows}


def _worst(names, top1, matrix) -> list[tuple[str, str, str]]:
  """Returns (class, top-1 in percent, what it was mostly taken for)."""
  known = [i for i, x in enumerate(top1) if is_number(x)]
  rows = []
  for i in sorted(known, key=lambda i: top1[i])[:NUM_WORST]:
    mostly = ''
    if matrix:
      others = [(x, -j) for j, x in enumerate(matrix[i]) if j != i and x]
      if others:
        count, j = max(others)
        mostly = f'{names[-j]} ({count} of {sum(matrix[i])})'
    rows.append((names[i], tables.percent(top1[i]), mostly))
  return rows


def time_spent(runs: Sequence[Run]) -> dict[str, Any]:
  """Returns what the time of each run was spent on, and how fast it trained.

  The last line of seconds counts, which has those of all starts in it.
  """
  found: dict[str, dict[str, float]] = {}
  speeds = []
  for run in runs:
    for line in run.lines:
      secs = {k.removeprefix(_SECS): x for k, x in line.items() if k.startswith(_SECS)}
      if secs:
        found[run.name] = {phase: x for phase, x in secs.items() if is_number(x)}
    points = {title: run.points(key) for title, (key, _) in SPEEDS.items()}
    speeds.append({title: [x for _, x in found] for title, found in points.items()})
  titles = [title for title in SPEEDS if any(x[title] for x in speeds)]
  return {
    'chart': charts.phases('seconds by phase', found) if found else '',
    'phases': charts.phase_names(found),
    'titles': titles,
    'rows': [
      [
        SPEEDS[x][1].format(statistics.median(speed[x])) if speed[x] else ''
        for x in titles
      ]
      for speed in speeds
    ],
    'absent': [run.name for run in runs if run.name not in found],
  }
