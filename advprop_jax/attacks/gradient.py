"""Gradient attacks on image batches, as pure functions, composed of four parts.

  start       the image, or noise around it
  step        along the sign of the gradient, its direction, or the gradient itself
  projection  back into the ball and the range of pixels
  loss        of the true class, to climb, or of a random wrong one, to descend

Images are float32 in [0, 1], shape [B, H, W, 3]; radii and step sizes are in the same
unit, so the papers' 'epsilon 4' is `4 / 255` here. The model's mean/std normalisation
happens inside `logits_fn`, never before it.

`climb` takes the steps; `compose` makes an attack of the parts, a function
`attack(logits_fn, image, label, rng) -> image`; the `make_...` functions below are the
attacks by name. `rng` is one key for the batch, as in training, or a key for every
example, [B], as in evaluation: then what an example gets does not depend on the batch
that it is in.

Which batch norm the attack goes through, and with which statistics, is the business of
whoever makes `logits_fn` (see `train_step.py`): an attack sees a function and cannot
touch a variable.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from advprop_jax import errors, losses
from advprop_jax.attacks import balls, inputs

LogitsFn = Callable[[jax.Array], jax.Array]  # [B, H, W, 3] -> [B, K]
LossFn = Callable[[jax.Array], jax.Array]  # [B, H, W, 3] -> [B]
Attack = Callable[[LogitsFn, jax.Array, jax.Array, jax.Array], jax.Array]


def random_wrong_class(rng: jax.Array, label: jax.Array, num_classes: int) -> jax.Array:
  """Returns classes drawn evenly from all but the true one, like `label`.

  Source: Mei et al. 2022 (Fast AdvProp), section 3.2.2: AdvProp's targets are 'random
  sampled from the wrong classes'; drawn as in the first author's released attack.
  """
  shift = jax.random.randint(rng, label.shape, 1, num_classes, label.dtype)
  return (label + shift) % num_classes


def climb(
  loss_fn: LossFn,
  image: jax.Array,
  start: jax.Array,
  *,
  direction: Callable[[jax.Array], jax.Array],
  project: Callable[[jax.Array, jax.Array], jax.Array],
  step_size: float,
  num_steps: int,
) -> jax.Array:
  """Climbs `loss_fn` by projected steps (Madry et al. 2018).

  Args:
    loss_fn: loss per example; closes over labels and variables.
    image: what the projection is about, float32 [B, H, W, 3] in [0, 1].
    start: where to begin, like `image`. It is not clipped to [0, 1] before the first
      gradient; every step is. Source: the first author's released attack code.
    direction: the gradient to the step of size 1.
    project: (point, image) to a point that is allowed.
    step_size: what the direction is multiplied by.
    num_steps: number of gradients; 0 returns the projected start.

  Returns:
    Adversarial images, float32 [B, H, W, 3] in [0, 1]; no gradient flows through them.
  """
  # Summing keeps the examples apart: d(sum)/d(x_i) is x_i's own gradient, as long as
  # norms use running statistics. Batch statistics couple the examples of a device.
  ascent = jax.grad(lambda x: loss_fn(x).sum())

  def step(_, x):
    return project(x + step_size * direction(ascent(x)), image)

  x = jax.lax.fori_loop(0, num_steps, step, start)
  # Only for num_steps == 0, where no step has projected the start; else it is a no-op.
  return jax.lax.stop_gradient(project(x, image))


def compose(
  *,
  num_classes: int,
  targeted: bool,
  noise: Callable[[jax.Array, jax.Array], jax.Array] | None,
  prob_start_from_clean: float = 0.0,
  **steps,
) -> Attack:
  """Returns `attack(logits_fn, image, label, rng) -> image`, made of its parts.

  Args:
    num_classes: K.
    targeted: descend the loss of a random wrong class (AdvProp) instead of climbing
      that of the true class (smooth adversarial training).
    noise: (rng, image) to what is added to the image at the start; None: nothing.
    prob_start_from_clean: probability to start at the image instead; one draw per key,
      so per device and step in training. Source: the first author's released attack
      code: 0.2 in training, 0 in evaluation.
    **steps: direction, project, step_size, num_steps; see `climb`.

  Raises:
    UserError: a value is outside its range.
  """
  inputs.check_count('num_steps', steps['num_steps'])
  if not 0 <= prob_start_from_clean <= 1:
    raise errors.UserError(
      f'attack prob_start_from_clean is {prob_start_from_clean}; allowed: 0 to 1'
    )
  if targeted and num_classes < 2:
    raise errors.UserError(
      f'a targeted attack needs a wrong class; given: {num_classes} class; '
      'allowed: 2 classes or more, or attack.targeted = False'
    )

  def draw(rng, image, label):
    """Returns where to start, like `image`, and the class of the loss."""
    target_rng, start_rng, noise_rng = jax.random.split(rng, 3)
    target = random_wrong_class(target_rng, label, num_classes) if targeted else label
    if noise is None:
      return image, target
    start_from_clean = jax.random.bernoulli(start_rng, prob_start_from_clean)
    noisy = image + noise(noise_rng, image)
    return jnp.where(start_from_clean, image, noisy), target

  def attack(logits_fn, image, label, rng):
    start, target = (jax.vmap(draw) if rng.ndim else draw)(rng, image, label)
    sign = -1.0 if targeted else 1.0

    def loss_fn(x):
      return sign * losses.cross_entropy(logits_fn(x), target)

    return climb(loss_fn, image, start, **steps)

  return attack


def make_pgd(
  *,
  num_classes: int,
  epsilon: float | jax.Array,
  step_size: float | jax.Array,
  num_steps: int,
  targeted: bool,
  prob_start_from_clean: float,
  step_size_floor: bool = False,
) -> Attack:
  """Returns the papers' attacker: sign steps from noise inside an L-infinity ball.

  Args:
    num_classes: K.
    epsilon: radius, in pixel units of [0, 1]; 0 leaves the images as they are.
    step_size: length of a step, in pixel units of [0, 1].
    num_steps: number of gradients.
    targeted: see `compose`.
    prob_start_from_clean: see `compose`.
    step_size_floor: take steps of epsilon / num_steps if `step_size` is less, so that
      they reach the border. Source: the first author's released attack code.

  Raises:
    UserError: a value is outside its range.
  """
  _check_pixels('epsilon', epsilon)
  _check_pixels('step_size', step_size)
  if step_size_floor:
    step_size = jnp.maximum(step_size, epsilon / jnp.maximum(num_steps, 1))
  return compose(
    num_classes=num_classes,
    targeted=targeted,
    noise=functools.partial(balls.noise_linf, epsilon=epsilon),
    prob_start_from_clean=prob_start_from_clean,
    direction=jnp.sign,
    project=functools.partial(balls.project_linf, epsilon=epsilon),
    step_size=step_size,
    num_steps=num_steps,
  )


def make_ifgsm(
  *, num_classes: int, epsilon: float, step_size: float, num_steps: int, targeted: bool
) -> Attack:
  """Returns I-FGSM: as PGD, but always from the image itself.

  Source: Kurakin et al. 2017; AdvProp, comparison of attackers. Args: see `make_pgd`.
  """
  return make_pgd(
    num_classes=num_classes,
    epsilon=epsilon,
    step_size=step_size,
    num_steps=num_steps,
    targeted=targeted,
    prob_start_from_clean=1.0,
  )


def make_fgsm(*, num_classes: int, epsilon: float, targeted: bool) -> Attack:
  """Returns FGSM: one step from the image to the border of the L-infinity ball.

  Source: Goodfellow et al. 2015. Args: see `make_pgd`.
  """
  return make_ifgsm(
    num_classes=num_classes,
    epsilon=epsilon,
    step_size=epsilon,
    num_steps=1,
    targeted=targeted,
  )


def make_gd(
  *, num_classes: int, learning_rate: float, num_steps: int, targeted: bool
) -> Attack:
  """Returns gradient descent on the image: the raw gradient, in no ball.

  Source: AdvProp, comparison of attackers; its step is in none of the sources that we
  could read.

  Args:
    num_classes: K.
    learning_rate: pixels, in [0, 1], per unit of the gradient of an image's own loss.
    num_steps: number of gradients.
    targeted: see `compose`.
  """
  return compose(
    num_classes=num_classes,
    targeted=targeted,
    noise=None,
    direction=lambda gradient: gradient,
    project=balls.project_to_pixels,
    step_size=learning_rate,
    num_steps=num_steps,
  )


def make_pgd_l2(
  *,
  num_classes: int,
  epsilon_l2: float,
  step_size_l2: float,
  num_steps: int,
  targeted: bool,
  prob_start_from_clean: float,
) -> Attack:
  """Returns PGD in an L2 ball around every image.

  Source: Madry et al. 2018.

  Args:
    num_classes: K.
    epsilon_l2: radius: L2 norm over all values of an image in [0, 1].
    step_size_l2: length of a step, in the same unit.
    num_steps: number of gradients.
    targeted: see `compose`.
    prob_start_from_clean: see `compose`.
  """
  return compose(
    num_classes=num_classes,
    targeted=targeted,
    noise=functools.partial(balls.noise_l2, epsilon=epsilon_l2),
    prob_start_from_clean=prob_start_from_clean,
    direction=balls.l2_direction,
    project=functools.partial(balls.project_l2, epsilon=epsilon_l2),
    step_size=step_size_l2,
    num_steps=num_steps,
  )


def _check_pixels(name: str, value: float | jax.Array):
  is_known = not isinstance(value, jax.core.Tracer)
  if is_known and not 0 <= value <= 1:
    raise errors.UserError(
      f'attack {name} is {value}; allowed: 0 to 1, {inputs.PIXEL_UNIT}'
    )
