"""From suites to eval/<suite>.json: what is to be evaluated, and what was found."""

import datetime
import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from absl import logging

from advprop_jax import errors, evaluations, hosts, robust_config, schema
from advprop_jax.evaluation import pictures, records, runner, suites
from advprop_jax.workdir import metric_writer, results

# Keys of `config.model` that change no logit.
NEUTRAL = ('name', 'remat_blocks', 'smooth_backward', 'drop_connect_rate', 'bn_scope')
# Suite -> what marks it in the names of numbers of the same images.
_KINDS = {'pgd': '_pgd', 'autoattack': '_autoattack'}
_VERSIONS = {x.__name__: x.__version__ for x in (jax, flax, np)}


class Work(NamedTuple):
  """A cell that is to be evaluated."""

  suite: str
  name: str
  cell: evaluations.Cell
  about: dict[str, Any]  # Of its images, as eval/<suite>.json has it.
  cost: int  # In forward passes of a batch.


class Pass(NamedTuple):
  """What was found in one pass over the images of a cell."""

  num_examples: int
  num_unlabelled: int
  branches: dict[str, dict[str, Any]]  # Scores of each, as JSON values.
  pictures: runner.Pictures | None
  seconds: float
  suite_names: tuple[str, ...]  # 'val' and 'pgd' are evaluated in one.


def open_work(
  names: Iterable[str], config: schema.Section
) -> tuple[list[Work], list[str]]:
  """Opens all images before any is evaluated; returns what is missing as well."""
  work: list[Work] = []
  problems: list[str] = []
  opened: dict[suites.Cell, evaluations.Cell] = {}
  prints: dict[int, dict] = {}  # Of each data set, which is opened for one split.
  for name in names:
    suite = suites.SUITES[name]
    missing = []
    for cell_name, entry in suite.cells.items():
      try:
        cell = evaluations.open_once(config, entry, opened)
        if id(cell.dataset) not in prints:
          prints[id(cell.dataset)] = cell.dataset.fingerprint(cell.split)
        about = {
          'data': {
            'name': cell.dataset.name,
            'split': cell.split,
            'fingerprint': prints[id(cell.dataset)],
          },
          'input': cell.input,
        }
      except errors.UserError as e:
        missing.append(f'{cell_name}: {e}')
        continue
      cost = len(cell.batches) * _passes(name, config, cell)
      work.append(Work(name, cell_name, cell, about, cost))
    if missing:
      count = f'{len(missing)} of {len(suite.cells)} sets cannot be evaluated; '
      problems.append(
        f'suite {name}, {count if len(suite.cells) > 1 else ""}{missing[0]}'
      )
  if not work:
    for problem in problems[1:]:
      logging.error('%s', problem)
    raise errors.UserError(problems[0])
  return work, problems


def _passes(name: str, config: schema.Section, cell: evaluations.Cell) -> int:
  """Returns the forward passes of an image, if it withstands all attacks.

  Raises:
    UserError: the attacks of the suite cannot be, with the classes of the cell.
  """
  if not suites.SUITES[name].attacked:
    return 1
  if not robust_config.is_worst_case(name, config):
    return 1 + 3 * config.eval.attack.get('num_steps', 1)
  num_examples = config.eval.robustness.num_examples
  num_total = cell.dataset.num_examples(cell.split)
  if num_examples > num_total:
    raise errors.UserError(
      f'eval.robustness.num_examples is {num_examples}; allowed: 0, for all, to '
      f'{num_total}, which the split has'
    )
  work = robust_config.create_work(
    name, config, num_classes=len(cell.space.class_names)
  )
  return 1 + sum(stage.cost for stage in (*work.stages, *work.curve))


def identify(
  name: str, config: schema.Section, weights: dict, branch_names: list[str]
) -> dict[str, Any]:
  """Returns what the results of a suite depend on, as JSON values.

  The images themselves are compared set by set, see `Work.about`.
  """
  suite = suites.SUITES[name]
  cells = suite.cells.values()
  data = {'resize_method': config.data.resize_method}
  for key in ('image_size', 'crop_padding'):
    if any(getattr(cell, key) is None for cell in cells):
      data[key] = config.data[key]
  if any(not cell.sources for cell in cells):
    data |= {'name': config.data.name, 'split': config.data.eval_split}
  identity = {
    'title': suite.title,
    'model': config.model.name,
    'network': {k: x for k, x in config.model.items() if k not in NEUTRAL},
    'checkpoint': weights,
    'branch_names': branch_names,
    'attack': robust_config.describe(name, config) if suite.attacked else None,
    'data': data,
  }
  if suite.attacked or any(cell.corruption for cell in cells):
    identity['seed'] = config.seed
  # Lists in the place of tuples, as in the file.
  return json.loads(json.dumps(identity))


