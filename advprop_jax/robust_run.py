"""Runs the attacks whose worst case counts on the images of a suite."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging

from advprop_jax import branches, errors, evaluations, robust_config, schema
from advprop_jax.attacks.worst_case import State
from advprop_jax.evaluation import robustness, runner
from advprop_jax.workdir import results


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
    open_file: of what the attacks are, the file that receives what became of each
      example, after every attack; an interrupted evaluation goes on from it.
    progress: called with the share of the work that is done.

  Raises:
    UserError: a value of the config that cannot be, or images that no attack can use.
  """
  start = time.monotonic()
  section, norms = config.eval.robustness, variables['norms']
  for key in ('branch', 'attack_branch'):
    if section[key]:
      errors.check_choice(f'eval.robustness.{key}', section[key], norms)
  num_classes = len(cell.space.class_names)
  work = robust_config.create_work(suite_name, config, num_classes=num_classes)
  file = open_file({'work': repr(work)})
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
    states = {k: x for k, x in found._asdict().items() if x is not None}
    arrays = {f'{k}_fallen_at': x.fallen_at for k, x in states.items()}
    counts = {k: x._replace(fallen_at=None)._asdict() for k, x in states.items()}
    file.save({'position': examples.position, **arrays}, json.dumps(counts))

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

  earlier = _read(file, examples.position)
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
    progress=report,
  )
  for check in outcome.checks:
    if not check.passed:
      logging.warning('suite %s: %s', suite_name, check.text)
  assert outcome.found.worst is not None
  return Robustness(
    outcome.found.worst.num_examples,
    num_unlabelled,
    robustness.describe(work, outcome),
    outcome.pictures,
    secs_before + time.monotonic() - start,
  )


def _read(file: results.ExamplesFile, position) -> robustness.Found:
  """Returns what an interrupted evaluation of the same examples has left."""
  arrays, text = file.read()
  if not arrays or arrays['position'].tolist() != position.tolist():
    return robustness.Found()
  states = {}
  for key, counts in json.loads(text).items():
    if {*counts, 'fallen_at'} != {*State._fields}:  # Of another version of this code.
      return robustness.Found()
    values: dict[str, Any] = {
      k: tuple(x) if isinstance(x, list) else x for k, x in counts.items()
    }
    states[key] = State(**{**values, 'fallen_at': arrays[f'{key}_fallen_at']})
  return robustness.Found(**states)
