"""The papers' tables: a row for each branch of a run, beside the published ones."""

import csv
import decimal
import functools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from advprop_jax.evaluation import attack_words, run_files, suites
from advprop_jax.evaluation.run_files import Run


class Column(NamedTuple):
  """A column of the table."""

  key: str  # Column of published.tsv, if it is there.
  title: str
  unit: str
  suite: str
  score: str  # In the suite's summary.
  scale: int = 100  # Shares of 1 are shown in percent.
  attack: str = ''  # In words; of a suite that attacks, each attack has a column.


# In the papers' order. Titles of some are completed, see `_complete`.
COLUMNS = (
  Column('top1', 'ImageNet', 'top-1, %', 'imagenet', 'top1'),
  Column('mce', 'ImageNet-C', 'mCE, lower is better', 'c', 'mce', 1),
  Column('a', 'ImageNet-A', 'top-1, %', 'a', 'top1'),
  Column('a_clean', "A's classes, clean", 'top-1, %', 'a', 'clean_top1'),
  Column('stylized', 'Stylized', 'top-1, %', 'stylized', 'top1'),
  Column('r', 'ImageNet-R', 'top-1, %', 'r', 'top1'),
  Column('r_clean', "R's classes, clean", 'top-1, %', 'r', 'clean_top1'),
  Column('sketch', 'Sketch', 'top-1, %', 'sketch', 'top1'),
  Column('v2', 'V2', 'top-1, %', 'v2', 'top1'),
  Column('real', 'ReaL', 'top-1, %', 'real', 'top1'),
  Column('objectnet', 'ObjectNet', 'top-1, %', 'objectnet', 'top1'),
  Column(
    'c_tfds', 'imagenet2012_corrupted', 'mCE, not of ImageNet-C', 'c_tfds', 'mce', 1
  ),
  Column('own', 'clean', 'top-1, %', 'val', 'top1'),
  Column('pgd', 'attacked', 'top-1, %', 'pgd', 'top1'),
  Column('autoattack', 'AutoAttack', 'top-1, %', 'autoattack', 'top1'),
  Column('corruptions', 'corrupted', 'top-1, %, 15 x 5', 'corruptions', 'top1'),
)
STALE, TRAINING, FAILED = '†', '‡', '§'
ATTACKED = tuple(name for name, suite in suites.SUITES.items() if suite.attacked)


class Row(NamedTuple):
  """A line of the table."""

  name: str  # Of the run, or what is published.
  branch: str  # '': published.
  source: str  # Of published numbers; '': ours.
  cells: tuple[str, ...]  # One for each column, '' where there is none.


class Table(NamedTuple):
  """Ours and the published numbers, in the columns that any of ours has."""

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  notes: tuple[str, ...]  # What must be known to compare the numbers.

  @property
  def sources(self) -> list[str]:
    """Of the published numbers, in the order of the rows."""
    return list(dict.fromkeys(row.source for row in self.rows if row.source))


def create_table(runs: Iterable[Run]) -> Table:
  """Returns the rows of some runs, then what is published of their networks.

  Published numbers under attack are there only beside the same attack on ImageNet.
  """
  runs = list(runs)
  columns = [
    column
    for known in COLUMNS
    for column in _of_each_attack(known, runs)
    if any(_value(run, column, x) is not None for run in runs for x in run.branch_names)
  ]
  rows = []
  for run in runs:
    for branch in run.branch_names:
      cells = tuple(_cell(run, column, branch) for column in columns)
      rows.append(Row(run.name, branch, '', cells))
  comparable = [_published_key(column, runs) for column in columns]
  for line in _published():
    cells = tuple(_show(line.get(key), 1) for key in comparable)
    if any(cells) and line['model'] in {run.model for run in runs}:
      rows.append(Row(f'{line["model"]}, {line["name"]}', '', line['source'], cells))
  notes = [*_failure_notes(runs), *_attack_notes(runs), *_mark_notes(runs)]
  return Table(tuple(_complete(x, runs) for x in columns), tuple(rows), tuple(notes))