def evaluate_suite(
  file: results.SuiteFile,
  items: list[Work],
  branch_names: list[str],
  run: Callable[[Work], Pass],
  problems: list[str],
  writer: metric_writer.MetricWriter,
) -> dict[str, float]:
  """Evaluates what is missing of a suite, writes it down, and returns its metrics.

  Args:
    file: of the suite; it is written after every cell.
    items: the cells.
    branch_names: those that are evaluated.
    run: evaluates a cell.
    problems: receives a line for a cell that cannot be evaluated.
    writer: of the workdir.
  """
  content, name = file.content, file.content['suite']
  suite, step = suites.SUITES[name], content['checkpoint']['step']
  is_new = False
  for item in items:  # Results of images that have changed do not count.
    if file.find(item.name, item.about) is None:
      content['cells'].pop(item.name, None)
  _describe_cells(content, suite, branch_names)
  for item in items:
    content['class_names'] = list(item.cell.space.class_names)
    record = file.find(item.name, item.about)
    if record is None:
      try:
        record, grid = _evaluate_cell(item, run)
      except errors.UserError as e:
        if jax.process_count() > 1:  # The others are in the middle of it.
          raise
        problems.append(f'suite {name}, {item.name}: {e}')
        continue
      is_new = True
      if grid is not None:
        writer.write_image(step, f'{title(item)}/clean{_KINDS.get(name, "_pgd")}', grid)
    cells = {**content['cells'], item.name: record}
    content['cells'] = {x: cells[x] for x in suite.cells if x in cells}
    _describe_cells(content, suite, branch_names)
    if is_new:
      now = datetime.datetime.now(datetime.UTC)
      content['date'] = now.isoformat(timespec='seconds')
      content['versions'] = _VERSIONS
    file.save()
  if not items:
    return {}
  metrics = _metrics(content, items)
  if is_new:
    writer.write_scalars(
      step,
      metrics,
      about={
        'suite': name,
        'checkpoint': str(file.path.parent.parent / 'checkpoints' / str(step)),
        'averaged': content['checkpoint']['averaged'],
        'attack': content['attack'],
        **(_images_of(items[0]) if _have_same_images(suite) else {}),
      },
    )
  elif metrics:
    logging.info('%s has been evaluated before: %s', name, file.path)
  return metrics


def _describe_cells(content: dict[str, Any], suite: suites.Suite, branch_names):
  """Brings what is said of all cells up to date with the cells."""
  cells = content['cells']
  content['summary'] = records.summarize(suite, cells, branch_names)
  content['complete'] = cells.keys() == suite.cells.keys()
  content['seconds'] = sum(x['seconds'] for x in cells.values())
  notes = [note for x in cells.values() for note in x.get('notes', ())]
  content['notes'] = list(dict.fromkeys([*suite.notes, *notes]))


def _evaluate_cell(item: Work, run: Callable[[Work], Pass]):
  """Returns the record of a cell, and a picture of the attack or None."""
  found = run(item)
  record = {
    **item.about,
    'num_examples': found.num_examples,
    'num_unlabelled': found.num_unlabelled,
    'num_bad': hosts.sum_over_hosts(item.cell.batches.num_bad),
    'notes': list(item.cell.notes),
    'versions': _VERSIONS,
    'seconds': round(found.seconds, 3),
    'seconds_of': list(found.suite_names),
    'branches': found.branches,
  }
  grid = None
  if found.pictures is not None:
    grid = pictures.adversarial_grid(
      **found.pictures._asdict(), class_names=item.cell.space.class_names
    )
  return record, grid


def _metrics(content: dict[str, Any], items: list[Work]) -> dict[str, float]:
  """Returns the numbers of a suite for results.jsonl and TensorBoard."""
  if len(suites.SUITES[content['suite']].cells) > 1:
    return {
      f'{content["suite"]}/{branch}_{key}': x
      for branch, scores in content.get('summary', {}).items()
      for key, x in scores.items()
      if isinstance(x, float)
    }
  if not content['cells']:
    return {}
  (item,) = items
  (record,) = content['cells'].values()
  start, kind = title(item), _KINDS.get(content['suite'], '')
  counts = {f'{start}/{x}': record[x] for x in ('num_examples', 'num_unlabelled')}
  return counts | {
    f'{start}/{branch}{kind}_{key}': x
    for branch, scores in content['summary'].items()
    for key, x in scores.items()
    if isinstance(x, float)
  }


def _have_same_images(suite: suites.Suite) -> bool:
  return len({(cell.sources, cell.label_key) for cell in suite.cells.values()}) == 1


def _images_of(item: Work) -> dict[str, str]:
  return {'dataset': item.cell.dataset.name, 'split': item.cell.split}


def title(item: Work) -> str:
  return f'{item.cell.dataset.name}:{item.cell.split}'
