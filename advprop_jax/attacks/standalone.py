"""AutoAttack for any function from images to logits, of whatever library."""

import dataclasses
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np

from advprop_jax import errors, pixels
from advprop_jax.attacks import (
  balls,
  checks,
  ensembles,
  inputs,
  stage_attack,
  worst_case,
)


@dataclasses.dataclass(frozen=True)
class Result:
  """What attacks have done to some examples, numpy.

  Attributes:
    image: adversarial images, float32 [N, H, W, 3] in [0, 1]; the given ones where no
      attack succeeded, or none was needed.
    is_robust: whether an example was classified correctly and withstood all, bool [N].
    robust_accuracy: share of such examples, 0 to 1.
    clean_accuracy: share of examples that are classified correctly before.
    accuracies: after each attack, by its name.
    checks: signs of a broken evaluation, see `checks.py`.
  """

  image: np.ndarray
  is_robust: np.ndarray
  clean_accuracy: float
  accuracies: dict[str, float]
  checks: tuple[checks.Check, ...]

  @property
  def robust_accuracy(self) -> float:
    return float(self.is_robust.mean())

  def __repr__(self):
    steps = ', '.join(f'{name} {x:.1%}' for name, x in self.accuracies.items())
    text = f'of {len(self.is_robust)}: clean {self.clean_accuracy:.1%}, {steps}'
    failed = ', '.join(x.name for x in self.checks if not x.passed)
    return f'<{text}; failed checks: {failed}>' if failed else f'<{text}>'


def autoattack(
  logits_fn: Callable[..., jax.Array],
  image,
  label,
  rng: jax.Array,
  epsilon: float | None = None,
  *,
  norm: str = 'linf',
  version: str = 'standard',
  batch_size: int = worst_case.MAX_BATCH,
  progress: Callable[[str], None] = lambda line: None,
) -> Result:
  """Attacks images by AutoAttack, and says what to think of the result.

  >>> import jax, jax.numpy as jnp
  >>> weights = jax.random.normal(jax.random.key(0), (8 * 8 * 3, 10))
  >>> def logits_fn(image):  # Of Flax: model.apply(variables, image, train=False).
  ...   return (image - 0.5).reshape(len(image), -1) @ weights
  >>> image = jax.random.uniform(jax.random.key(1), (20, 8, 8, 3))
  >>> label = logits_fn(image).argmax(-1)
  >>> autoattack(logits_fn, image, label, jax.random.key(2), epsilon=8 / 255)
  <of 20: clean 100.0%, apgd-ce 5.0%, apgd-t 5.0%, fab-t 5.0%, square 5.0%>

  It runs on JAX's default device. Signs of an evaluation that is broken are warnings,
  and stand in the result.

  Args:
    logits_fn: images, float32 [B, H, W, 3] in [0, 1], to logits, [B, K]. Normalisation
      is part of it, and so are its weights. It has to be traceable by `jax.jit`; with
      the version 'rand' it is `logits_fn(image, rng)`.
    image: float [N, H, W, C] in [0, 1], or uint8.
    label: int [N], in [0, K).
    rng: one key, as `jax.random.key(0)`.
    epsilon: radius: in pixel units of [0, 1], 8 / 255 if it is not given; or the L2
      norm over all values, which has to be given.
    norm: 'linf' or 'l2'.
    version: a key of `ensembles.VERSIONS`: 'standard', 'plus', or 'rand'.
    batch_size: examples at a time at most. Only of 'rand' the results depend on it.
    progress: called with a line after every run of an attack, such as `print`.

  Raises:
    UserError: images, labels, epsilon or logits that attacks can do nothing with.
  """
  errors.check_choice('version', version, ensembles.VERSIONS)
  errors.check_choice('norm', norm, balls.BALLS)
  rng = inputs.check_key(rng)
  if epsilon is None and norm == 'linf':
    epsilon = 8 / 255
  image, label = np.asarray(image), np.asarray(label)
  inputs.check_images(image, label)
  epsilon = inputs.check_epsilon(epsilon, norm=norm, image_shape=image.shape[1:])
  hint = inputs.hint_of_small_radius(epsilon, norm=norm, image_shape=image.shape[1:])
  if hint:
    warnings.warn(f'epsilon is {epsilon}: {hint}', stacklevel=2)
  if batch_size < 1:
    raise errors.UserError(f'batch_size is {batch_size}; allowed: 1 or more')
  label = label.astype(np.int32)
  if image.dtype != np.uint8:
    image = image.astype(np.float32)
  examples = worst_case.Examples(image, label, np.arange(len(label), dtype=np.int32))
  is_randomised = version == ensembles.RANDOMISED
  key = (rng,) if is_randomised else ()
  shape = jax.ShapeDtypeStruct((1, *image.shape[1:]), np.float32)
  num_classes = inputs.count_classes(logits_fn, shape, *key)
  inputs.check_labels(label, num_classes=num_classes)

  stages = ensembles.stages(
    ensembles.VERSIONS[version], epsilon=epsilon, norm=norm, num_classes=num_classes
  )
  stage_attack.check(
    stages,
    num_classes=num_classes,
    image_shape=image.shape[1:],
    is_randomised=is_randomised,
  )
  run = worst_case.WorstCase(
    lambda variables, *inputs: logits_fn(*inputs).astype(np.float32),
    None,
    num_classes=num_classes,
    norm=norm,
    batch_size=worst_case.even_batch_size(len(image), batch_size),
    rng=rng,
    is_randomised=is_randomised,
  )
  state = run.begin(examples)
  found = checks.before(run, examples, state, stages[0])
  _warn_of(found)
  adversarial = np.array(pixels.to_unit(image))

  def keep(index, images):
    adversarial[index] = images

  start, total = time.monotonic(), worst_case.remaining_cost(stages, state)

  def after_stage(stage, state):
    secs, left = time.monotonic() - start, worst_case.remaining_cost(stages, state)
    secs_left = secs * left / max(total - left, 1)
    progress(
      f'{stage}: {state.robust[-1]} of {state.num_examples} images withstand; '
      f'{secs:.0f} s, and about {secs_left:.0f} s to go if no other falls'
    )

  state = run.run(stages, examples, state, keep=keep, after_stage=after_stage)
  _warn_of(signs := checks.after(stages, state))
  found += signs
  count = len(image)
  robust = dict(zip((stage.attack for stage in stages), state.robust[1:], strict=True))
  return Result(
    image=adversarial,
    is_robust=state.fallen_at == worst_case.ROBUST,
    clean_accuracy=state.robust[0] / count,
    accuracies={name: n / count for name, n in robust.items()},
    checks=tuple(found),
  )


def _warn_of(found: list[checks.Check]):
  """Warns, in the name of the caller of `autoattack`, of checks that did not pass."""
  for check in found:
    if not check.passed:
      warnings.warn(check.text, stacklevel=3)