def to_markdown(table: Table) -> str:
  """Returns a table for a terminal or a README, and below it its notes and sources."""
  if not table.columns:
    return 'There is no result yet.'
  sources = table.sources
  titles = [f'{x.title}, {x.unit}' for x in table.columns]
  lines = [['run', 'branch', *titles], ['---'] * 2 + ['---:'] * len(titles)]
  for row in table.rows:
    who = row.branch or f'published [{sources.index(row.source) + 1}]'
    lines.append([row.name, who, *row.cells])
  text = '\n'.join(f'| {" | ".join(map(_escape, line))} |' for line in lines)
  below = [*table.notes, *(f'[{i}] {x}' for i, x in enumerate(sources, 1))]
  return '\n\n'.join([text, *map(_escape, below)])


def attack_of(run: Run, suite: str) -> dict[str, Any]:
  """Returns the attack of a suite, or of the evaluations in training.

  It has an `attack_branch` only if that is another one than the branch that classifies.
  """
  if suite not in run.suites:
    is_known = suite in run_files.IN_TRAINING
    return (is_known and run.config.get('eval', {}).get('attack')) or {}
  content = run.suites[suite]
  attack = content.get('attack') or {}
  if attack.get('attack_branch') in [*content['summary']]:
    return {key: x for key, x in attack.items() if key != 'attack_branch'}
  return attack


def failed_checks(run: Run, suite: str, branch: str) -> list[str]:
  """Returns what checks of the attacks on a branch have found, if they failed."""
  found = run.first_cell(suite).get('branches', {}).get(branch, {}).get('checks', [])
  return [
    str(x.get('text') or x.get('name') or 'not known')
    for x in found
    if x.get('passed') is not True
  ]


def data_of(run: Run) -> str:
  """Returns what the suite `val` was, 'digits:test'; '' if that is not known."""
  if data := run.first_cell('val').get('data'):
    return f'{data["name"]}:{data["split"]}'
  data = run.config.get('data', {})
  return f'{data["name"]}:{data["eval_split"]}' if 'eval_split' in data else ''


def percent(share) -> str:
  """Returns '92.8' of 0.9277; '' if there is no number."""
  return _show(share, 100)


def _of_each_attack(column: Column, runs: list[Run]) -> list[Column]:
  """Returns a column for each attack: numbers of different ones do not compare."""
  if column.suite not in ATTACKED:
    return [column]
  found = dict.fromkeys(_describe_attack(x, column.suite) for x in runs)
  return [column._replace(attack=x) for x in found]


def _describe_attack(run: Run, suite: str) -> str:
  return attack_words.describe(attack_of(run, suite))


def _value(run: Run, column: Column, branch: str):
  if column.suite in ATTACKED and _describe_attack(run, column.suite) != column.attack:
    return None
  if column.key == 'top1' and _is_imagenet(run) and 'imagenet' not in run.suites:
    return run.scores('val', branch).get('top1')
  if column.key == 'own' and _is_imagenet(run):
    return None
  return run.scores(column.suite, branch).get(column.score)


def _cell(run: Run, column: Column, branch: str) -> str:
  text = _show(_value(run, column, branch), column.scale)
  if text and failed_checks(run, column.suite, branch):
    text += FAILED
  if text and column.suite in run.suites and _is_stale(run, column.suite):
    return text + STALE
  is_of_training = column.suite in run_files.IN_TRAINING.keys() - run.suites.keys()
  return text + TRAINING if text and is_of_training else text


def _show(value, scale: int) -> str:
  """Returns a number with one digit after the point; '' if there is none."""
  if value is None or value == '':
    return ''
  number = decimal.Decimal(str(value)) * scale
  return str(number.quantize(decimal.Decimal('0.1'), decimal.ROUND_HALF_UP))


def _is_imagenet(run: Run) -> bool:
  return data_of(run) == 'imagenet2012:validation'


def _is_stale(run: Run, suite: str) -> bool:
  """Returns whether a suite is of other weights than the newest results."""
  newest = run.newest
  return newest is not None and (
    run.suites[suite]['checkpoint'] != newest['checkpoint']
  )


