"""Gradient attacks on image batches, as pure functions.

Images are float32 in [0, 1], shape [B, H, W, 3]; radii and step sizes are in the same
unit, so the papers' 'epsilon 4' is `4 / 255` here. The model's mean/std normalisation
happens inside `logits_fn`, never before it.

Two layers: `pgd_linf` climbs any loss per example; `make_pgd` makes the papers'
attacker of it, a function `attack(logits_fn, image, label, rng) -> image`. `rng` is one
key for the batch, as in training, or a key for every example, [B], as in evaluation:
then what an example gets does not depend on the batch that it is in.

Which batch norm the attack goes through, and with which statistics, is the business of
whoever makes `logits_fn` (see `train_step.py`): an attack sees a function and cannot
touch a variable.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from advprop_jax import errors, losses

LogitsFn = Callable[[jax.Array], jax.Array]  # [B, H, W, 3] -> [B, K]
LossFn = Callable[[jax.Array], jax.Array]  # [B, H, W, 3] -> [B]
Attack = Callable[[LogitsFn, jax.Array, jax.Array, jax.Array], jax.Array]


def project_linf(x: jax.Array, center: jax.Array, epsilon: float) -> jax.Array:
  """Returns the point nearest `x` with |x - center| <= epsilon and 0 <= x <= 1."""
  return jnp.clip(jnp.clip(x, center - epsilon, center + epsilon), 0.0, 1.0)


def random_wrong_class(rng: jax.Array, label: jax.Array, num_classes: int) -> jax.Array:
  """Returns classes drawn evenly from all but the true one, like `label`.

  Source: Mei et al. 2022 (Fast AdvProp), section 3.2.2: AdvProp's targets are 'random
  sampled from the wrong classes'; drawn as in the first author's released attack.
  """
  shift = jax.random.randint(rng, label.shape, 1, num_classes, label.dtype)
  return (label + shift) % num_classes


def pgd_linf(
  loss_fn: LossFn,
  image: jax.Array,
  start: jax.Array,
  *,
  epsilon: float,
  step_size: float,
  num_steps: int,
) -> jax.Array:
  """Climbs `loss_fn` by sign steps inside an L-infinity ball (Madry et al. 2018).

  Args:
    loss_fn: loss per example; closes over labels and variables.
    image: centre of the ball, float32 [B, H, W, 3] in [0, 1].
    start: where to begin, like `image`. It is not clipped to [0, 1] before the first
      gradient; every step is. Source: the first author's released attack code.
    epsilon: radius, in pixel units of [0, 1].
    step_size: length of a step, in pixel units of [0, 1].
    num_steps: number of gradients; 0 returns the projected start.

  Returns:
    Adversarial images, float32 [B, H, W, 3] in [0, 1]; no gradient flows through them.
  """
  # Summing keeps the examples apart: d(sum)/d(x_i) is x_i's own gradient, as long as
  # norms use running statistics. Batch statistics couple the examples of a device.
  ascent = jax.grad(lambda x: loss_fn(x).sum())

  def step(_, x):
    return project_linf(x + step_size * jnp.sign(ascent(x)), image, epsilon)

  x = jax.lax.fori_loop(0, num_steps, step, start)
  # Only for num_steps == 0, where no step has projected the start; else it is a no-op.
  return jax.lax.stop_gradient(project_linf(x, image, epsilon))


def make_pgd(
  *,
  num_classes: int,
  epsilon: float,
  step_size: float,
  num_steps: int,
  targeted: bool,
  prob_start_from_clean: float,
) -> Attack:
  """Returns the papers' attacker, `attack(logits_fn, image, label, rng) -> image`.

  Args:
    num_classes: K.
    epsilon: radius, in pixel units of [0, 1]; 0 leaves the images as they are.
    step_size: length of a step, in pixel units of [0, 1].
    num_steps: number of gradients.
    targeted: descend the loss of a random wrong class (AdvProp) instead of climbing
      that of the true class (smooth adversarial training).
    prob_start_from_clean: probability to start at the image instead of uniformly in the
      ball; one draw per key, so per device and step in training. Source: the first
      author's released attack code: 0.2 in training, 0 in evaluation.

  Raises:
    UserError: a value is outside its range.
  """
  for name, value in [('epsilon', epsilon), ('step_size', step_size)]:
    if not 0 <= value <= 1:
      raise errors.UserError(
        f'attack {name} is {value}; allowed: 0 to 1, in units of pixels in [0, 1]: '
        "the papers' 8 is 8 / 255"
      )
  if num_steps < 0:
    raise errors.UserError(f'attack num_steps is {num_steps}; allowed: 0 or more')
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
    start_from_clean = jax.random.bernoulli(start_rng, prob_start_from_clean)
    noise = jax.random.uniform(noise_rng, image.shape, image.dtype, -epsilon, epsilon)
    return jnp.where(start_from_clean, image, image + noise), target

  def attack(logits_fn, image, label, rng):
    start, target = (jax.vmap(draw) if rng.ndim else draw)(rng, image, label)
    sign = -1.0 if targeted else 1.0

    def loss_fn(x):
      return sign * losses.cross_entropy(logits_fn(x), target)

    return pgd_linf(
      loss_fn, image, start, epsilon=epsilon, step_size=step_size, num_steps=num_steps
    )

  return attack
