"""Runs the attacks whose worst case counts on the images of a suite."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from advprop_jax import branches, evaluations, json_files, robust_config, schema
from advprop_jax.attacks.worst_case import State
from advprop_jax.evaluation import robustness, runner, shapes
from advprop_jax.workdir import results

_SAME_EXAMPLES = ('branch', 'attack_branch', 'num_examples', 'subset_seed')


class Robustness(NamedTuple):
  """What was found of a branch."""

  num_examples: int
  num_unlabelled: int
  scores: dict[str, Any]  # As eval/<suite>.json has it.
  pictures: runner.Pictures | None
  seconds: float  # Of all starts, but for attacks that were interrupted.


def evaluate(
  suite_name: str,
  cell: evaluations.Cell,
  config: schema.Section,
  model,
  variables: dict,
  *,
  open_file: Callable[[dict[str, Any]], results.ExamplesFile],
  progress: Callable[[float], None],
) -> Robustness:
  """Attacks the images of a suite through `config.eval.robustness.branch`.

  Args:
    suite_name: a suite for which `robust_config.is_worst_case` holds.
    cell: its images.
    config: of the evaluation.
    model: maps images to logits.
    variables: {'params', 'norms', 'batch_stats'}, replicated.
    open_file: of JSON values that say what the attacks are, the file that receives
      what became of each example, after every attack; an interrupted evaluation goes on
      from it.
    progress: called with the share of the work that is done.

  Raises:
    UserError: a value of the config that cannot be, or images that no attack can use.
  """
  start = time.monotonic()
  section = config.eval.robustness
  num_classes = len(cell.space.class_names)
  work = robust_config.create_work(suite_name, config, num_classes=num_classes)
  # The attacks of the result and those of the curve go on each by themselves.
  common = {'attack': None, 'norm': work.norm}
  common |= {key: section[key] for key in _SAME_EXAMPLES}
  files = (
    open_file({**common, 'stages': repr(work.stages)}),
    open_file({**common, 'stages': repr(work.curve), 'after': len(work.stages)}),
  )
  examples, num_unlabelled = robustness.collect(
    cell.batches,
    num_examples=section.num_examples,
    num_total=cell.dataset.num_examples(cell.split),
    seed=section.subset_seed,
  )
  columns = cell.space.columns

  def logits_of(of_branch, image):
    logits = model.apply(of_branch, image, train=False)
    return logits if columns is None else logits[:, columns]

  def of(branch):
    return branches.variables(**variables, branch=branch)

  def save(found: robustness.Found):
    for file, state in zip(files, found, strict=True):
      if state is not None:
        arrays = {'position': examples.position, 'fallen_at': state.fallen_at}
        counts = {**state._asdict(), 'fallen_at': None}
        file.save(arrays, json.dumps(counts))

  total = 0

  def report(num_left: int):
    nonlocal total
    total = max(total, num_left)
    progress(1 - num_left / max(total, 1))

  def log(name: str, state: State):
    logging.info(
      'suite %s, %s: %d of %d images are classified correctly (%.1f %%)',
      *(suite_name, name, state.robust[-1], state.num_examples),
      100 * state.robust[-1] / state.num_examples,
    )

  earlier = robustness.Found(*(_read(file, examples.position) for file in files))

  def log_checks(found):
    failed = [check for check in found if not check.passed]
    count = len(found) - len(failed)
    logging.info('suite %s: %d of %d checks passed', suite_name, count, len(found))
    for check in failed:
      logging.warning('suite %s: %s', suite_name, check.text)

  states = [x for x in earlier if x is not None]
  secs_before = sum(sum(x.seconds) for x in states)
  outcome = robustness.evaluate(
    logits_of,
    of(section.branch),
    of(section.attack_branch) if robust_config.is_studied(config) else None,
    num_classes=num_classes,
    eval_batch_size=config.data.eval_batch_size,
    seed=config.seed,
    examples=examples,
    work=work,
    found=earlier,
    save=save,
    log=log,
    log_checks=log_checks,
    progress=report,
  )
  assert outcome.found.worst is not None
  return Robustness(
    outcome.found.worst.num_examples,
    num_unlabelled,
    robustness.describe(work, outcome),
    outcome.pictures,
    secs_before + time.monotonic() - start,
  )


def _read(file: results.ExamplesFile, position) -> State | None:
  """Returns what an interrupted evaluation of the same examples has left."""
  arrays, text = file.read()
  if arrays.keys() != {'position', 'fallen_at'}:
    return None
  if arrays['position'].tolist() != position.tolist():
    return None
  try:
    values = json_files.parse_object(text)
  except json_files.UnreadableError:
    return None
  if values.keys() != {*State._fields}:  # Of another version of this code.
    return None
  count, _ = values.pop('num_examples'), values.pop('fallen_at')
  if type(count) is not int or not all(map(shapes.are_numbers, values.values())):
    return None
  fallen_at, left = arrays['fallen_at'], values.pop('robust')
  if fallen_at.shape != position.shape or fallen_at.dtype != np.int32:
    return None
  if {*map(len, values.values())} != {len(left) - 1}:
    return None
  stages = {key: tuple(x) for key, x in values.items()}
  return State(fallen_at, count, tuple(left), **stages)
