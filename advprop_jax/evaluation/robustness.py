"""Robust accuracy of a checkpoint: the worst case over attacks, on all devices.

The attacks and the rules are in `attacks/worst_case.py`; here are the images of a data
set, the devices, the curves, and what eval/<suite>.json says of it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from advprop_jax import errors, hosts, parallel, pixels
from advprop_jax.attacks import checks, worst_case
from advprop_jax.attacks.ensembles import Stage
from advprop_jax.attacks.worst_case import ROBUST, Examples, State, WorstCase
from advprop_jax.evaluation import attack_words, runner

# Apart from the keys of `runner.py`, which attacks the same images.
_ROBUSTNESS = 0x0A77AC
STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # Of `loss_by_step`.
_SUBSET = 2  # Beside the seed of the subset of examples.


class Work(NamedTuple):
  """What is run on the examples."""

  stages: tuple[Stage, ...]  # Of which the worst case is taken.
  norm: str
  # One attack at several radii, ascending, each on what the smaller ones have left.
  curve: tuple[Stage, ...] = ()


class Found(NamedTuple):
  """What is known so far; it is saved after every stage."""

  worst: State | None = None
  curve: State | None = None


class Outcome(NamedTuple):
  """What the attacks have done."""

  found: Found
  checks: list[checks.Check]
  loss_by_step: dict[str, list]  # See `loss_by_step`.
  pictures: runner.Pictures | None


def on_all_devices() -> worst_case.Devices:
  """Returns how a batch of this host is split over its devices."""
  return worst_case.Devices(
    compile=lambda function, split: parallel.data_parallel(
      function, split=split, split_outputs=True
    ),
    put=parallel.put,
    get=parallel.join,
    num_local=jax.local_device_count(),
    sum=hosts.sum_over_hosts,
    max=hosts.max_over_hosts,
  )


def batch_size(eval_batch_size: int, num_examples: int) -> int:
  """Returns how many examples of this host are attacked at a time.

  Batches are of equal size, so that little of the last one is empty.

  Args:
    eval_batch_size: of all hosts, a multiple of the number of devices.
    num_examples: of this host.
  """
  num_devices = jax.local_device_count()
  per_device = min(eval_batch_size // jax.device_count(), worst_case.MAX_BATCH)
  most = hosts.max_over_hosts(num_examples)
  return worst_case.even_batch_size(
    most, per_device * num_devices, num_devices=num_devices
  )


def collect(
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  num_examples: int,
  num_total: int,
  seed: int,
) -> tuple[Examples, int]:
  """Returns the examples of this host that count, and how many have no label.

  They are in memory, as they are stored; those without a label are of all hosts.

  Args:
    batches: see `input/batches.py`.
    num_examples: how many of all hosts are drawn, `num_total` at most; 0: all.
    num_total: of all hosts; those that cannot be decoded or have no label count here.
    seed: of the subset. It is the same for all networks on the same data.

  Raises:
    UserError: none counts.
  """
  order = np.random.default_rng([seed, _SUBSET]).permutation(num_total)
  is_chosen = np.zeros(num_total, bool)
  is_chosen[order[: num_examples or num_total]] = True
  parts: list[Examples] = []
  num_unlabelled = 0
  for batch in batches:
    if np.ndim(batch['label']) != 1:
      raise errors.UserError(
        'images have several labels; allowed: one each, to be attacked'
      )
    is_here = (batch['position'] >= 0) & is_chosen[batch['position']]
    counts = batch['mask'] & is_here
    num_unlabelled += int((is_here & (batch['label'] < 0)).sum())
    parts.append(
      Examples(
        np.asarray(batch['image'])[counts],
        np.asarray(batch['label'], np.int32)[counts],
        np.asarray(batch['position'], np.int32)[counts],
      )
    )
  examples = Examples(*(np.concatenate(x) for x in zip(*parts, strict=True)))
  if not hosts.sum_over_hosts(len(examples.label)):
    raise errors.UserError(
      'no image can be attacked: all are without a label, or cannot be decoded; '
      'allowed: a split with one at least'
    )
  return examples, hosts.sum_over_hosts(num_unlabelled)


def evaluate(
  logits_of: worst_case.LogitsOf,
  variables,
  attack_variables,
  *,
  num_classes: int,
  eval_batch_size: int,
  seed: int,
  examples: Examples,
  work: Work,
  found: Found,
  save: Callable[[Found], None],
  log: Callable[[str, State], None],
  log_checks: Callable[[list[checks.Check]], None],
  progress: Callable[[int], None],
) -> Outcome:
  """Attacks examples, or goes on where an interrupted run of it was.

  Args:
    logits_of: maps variables and images to logits.
    variables: of the branch that predicts, replicated.
    attack_variables: of the branch that is attacked through; None: the same.
    num_classes: K.
    eval_batch_size: see `batch_size`.
    seed: of the attacks.
    examples: see `collect`.
    work: the attacks.
    found: what is known already.
    save: called with what is known after every stage.
    log: called before and after every stage, with what has run and the state.
    log_checks: called with what was found, before the attacks and after.
    progress: called with the forward passes that are left at most.
  """
  rng = jax.random.fold_in(jax.random.key(seed), _ROBUSTNESS)
  found = Found(*map(_as_far_as_all_hosts, found))
  run = WorstCase(
    logits_of,
    variables,
    attack_variables=attack_variables,
    num_classes=num_classes,
    norm=work.norm,
    batch_size=batch_size(eval_batch_size, len(examples.label)),
    rng=rng,
    devices=on_all_devices(),
  )
  clean = run.begin(examples)
  log('before any attack', clean)
  for state, stages in ((found.worst, work.stages), (found.curve, work.curve)):
    if state is not None:
      log(f'going on after {state.num_done} of {len(stages)} runs of attacks', state)
  first = next(x for x in work.stages if not x.target_rank)
  signs = checks.before(run, examples, clean, first)
  log_checks(signs)
  adversarial: dict[int, np.ndarray] = {}

  def keep(index, images):
    for i, image in zip(index, images, strict=True):
      if i < min(runner.NUM_PICTURES, run.batch_size):
        adversarial[int(i)] = image

  later = clean.robust[0] * sum(x.cost for x in work.curve)

  def after_batch(state: State, share: float):
    progress(worst_case.remaining_cost(work.stages, state, share) + later)

  def after_stage(stage: Stage, state: State):
    nonlocal found
    found = found._replace(worst=state)
    save(found)
    log(f'{stage}', state)
    after_batch(state, 0.0)

  worst = run.run(
    work.stages,
    examples,
    found.worst or clean,
    keep=keep,
    after_batch=after_batch,
    after_stage=after_stage,
  )
  signs_after = checks.after(work.stages, worst, is_transfer=run.is_transfer)

  def after_radius(stage: Stage, state: State):
    nonlocal found
    found = found._replace(curve=state)
    save(found)
    words = attack_words.radius(stage.epsilon, is_l2=work.norm == 'l2')
    log(f'{words}, {stage}', state)
    progress(worst_case.remaining_cost(work.curve, state))

  if work.curve:
    curve = run.run(
      work.curve,
      examples,
      found.curve or clean,
      after_stage=after_radius,
      first_number=len(work.stages),
    )
    signs_after += checks.after(work.curve, curve, is_transfer=run.is_transfer)
  log_checks(signs_after)
  signs += signs_after
  losses = loss_by_step(run, examples, clean, first)
  return Outcome(found, signs, losses, _pictures(run, examples, adversarial))


def _as_far_as_all_hosts(state: State | None) -> State | None:
  """Returns the state after the stages that all hosts have run; all have to call."""
  num_done = -1 if state is None else state.num_done
  least = -hosts.max_over_hosts(-num_done)
  return None if state is None or least < 0 else state.cut(least)


def loss_by_step(
  run: WorstCase, examples: Examples, clean: State, stage: Stage
) -> dict[str, list]:
  """Returns the loss that an attack with more and more steps reaches, as JSON values.

  Where it still rises at the end, the attack needs more steps.

  Args:
    run: the attacks on the network.
    examples: of this host.
    clean: the state before any attack.
    stage: the attack. It is made by the program that is compiled of it.

  Returns:
    {'step': numbers of steps, 'loss': cross-entropies}: means over one batch of every
    host, of examples that are classified correctly; None where it is not finite. Empty
    for attacks without steps, and if there are no such examples.
  """
  section = dict(stage.section)
  num_steps = section.get('num_steps', 0)
  if not clean.robust[0] or not num_steps:
    return {}
  index = np.flatnonzero(clean.fallen_at == ROBUST)[: run.batch_size]
  label, count = examples.label[index], hosts.sum_over_hosts(len(index))
  steps = [*(n for n in STEPS if n < num_steps), num_steps]
  found: list[float | None] = []
  for n in steps:
    changed = stage._replace(section=tuple({**section, 'num_steps': n}.items()))
    image, _ = run.attack(changed, examples, index, number_of_stage=0)
    logits = run.logits(run.devices.get(image)[: len(index)])
    losses = np.logaddexp.reduce(logits, -1) - logits[np.arange(len(label)), label]
    mean = float(hosts.sum_arrays_over_hosts(losses.sum()) / count)
    found.append(round(mean, 6) if np.isfinite(mean) else None)
  return {'step': steps, 'loss': found}


def describe(work: Work, outcome: Outcome) -> dict[str, Any]:
  """Returns what eval/<suite>.json says of the branch, as JSON values."""
  state, curve = outcome.found.worst, outcome.found.curve
  assert state is not None
  count = state.num_examples
  robust: dict[str, float] = {}
  for stage, left in zip(work.stages, state.robust[1:], strict=True):
    robust[stage.attack] = left / count
  result: dict[str, Any] = {
    'top1': state.robust[-1] / count,
    'clean_top1': state.robust[0] / count,
    'by_attack': robust,
    'stages': [
      {'name': str(stage), 'robust': left, 'rejected': rejected, 'seconds': seconds}
      for stage, left, rejected, seconds in zip(
        work.stages, state.robust[1:], state.rejected, state.seconds, strict=True
      )
    ],
    'checks': [x._asdict() for x in outcome.checks],
    'loss_by_step': outcome.loss_by_step,
  }
  if curve is not None:
    points = {0.0: curve.robust[0] / count}
    for stage, left in zip(work.curve, curve.robust[1:], strict=True):
      points[stage.epsilon] = left / count
    result['by_epsilon'] = {'epsilon': list(points), 'top1': list(points.values())}
  return result


def _pictures(run: WorstCase, examples: Examples, adversarial: dict[int, np.ndarray]):
  """Returns the first examples that have fallen, before and after."""
  index = np.array(sorted(adversarial), int)
  if hosts.max_over_hosts(len(index)) == 0:
    return None
  image = np.asarray(pixels.to_unit(examples.image[index]))
  changed = np.stack([adversarial[int(i)] for i in index]) if len(index) else image
  logits, changed_logits = run.logits(image), run.logits(changed)
  if not len(index):  # Another host has some.
    return None
  return runner.Pictures(image, changed, examples.label[index], logits, changed_logits)
