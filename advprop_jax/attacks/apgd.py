"""Auto-PGD: PGD with momentum that halves its own step size, example by example.

It has no step size to choose: the first steps are twice the radius of the ball, and at
fixed checkpoints a step is halved where the loss has not risen often enough. Images are
float32 in [0, 1], shape [B, H, W, 3]; radii are in the same unit.

Source of the algorithm and of every constant: Croce and Hein 2020, 'Reliable evaluation
of adversarial robustness with an ensemble of diverse parameter-free attacks', section
3, and the authors' code, which it follows where the two differ.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from advprop_jax import errors, losses
from advprop_jax.attacks import balls, inputs
from advprop_jax.attacks.gradient import Attack

MOMENTUM = 0.75  # Share of the new step; the rest is of the one before.
RISING_SHARE = 0.75  # Rho: a step is halved where the loss rose in fewer steps.
# Percent of `num_steps`: until the first checkpoint, between the last ones, and by how
# much each interval is shorter than the one before.
FIRST, SHORTEST, SHORTER_BY = 22, 6, 3
# Ours: an example is climbed on until its margin is below -2 % of the range of its
# logits, since another program may round a smaller one to the other side.
CLEAR = 0.02
MIN_CLASSES = {'ce': 2, 'dlr': 3, 'targeted_dlr': 4}  # By loss.

_TINY = 1e-12  # Below every range of logits: a division by 0 would be NaN.


def first_interval(num_steps):
  """Returns the steps until the first checkpoint, 22 of 100.

  `num_steps` may be traced, so this is arithmetic of whole numbers; the result is the
  int(0.22 * num_steps) of the authors' code.
  """
  return jnp.maximum(FIRST * num_steps // 100, 1)


def next_interval(interval, num_steps):
  """Returns the steps from the checkpoint that ends an interval to the next one."""
  shorter = interval - jnp.maximum(SHORTER_BY * num_steps // 100, 1)
  return jnp.maximum(shorter, jnp.maximum(SHORTEST * num_steps // 100, 1))


class Ascent(NamedTuple):
  """Where the steps have led."""

  # The misclassified point of the lowest margin, or that of the largest loss where none
  # was misclassified: float32 [B, H, W, 3].
  image: jax.Array
  best: jax.Array  # The point of the largest loss.
  has_fallen: jax.Array  # Whether a point was misclassified, bool [B].


# (image, number of the step) -> loss [B], gradient like the image, margin of the true
# class in shares of the range of the logits [B]: negative where it is misclassified.
Evaluate = Callable[
  [jax.Array, jax.Array | int], tuple[jax.Array, jax.Array, jax.Array]
]


class _State(NamedTuple):
  """What changes from step to step; [B] or like the image if nothing else is said."""

  step: jax.Array  # int32 []
  x: jax.Array
  previous: jax.Array  # x, a step ago.
  gradient: jax.Array
  step_size: jax.Array  # [B, 1, 1, 1]
  loss: jax.Array
  best: jax.Array  # The point of the largest loss, its gradient and loss.
  best_gradient: jax.Array
  best_loss: jax.Array
  adversarial: jax.Array  # The misclassified point of the lowest margin.
  lowest_margin: jax.Array  # Its margin; 0 where there is none yet.
  interval: jax.Array  # Between the last checkpoint and the next one, int32 [].
  num_left: jax.Array  # Steps until the next one, int32 [].
  num_rises: jax.Array  # Since the last checkpoint.
  loss_at_checkpoint: jax.Array  # The largest until then.
  was_halved: jax.Array  # At the last checkpoint.


def ascend(
  evaluate: Evaluate,
  image: jax.Array,
  start: jax.Array,
  *,
  norm: str,
  epsilon: float | jax.Array,
  num_steps: int | jax.Array,
  stop_early: bool = True,
) -> Ascent:
  """Climbs the loss of every example by Auto-PGD.

  An example ends when it is misclassified by a clear margin, so what it gets does not
  depend on the others, nor on whether the loop stops early.

  Args:
    evaluate: the loss, its gradient, and the margin.
    image: the middle of the ball, float32 [B, H, W, 3] in [0, 1].
    start: a point of the ball, like `image`.
    norm: a key of `balls.BALLS`.
    epsilon: radius of the ball.
    num_steps: of gradient; the one at the start is not counted. It may be traced.
    stop_early: end when every example has ended.
  """
  ball = balls.BALLS[norm]
  first_length = first_interval(jnp.asarray(num_steps, jnp.int32))

  def step(state: _State) -> _State:
    i = state.step
    share = jnp.where(i == 0, 1.0, MOMENTUM)
    ahead = state.x + state.step_size * ball.direction(state.gradient)
    ahead = ball.project(ahead, image, epsilon)
    x = state.x + share * (ahead - state.x) + (1 - share) * (state.x - state.previous)
    x = ball.project(x, image, epsilon)
    loss, gradient, margin = evaluate(x, i + 1)

    is_lower = (margin < state.lowest_margin) & ~_has_ended(state)
    adversarial = _where(is_lower, x, state.adversarial)
    lowest_margin = jnp.where(is_lower, margin, state.lowest_margin)
    is_better = loss > state.best_loss
    best = _where(is_better, x, state.best)
    best_gradient = _where(is_better, gradient, state.best_gradient)
    best_loss = jnp.where(is_better, loss, state.best_loss)

    num_rises = state.num_rises + (loss > state.loss).astype(loss.dtype)
    is_checkpoint = state.num_left == 1
    few_rises = num_rises <= RISING_SHARE * state.interval.astype(loss.dtype)
    no_gain = ~state.was_halved & (state.loss_at_checkpoint >= best_loss)
    halve = is_checkpoint & (few_rises | no_gain)
    following = next_interval(state.interval, jnp.asarray(num_steps, jnp.int32))
    return _State(
      step=i + 1,
      x=_where(halve, best, x),
      previous=state.x,
      gradient=_where(halve, best_gradient, gradient),
      step_size=state.step_size * jnp.where(halve, 0.5, 1.0)[:, None, None, None],
      loss=loss,
      best=best,
      best_gradient=best_gradient,
      best_loss=best_loss,
      adversarial=adversarial,
      lowest_margin=lowest_margin,
      interval=jnp.where(is_checkpoint, following, state.interval),
      num_left=jnp.where(is_checkpoint, following, state.num_left - 1),
      num_rises=jnp.where(is_checkpoint, 0.0, num_rises),
      loss_at_checkpoint=jnp.where(is_checkpoint, best_loss, state.loss_at_checkpoint),
      was_halved=jnp.where(is_checkpoint, halve, state.was_halved),
    )

  def goes_on(state: _State):
    more = state.step < num_steps
    return more & ~_has_ended(state).all() if stop_early else more

  loss, gradient, margin = evaluate(start, 0)
  first = _State(
    step=jnp.int32(0),
    x=start,
    previous=start,
    gradient=gradient,
    step_size=jnp.full((len(image), 1, 1, 1), 2.0, image.dtype) * epsilon,
    # The authors' code compares the loss after the first step with 0.
    loss=jnp.zeros_like(loss),
    best=start,
    best_gradient=gradient,
    best_loss=loss,
    adversarial=start,
    lowest_margin=jnp.minimum(margin, 0.0),
    interval=first_length,
    num_left=first_length,
    num_rises=jnp.zeros_like(loss),
    loss_at_checkpoint=loss,
    was_halved=jnp.ones(loss.shape, bool),
  )
  last = jax.lax.while_loop(goes_on, step, first)
  has_fallen = last.lowest_margin < 0
  image = _where(has_fallen, last.adversarial, last.best)
  image, best = jax.lax.stop_gradient((image, last.best))
  return Ascent(image, best, has_fallen)


def _has_ended(state: _State) -> jax.Array:
  return state.lowest_margin < -CLEAR


def start_on_border(
  rng: jax.Array, image: jax.Array, *, norm: str, epsilon: float | jax.Array
) -> jax.Array:
  """Returns a random point on the border of the ball, clipped to [0, 1].

  Args:
    rng: a key for every example, [B].
    image: float32 [B, H, W, 3] in [0, 1].
    norm: a key of `balls.BALLS`.
    epsilon: radius of the ball.
  """
  noise = jax.vmap(balls.BALLS[norm].border_noise)(rng, image)
  return jnp.clip(image + epsilon * noise, 0.0, 1.0)


def make_evaluate(
  logits_fn,
  label: jax.Array,
  loss_of,
  rng: jax.Array | None = None,
  *,
  num_samples: int = 1,
) -> Evaluate:
  """Returns what `ascend` asks for at every point.

  Args:
    logits_fn: maps images to logits; of several samples it takes a key as well.
    label: int32 [B], the true classes.
    loss_of: of logits, to be climbed, float32 [B].
    rng: one key, for several samples.
    num_samples: gradients of a randomised network that are averaged at every point.
      The loss and the margin are the last one's, as in the authors' code.
  """

  def total(x, *key):
    logits = logits_fn(x, *key)
    loss = loss_of(logits)
    range_of_logits = logits.max(-1) - logits.min(-1)
    margin = losses.margin(logits, label) / (range_of_logits + _TINY)
    return loss.sum(), (loss, margin)

  gradient_of = jax.grad(total, has_aux=True)

  def evaluate(x, step):
    if num_samples == 1 or rng is None:
      gradient, (loss, margin) = gradient_of(x)
      return loss, gradient, margin

    def add(i, found):
      key = jax.random.fold_in(jax.random.fold_in(rng, step), i)
      gradient, (loss, margin) = gradient_of(x, key)
      return loss, found[1] + gradient, margin

    nothing = jnp.zeros(len(x), x.dtype)
    loss, gradient, margin = jax.lax.fori_loop(
      0, num_samples, add, (nothing, jnp.zeros_like(x), nothing)
    )
    return loss, gradient / num_samples, margin

  return evaluate


def make_apgd(
  *,
  num_classes: int,
  epsilon: float | jax.Array,
  norm: str = 'linf',
  loss: str = 'ce',
  num_steps: int | jax.Array = 100,
  num_samples: int = 1,
  target_rank: int | jax.Array = 2,
  keep_strongest: bool = False,
) -> Attack:
  """Returns Auto-PGD from a random point on the border of the ball.

  Args:
    num_classes: K.
    epsilon: radius, in pixel units of [0, 1]; of 'l2' the norm over all values.
    norm: 'linf' or 'l2'.
    loss: 'ce', 'dlr', or 'targeted_dlr', towards the class of `target_rank`.
    num_steps: of gradient; it may be traced.
    num_samples: see `make_evaluate`; with several, the attack calls
      `logits_fn(image, rng)`.
    target_rank: which class is the target, see `target_of_rank`. It may be traced.
    keep_strongest: take all steps and return the point of the largest loss, to be
      shown to another network; else one that is misclassified, if there is one.

  Raises:
    UserError: a value is outside its range, or there are too few classes for the loss.
  """
  errors.check_choice('attack norm', norm, balls.BALLS)
  errors.check_choice('attack loss', loss, MIN_CLASSES)
  inputs.check_radius(epsilon, norm=norm)
  inputs.check_count('num_steps', num_steps)
  inputs.check_count('num_samples', num_samples, least=1)
  if num_classes < MIN_CLASSES[loss]:
    raise errors.UserError(
      f'the loss {loss!r} needs {MIN_CLASSES[loss]} classes; given: {num_classes}; '
      f'allowed: {", ".join(k for k, n in MIN_CLASSES.items() if n <= num_classes)}'
    )

  def attack(logits_fn, image, label, rng):
    keys = jax.vmap(jax.random.split)(balls.keys_of_examples(rng, len(image)))
    keys, shared = keys[:, 0], keys[0, 1]
    start = start_on_border(keys, image, norm=norm, epsilon=epsilon)
    if loss == 'targeted_dlr':
      key = () if num_samples == 1 else (shared,)
      target = target_of_rank(logits_fn(image, *key), label, target_rank)
      loss_of = functools.partial(losses.targeted_dlr, label=label, target=target)
    else:
      untargeted = losses.dlr if loss == 'dlr' else losses.cross_entropy
      loss_of = functools.partial(untargeted, label=label)

    evaluate = make_evaluate(logits_fn, label, loss_of, shared, num_samples=num_samples)
    found = ascend(
      evaluate,
      image,
      start,
      norm=norm,
      epsilon=epsilon,
      num_steps=num_steps,
      stop_early=not keep_strongest,
    )
    return found.best if keep_strongest else found.image

  return attack


def target_of_rank(
  logits: jax.Array, label: jax.Array, rank: int | jax.Array
) -> jax.Array:
  """Returns the wrong class of the largest logit (rank 2), the next one (3), ..., [B].

  Rank 1 would be the true class, which the network of a correctly classified image
  predicts; another network, that is attacked through, may rank it lower.
  """
  is_true = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  order = jnp.argsort(jnp.where(is_true, jnp.inf, logits), axis=-1, descending=True)
  return jnp.take(order, jnp.asarray(rank) - 1, axis=-1).astype(jnp.int32)


def _where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns images of `x` or of `y`, by a condition of every example, [B]."""
  return jnp.where(condition[:, None, None, None], x, y)