def _attacks(runs: Iterable[Run], suite: str) -> list[tuple[Run, dict[str, Any]]]:
  """Returns the runs that have scores of a suite, with its attack."""
  return [
    (run, attack_of(run, suite))
    for run in runs
    if any(run.scores(suite, branch) for branch in run.branch_names)
  ]


def _published_key(column: Column, runs: Iterable[Run]) -> str:
  """Returns the column of published.tsv that may stand beside ours.

  None may beside a worst case: in published ones, images that were wrong before count
  as they are after the attack, and there are no restarts and no parts of the images.
  """
  if column.key != 'pgd':
    return column.key
  if any(
    attack_words.is_worst_case(attack)
    for _, attack in _attacks(runs, 'pgd')
    if attack_words.describe(attack) == column.attack
  ):
    return ''
  steps = ', epsilon 4/255, steps of 1/255'
  known = {f'PGD-{n}{steps}': f'pgd{n}' for n in (10, 20, 50)}
  return known.get(column.attack, '') if all(map(_is_imagenet, runs)) else ''


def _complete(column: Column, runs: Iterable[Run]) -> Column:
  """Returns a column whose title says which images or which attack."""
  if column.key == 'own':
    words = {data_of(run) for run in runs if run.scores('val', 'clean')}
    title = f'{words.pop()}, clean' if len(words) == 1 else 'own images, clean'
    return column._replace(title=title)
  if column.key in ATTACKED:
    attacks = {
      attack_words.describe(x): attack_words.title(x)
      for _, x in _attacks(runs, column.key)
    }
    titles = list(attacks.values())
    title = attacks[column.attack]
    title = column.attack if titles.count(title) > 1 else title
    return column._replace(title=title or column.title)
  return column


def _failure_notes(runs: Iterable[Run]):
  """Yields which numbers are not to be trusted, and why."""
  failures = [
    f'{run.name}, {suite}: {"; ".join(found)}'
    for run in runs
    for suite in run.suites
    for branch in run.branch_names
    if (found := failed_checks(run, suite, branch))
  ]
  if failures:
    yield f'{FAILED} Not to be trusted, since checks failed. {". ".join(failures)}.'


def _attack_notes(runs: Iterable[Run]):
  """Yields what attacked the images, of all runs at once if that was the same."""
  for suite in ATTACKED:
    attacks: dict[tuple[str, str], list[str]] = {}
    for run, attack in _attacks(runs, suite):
      of_branch = 'attacked through the branch'
      if attack.get('attack_branch'):
        of_branch = 'classified through the branch, and attacked through that other one'
      key = attack_words.describe(attack) or 'not known', of_branch
      attacks.setdefault(key, []).append(run.name)
    for (text, of_branch), names in attacks.items():
      whose = f' of {", ".join(names)}' if len(attacks) > 1 else ''
      yield f'Attack{whose}: {text}; images are {of_branch}.'


def _mark_notes(runs: Iterable[Run]):
  """Yields what the marks behind numbers mean, if there are such numbers."""
  stale = [
    f'{run.name}, {suite}: step {content["checkpoint"].get("step")}'
    for run in runs
    for suite, content in run.suites.items()
    if _is_stale(run, suite)
  ]
  if stale:
    yield (
      f'{STALE} Not of the weights that the newest results of the run are of: '
      f'{"; ".join(stale)}.'
    )
  if any(
    run.scores(suite, branch)
    for run in runs
    for suite in run_files.IN_TRAINING.keys() - run.suites.keys()
    for branch in run.branch_names
  ):
    yield f'{TRAINING} Of the last evaluation in training.'


def _escape(x: str) -> str:
  return ' '.join(x.split()).replace('|', '\\|')


@functools.cache
def _published() -> list[dict[str, str]]:
  """Returns published.tsv, whose numbers are as printed in their sources."""
  file = pathlib.Path(__file__).with_name('published.tsv')
  with file.open(encoding='utf-8', newline='') as lines:
    return list(csv.DictReader(lines, delimiter='\t'))
