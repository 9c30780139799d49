"""Signs that an evaluation under attack is not to be trusted, each with its reason.

An attack that fails proves nothing by itself: it may have been given no gradients. The
checks look at one batch of examples that are classified correctly, before the attacks;
one looks at the result.

Sources: Croce et al., AutoAttack's `checks.py` and `flags_doc.md`, of which the limits
are where nothing else is said; Carlini et al. 2019, 'On evaluating adversarial
robustness', the checklist.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from advprop_jax import losses, pixels
from advprop_jax.attacks import apgd
from advprop_jax.attacks.ensembles import Stage
from advprop_jax.attacks.worst_case import ROBUST, Examples, State, WorstCase

MAX_DIFFERENCE = 1e-4  # Of logits of norm 1, between two passes.
MAX_GAIN_OF_SQUARE = 0.002  # Of the robust accuracy, over the attacks with gradients.
MAX_UNSTEADY = 0.005  # Ours: of all images; what may differ from the reference.
MAX_LOSS_OF_STRENGTH = 0.02  # Ours: share of a batch that a stronger attack may lose.
STEPS_OF_WEAKER = 10  # Ours: in how many parts steps are cut for the weaker attack.
MIN_COUNT = 2  # Ours: images; one alone may be an accident of rounding.
SIGMAS = 3.0  # Ours: standard deviations that chance is given, of a batch of images.


class Check(NamedTuple):
  """What a check has found."""

  name: str
  passed: bool
  text: str  # What was found; if it did not pass, what that means.


@dataclasses.dataclass
class _Sample:
  """One batch of examples that are classified correctly."""

  run: WorstCase
  examples: Examples
  index: np.ndarray
  count: int  # Over all hosts.

  def survivors(self, stage: Stage) -> np.ndarray:
    """Returns which examples are still classified correctly, bool [n]."""
    run, index = self.run, self.index
    found = run.attack(stage, self.examples, index, number_of_stage=0)
    image = run.devices.get(found[0])[: len(index)]
    return run.logits(image).argmax(-1) == self.examples.label[index]

  def sum(self, flags: np.ndarray) -> int:
    return self.run.devices.sum(int(flags.sum()))


def before(
  run: WorstCase, examples: Examples, state: State, stage: Stage
) -> list[Check]:
  """Returns what a batch of correctly classified examples says of the model.

  Args:
    run: the attacks on the model.
    examples: of this host.
    state: before any attack.
    stage: an attack with gradients, without a target.
  """
  if not state.robust[0]:
    text = 'no image is classified correctly before any attack'
    why = ': labels, their order or the preprocessing are wrong'
    return [Check('clean', False, text + why)]
  index = np.flatnonzero(state.fallen_at == ROBUST)[: run.batch_size]
  sample = _Sample(run, examples, index, run.devices.sum(len(index)))
  # A randomised model answers each pass in another way; another network than the one
  # that classifies may be wrong from the start.
  found = [] if run.is_randomised else [_check_random(sample), *_check_leaks(sample)]
  if not run.is_transfer:
    found += _check_gradients(sample)
    if not run.is_randomised:
      found += _check_strength(sample, stage)
  return found


def after(
  stages: Sequence[Stage], state: State, *, is_transfer: bool = False
) -> list[Check]:
  """Returns what the results say: images that do not count, and what Square found."""
  found = []
  limit = max(MAX_UNSTEADY * state.num_examples, MIN_COUNT - 1)
  for name, counts, allowed, meaning in (
    ('rules', state.rejected, 0, 'did not count: outside the ball or [0, 1]'),
    ('finite', state.not_finite, 0, 'did not count: logits are not finite there'),
    ('unsteady', state.unsteady, limit, 'were classified otherwise in another program'),
  ):
    if total := sum(counts):
      pairs = zip(stages, counts, strict=True)
      text = ', '.join(f'{n} of {stage}' for stage, n in pairs if n)
      meant = f'adversarial images that {meaning}: {text}'
      found.append(Check(name, total <= allowed, meant))
  # Of `plus` Square is not the last, and attacks with gradients may find the same.
  names = [dict(stage.section)['name'] for stage in stages[-2:]]
  same_radius = len({stage.epsilon for stage in stages[-2:]}) == 1
  is_last = names[-1] == 'square' != names[0]
  if is_last and same_radius and state.robust[-2] and not is_transfer:
    count = state.robust[-2] - state.robust[-1]
    gain = count / state.num_examples
    passed = gain <= MAX_GAIN_OF_SQUARE or count < MIN_COUNT
    text = f'Square lowered the robust accuracy by {gain:.1%}'
    why = ': gradients may be masked, and the true accuracy may be far lower'
    found.append(Check('square', passed, text + why * (not passed)))
  return found


def _check_random(sample: _Sample) -> Check:
  image = sample.examples.image[sample.index]
  first = sample.run.logits(image)
  differences = [
    _difference(first, sample.run.logits(image)),
    _difference(first, sample.run.logits(image, is_traced_anew=True)),
  ]
  count = sample.sum(np.max(differences, axis=0) > MAX_DIFFERENCE)
  text = f'two passes give other logits for {count} of {sample.count} images'
  why = ": the model is randomised, or dropout is left on; see version='rand'"
  return Check('randomised', not count, text + why * bool(count))


def _check_leaks(sample: _Sample):
  """Yields whether the logits of every other image depend on its neighbours."""
  run = sample.run
  if run.batch_size < 2:
    return
  part = Examples(*(x[sample.index] for x in sample.examples))
  image = np.asarray(pixels.to_unit(run.fill(part)['image']))
  other = image.copy()
  other[1::2] = 1 - other[1::2]
  first, second = (run.logits(x)[: len(sample.index) : 2] for x in (image, other))
  count = sample.sum(_difference(first, second) > MAX_DIFFERENCE)
  of = sample.sum(np.ones(len(first), bool))
  text = f'logits of {count} of {of} images depend on the others of their batch'
  why = ': batch norm uses the statistics of the batch, see train=False'
  yield Check('leaks', not count, text + why * bool(count))


def _check_gradients(sample: _Sample):
  """Yields whether the losses have gradients at the images themselves."""
  run, index = sample.run, sample.index
  examples = sample.examples
  images = Examples(examples.image[index], examples.label[index], index)

  compared: dict[str, Any] = {'cross-entropy': losses.cross_entropy}
  if run.num_classes >= apgd.MIN_CLASSES['dlr']:
    compared['DLR'] = losses.dlr

  def vanish(variables, batch, rng):
    key = (rng,) if run.is_randomised else ()
    label = batch['label']
    logits, pull_back = jax.vjp(
      lambda image: run.logits_of(variables, image, *key),
      pixels.to_unit(batch['image']),
    )
    found = []
    for loss in compared.values():
      of_logits = jax.grad(lambda x, loss=loss: loss(x, label).sum())(logits)
      (gradient,) = pull_back(of_logits)
      found.append((gradient == 0).all((1, 2, 3)))
    return found

  compiled = run.devices.compile(vanish, (False, True, False))
  batch = run.devices.put(run.fill(images))
  flags = compiled(run.attack_variables, batch, jax.random.key(0))
  for name, x in zip(compared, flags, strict=True):
    count = sample.sum(run.devices.get(x)[: len(index)])
    text = f'the gradient of the {name} is 0 for {count} of {sample.count} images'
    why = ': attacks by gradients are blind there, and fail without being withstood'
    yield Check(f'gradient of the {name}', not count, text + why * bool(count))


def _check_strength(sample: _Sample, stage: Stage) -> list[Check]:
  """Returns whether the attack does nothing at 0, all at 1/2, and more with more."""
  size = math.prod(sample.examples.image.shape[1:])
  half = 0.5 if sample.run.norm == 'linf' else 0.5 * math.sqrt(size)
  section = dict(stage.section)

  def attack(**changes):
    return sample.survivors(stage._replace(**changes))

  at_epsilon, count = attack(), sample.count
  zero, grey = sample.sum(attack(epsilon=0.0)), sample.sum(attack(epsilon=half))
  found = [
    Check(
      'epsilon 0',
      zero == count,
      f'at epsilon 0, {zero} of {count} correct images stay correct'
      + ': the model or its preprocessing is another one under attack' * (zero < count),
    )
  ]
  chance = 1 / sample.run.num_classes
  limit = count * chance + SIGMAS * math.sqrt(count * chance * (1 - chance))
  if limit < count:  # Of fewer images nothing can be said.
    text = f'at a radius that makes any image grey, {grey} of {count} stay correct'
    why = f', chance is {chance:.1%}: the attack does not work here'
    found.append(Check('epsilon 1/2', grey <= limit, text + why * (grey > limit)))
  pairs = [('larger epsilon', at_epsilon, attack(epsilon=min(2 * stage.epsilon, half)))]
  if section.get('num_steps', 0) > 1:
    num_steps = max(1, section['num_steps'] // STEPS_OF_WEAKER)
    fewer = attack(section=tuple({**section, 'num_steps': num_steps}.items()))
    pairs.insert(0, ('more steps', fewer, at_epsilon))
  for name, weak, strong in pairs:
    lost = sample.sum(strong & ~weak)
    passed = lost <= max(MAX_LOSS_OF_STRENGTH * count, MIN_COUNT - 1)
    text = f'{name}: {lost} of {count} images fall to the weaker attack alone'
    why = ': the loss is not climbed, as if its gradients were masked'
    found.append(Check(name, passed, text + why * (not passed)))
  return found


def _difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns how far apart logits are, each first scaled to the norm 1, [n]."""
  x, y = (a / (np.linalg.norm(a, axis=-1, keepdims=True) + 1e-10) for a in (x, y))
  return np.linalg.norm(x - y, axis=-1)
