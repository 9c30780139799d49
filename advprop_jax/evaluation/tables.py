"""The papers' tables: a row for each branch of a run, beside the published ones."""

import csv
import functools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from advprop_jax.evaluation import run_files


class Column(NamedTuple):
  """A column of the table."""

  title: str
  suite: str
  key: str  # In the suite's summary.
  published: str = ''  # Column of published.tsv; '': nothing is comparable.
  is_percent: bool = True  # Shares of 1 are shown in percent.


COLUMNS = (
  Column('ImageNet top-1, %', 'imagenet', 'top1', 'top1'),
  Column('ImageNet-C mCE (lower is better)', 'c', 'mce', 'mce', is_percent=False),
  Column('ImageNet-A, %', 'a', 'top1', 'a'),
  Column('Stylized-ImageNet, %', 'stylized', 'top1', 'stylized'),
  Column('ImageNet-R, %', 'r', 'top1', 'r'),
  Column('Sketch, %', 'sketch', 'top1', 'sketch'),
  Column('V2, %', 'v2', 'top1', 'v2'),
  Column('ReaL, %', 'real', 'top1', 'real'),
  Column('ObjectNet, %', 'objectnet', 'top1'),
  Column('imagenet2012_corrupted mCE, not ImageNet-C', 'c_tfds', 'mce', '', False),
  Column('own images, top-1, %', 'val', 'top1'),
  Column('top-5, %', 'val', 'top5'),
  Column('ECE, %', 'val', 'ece'),
  Column('under attack, top-1, %', 'pgd', 'top1'),
  Column('corrupted, top-1, %', 'corruptions', 'top1'),
)


class Row(NamedTuple):
  """A line of the table."""

  name: str
  branch: str  # '': published.
  source: str  # Of published numbers; '': ours.
  cells: tuple[str, ...]  # One for each column, '' where there is none.


class Table(NamedTuple):
  """Ours and the published numbers, with the columns that any of ours has."""

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]


def create_table(runs: Iterable[run_files.Run]) -> Table:
  """Returns the table of some runs, each followed by what is published of its model."""
  runs = list(runs)
  columns = tuple(
    column
    for column in COLUMNS
    if any(_value(run, column, b) is not None for run in runs for b in _branches(run))
  )
  rows, models = [], []
  for run in runs:
    for branch in _branches(run):
      cells = tuple(_show(column, _value(run, column, branch)) for column in columns)
      rows.append(Row(run.name, branch, '', cells))
    if run.model not in models:
      models.append(run.model)
  if any(column.published for column in columns):
    for line in _published():
      cells = tuple(line[x.published] if x.published else '' for x in columns)
      if line['model'] in models and any(cells):
        rows.append(Row(f'{line["model"]}: {line["name"]}', '', line['source'], cells))
  return Table(columns, tuple(rows))


def to_markdown(table: Table) -> str:
  """Returns a table for a terminal, or a README."""
  titles = ['run', 'branch', *(x.title for x in table.columns)]
  lines = [titles, ['---'] * len(titles)]
  for row in table.rows:
    who = row.branch or f'published: {row.source}'
    lines.append([row.name, who, *row.cells])
  return '\n'.join(f'| {" | ".join(map(_escape, line))} |' for line in lines)


def attacks(runs: Iterable[run_files.Run]) -> list[str]:
  """Returns what attacked the images of which runs, for a line below the table."""
  found: dict[str, list[str]] = {}
  for run in runs:
    if attack := run.suites.get('pgd', {}).get('attack'):
      found.setdefault(describe_attack(attack), []).append(run.name)
  return [f'{", ".join(names)}: {attack}' for attack, names in found.items()]


def describe_attack(attack: dict[str, Any]) -> str:
  """Returns 'pgd, epsilon 8/255, step_size 2/255, num_steps 10'."""
  values = []
  for key in ('epsilon', 'step_size', 'num_steps', 'targeted'):
    x = attack.get(key)
    if isinstance(x, float):
      values.append(f'{key} {255 * x:.3g}/255')
    elif x:
      values.append(f'{key} {x}')
  return ', '.join([str(attack.get('name')), *values])


def _branches(run: run_files.Run) -> list[str]:
  found = [x for suite in run.suites.values() for x in suite.get('summary', {})]
  return list(dict.fromkeys(found))


def _value(run: run_files.Run, column: Column, branch: str):
  summary = run.suites.get(column.suite, {}).get('summary', {})
  return summary.get(branch, {}).get(column.key)


def _show(column: Column, value) -> str:
  if value is None:
    return ''
  return f'{100 * value:.1f}' if column.is_percent else f'{value:.1f}'


def _escape(x: str) -> str:
  return ' '.join(x.split()).replace('|', '\\|')


@functools.cache
def _published() -> list[dict[str, str]]:
  file = pathlib.Path(__file__).with_name('published.tsv')
  with file.open(encoding='utf-8', newline='') as lines:
    return list(csv.DictReader(lines, delimiter='\t'))
