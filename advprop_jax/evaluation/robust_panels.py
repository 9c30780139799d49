"""From runs to what a report shows of the worst case over attacks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advprop_jax.evaluation import attack_words, charts, panels, tables
from advprop_jax.evaluation.run_files import Run, is_number

# Of AutoAttack's attacks the one whose accuracy is known by radius.
_STUDIED = 'APGD-CE alone'
_LINF, _L2 = 'epsilon, in 1/255', 'epsilon, an L2 norm'


def results(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
  """Yields a table of each run and suite, and what was checked."""
  for i, suite, branch, found in _found(runs):
    run = runs[i]
    attack = tables.attack_of(run, suite)
    rejected = _rejected(found)
    failed = tables.failed_checks(run, suite, branch)
    after = {'clean': found.get('clean_top1'), **found.get('by_attack', {})}
    yield {
      'run': i,
      'attack': attack_words.describe(attack),
      'branch': branch,
      'count': run.first_cell(suite)['num_examples'],
      'rows': [
        (name, tables.percent(x) if is_number(x) else '', rejected.get(name, 0))
        for name, x in after.items()
      ],
      'curve_of': _curve_of(suite, attack),
      'by_epsilon': [
        (attack_words.radius(epsilon, is_l2=attack_words.has_l2(attack)), top1)
        for epsilon, top1 in _curve(found)
      ],
      'is_any_rejected': any(rejected.values()),
      'failed': failed,
      'checks': _describe_checks(len(found.get('checks', ())), len(failed)),
    }


def curves(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
  """Yields (title, chart) of accuracy by radius, and of loss by step."""
  by_title: dict[str, list[charts.Line]] = {}
  units, losses = {}, []
  for i, suite, branch, found in _found(runs):
    attack = tables.attack_of(runs[i], suite)
    dash, label = (0, '') if branch == panels.MODEL else (1, branch)
    scale, unit = (1, _L2) if attack_words.has_l2(attack) else (255, _LINF)
    if points := _curve(found):
      title = ', '.join([f'top-1 by {unit}', _curve_of(suite, attack)])
      units[title] = unit
      scaled = [(scale * x, y) for x, y in points]
      by_title.setdefault(title, []).append(charts.Line(i, dash, label, scaled))
    steps = found.get('loss_by_step', {})
    if points := _points(steps.get('step'), steps.get('loss')):
      name = 'APGD-CE' if suite == 'autoattack' else attack_words.name_of(attack)
      losses.append((f'{name}, {attack_words.radius_of(attack)}', i, points))
  for title, series in by_title.items():
    svg = charts.lines(
      *(title, series),
      is_share=True,
      x_name=units[title],
      is_counted=False,
      starts_at_0=True,
    )
    yield title, svg
  if losses:
    names = list(dict.fromkeys(name for name, *_ in losses))
    is_named = len(names) > 1 and len(losses) <= panels.MAX_LABELS
    series = [
      charts.Line(i, names.index(name), name if is_named else '', points)
      for name, i, points in losses
    ]
    title = 'cross-entropy by steps of the attack, mean of one batch'
    title += f', {names[0]}' * (len(names) == 1)
    yield title, charts.lines(title, series, is_share=False)


def to_markdown(runs: Sequence[Run]) -> list[str]:
  """Returns a paragraph for each run and suite."""
  parts = []
  for x in results(runs):
    words = [f'{name} {share or "–"}' for name, share, _ in x['rows']]
    what = f'{runs[x["run"]].name}, {x["branch"]}, {x["attack"]}'
    num_rejected = sum(n for *_, n in x['rows'])
    rejected = f'; {num_rejected} adversarial images rejected' if num_rejected else ''
    parts.append(
      f'{what}: top-1 in % of {x["count"]} images, after each attack: '
      f'{", ".join(words)}{rejected}; {x["checks"]}.'
    )
    if x['by_epsilon']:
      points = (f'{radius} {tables.percent(y)}' for radius, y in x['by_epsilon'])
      what = f'{runs[x["run"]].name}, {x["branch"]}, {x["curve_of"]}'
      parts.append(f'{what}: top-1 in % by radius: {", ".join(points)}.')
  return parts


def _found(runs: Sequence[Run]) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
  """Yields (number of the run, suite, branch, scores) of every worst case."""
  for i, run in enumerate(runs):
    for suite in tables.ATTACKED:
      if suite in run.suites and attack_words.is_worst_case(
        tables.attack_of(run, suite)
      ):
        for branch, found in run.first_cell(suite).get('branches', {}).items():
          yield i, suite, branch, found


def _rejected(found: Mapping[str, Any]) -> dict[str, int]:
  """Returns {attack: adversarial images outside the ball or [0, 1]}."""
  result: dict[str, int] = {}
  for stage in found.get('stages', ()):
    name, number = str(stage.get('name')).split(', ')[0], stage.get('rejected')
    if is_number(number):
      result[name] = result.get(name, 0) + number
  return result


def _describe_checks(num_checks: int, num_failed: int) -> str:
  if not num_checks:
    return 'no check was made'
  if not num_failed:
    return f'all {num_checks} checks passed'
  return f'{num_failed} of {num_checks} checks failed'


def _curve_of(suite: str, attack: Mapping[str, Any]) -> str:
  """Returns which attack has an accuracy by radius, and on which images."""
  name = _STUDIED if suite == 'autoattack' else attack_words.name_of(attack)
  return ', '.join([name, *attack_words.extent(attack)])


def _curve(found: Mapping[str, Any]) -> list[tuple[float, float]]:
  """Returns the accuracy by radius."""
  radii = found.get('by_epsilon', {})
  return _points(radii.get('epsilon'), radii.get('top1'))


def _points(x, y) -> list[tuple[float, float]]:
  """Returns the pairs of two lists that are numbers, of what a file has."""
  if not (isinstance(x, list) and isinstance(y, list)):
    return []
  pairs = zip(x, y, strict=False)
  return [(a, b) for a, b in pairs if is_number(a) and is_number(b)]
