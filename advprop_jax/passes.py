"""Passes over images: clean and attacked in one, and the worst case over attacks."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from advprop_jax import evaluations, robust_config, robust_run, schema
from advprop_jax.evaluation import records, runner, suites
from advprop_jax.suite_run import Pass, Work
from advprop_jax.workdir import logs, results


class Passes:
  """Evaluates cells, with their progress; each call is that of one."""

  def __init__(
    self,
    todo: Iterable[Work],
    *,
    config: schema.Section,
    model,
    variables: dict,
    branch_names: list[str],
    open_examples: Callable[[Work, dict[str, Any]], results.ExamplesFile],
  ):
    """Prepares the passes; nothing is compiled yet.

    Args:
      todo: all that will be evaluated.
      config: of the evaluation.
      model: maps images to logits.
      variables: {'params', 'norms', 'batch_stats'}, replicated.
      branch_names: those of the network.
      open_examples: of a cell and of what attacks it, the file that receives what
        became of each example.
    """
    self._todo, self._config, self._model = list(todo), config, model
    self._variables, self._branch_names = variables, branch_names
    self._open_examples = open_examples
    self._evaluators = evaluations.Evaluators(config, model)
    total = sum(item.cost for item in self._todo)
    self._report = logs.create_progress(max(1, total), every_secs=10.0)
    self._num_done = 0
    # Of cells that another suite needs as well.
    self._found: dict[int, tuple[runner.Result, float]] = {}

  def __call__(self, item: Work) -> Pass:
    """Evaluates a cell.

    Raises:
      UserError: the images are none that can be evaluated so.
    """
    if robust_config.is_worst_case(item.suite, self._config):
      return self._attack_by_all(item)
    same = [
      x
      for x in self._todo
      if x.cell is item.cell and not robust_config.is_worst_case(x.suite, self._config)
    ]
    if id(item.cell) not in self._found:
      self._found[id(item.cell)] = self._evaluate(same)
    result, secs = self._found[id(item.cell)]
    if item is same[-1]:
      del self._found[id(item.cell)]
    attacked = suites.SUITES[item.suite].attacked
    return Pass(
      int(result.metrics['num_examples']),
      int(result.metrics['num_unlabelled']),
      records.of_branches(result, self._branch_names, attacked=attacked),
      result.pictures,
      secs,
      tuple(x.suite for x in same),
    )

  def _evaluate(self, items: list[Work]) -> tuple[runner.Result, float]:
    """Returns the result of suites on the same images, and its seconds."""
    kinds = {suites.SUITES[x.suite].attacked for x in items}
    cell = items[0].cell
    evaluator = self._evaluators.get(cell, clean=False in kinds, attacked=True in kinds)
    start, num_batches = time.monotonic(), len(cell.batches)
    before, cost = self._num_done, sum(x.cost for x in items)
    result = evaluator(
      **self._variables,
      batches=cell.batches,
      progress=lambda n: self._report(before + cost * n // num_batches),
    )
    self._num_done += cost
    return result, time.monotonic() - start

  def _attack_by_all(self, item: Work) -> Pass:
    """Takes the worst case over several attacks."""
    before = self._num_done
    result = robust_run.evaluate(
      item.suite,
      item.cell,
      self._config,
      self._model,
      self._variables,
      open_file=lambda work: self._open_examples(item, work),
      progress=lambda share: self._report(before + int(share * item.cost)),
    )
    self._num_done += item.cost
    return Pass(
      result.num_examples,
      result.num_unlabelled,
      {self._config.eval.robustness.branch: result.scores},
      result.pictures,
      result.seconds,
      (item.suite,),
    )
