"""FAB: the nearest misclassified image, by steps to the boundary between two classes.

A step linearises the difference of two logits, goes to the plane where it is 0, a bit
beyond, and is drawn towards the original image; from a misclassified point the next
step starts nearer the original. Source: Croce and Hein 2020 (FAB); constants as in
AutoAttack.
"""

import jax
import jax.numpy as jnp

from advprop_jax import errors
from advprop_jax.attacks import apgd, balls, hyperplanes, inputs
from advprop_jax.attacks.gradient import Attack

_MIN_LENGTH = 1e-8  # Of the way to a plane, so that shares are no 0 / 0.
_TINY = 1e-12  # Added to the norm of a gradient. Both source: AutoAttack.
# By how much a linear function changes at most along a difference of norm 1.
_DUAL_NORMS = {
  'linf': lambda w: jnp.abs(w).sum((-3, -2, -1), keepdims=True),
  'l2': balls.l2_norm,
}


def make_fab(
  *,
  epsilon: float | jax.Array,
  norm: str = 'linf',
  num_steps: int | jax.Array = 100,
  targeted: bool = True,
  target_rank: int | jax.Array = 2,
  num_classes: int,
  random_start: bool = False,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
  keep_farther: bool = False,
) -> Attack:
  """Returns FAB: every image becomes the nearest misclassified one that was found.

  An image stays as it is if none was found within epsilon or if it is misclassified
  itself.

  Args:
    epsilon: a point as near as that is good enough: an example's first one is kept, and
      the attack ends when all have one. In the unit of `norm`; 0 goes on to the end.
    norm: of the distance, a key of `balls.BALLS`.
    num_steps: at most; it may be traced. Each is two forward passes and one backward
      pass, untargeted `num_classes` backward passes.
    targeted: go to the boundary to one class; else to that of all which is nearest by
      the linearisation.
    target_rank: which class, see `apgd.target_of_rank`. A traced one above K finds
      nothing.
    num_classes: K.
    random_start: start on the sphere of radius epsilon / 2, clipped to [0, 1], instead
      of at the image.
    alpha_max: largest weight of the way from the original image in a step.
    eta: how far to go on the way to the plane; above 1 is beyond it.
    beta: share of the way from the original that the next step keeps when a point is
      misclassified.
    keep_farther: return what was found farther away than epsilon, too.

  Raises:
    UserError: a value is outside its range.
  """
  errors.check_choice('attack norm', norm, balls.BALLS)
  inputs.check_count('num_steps', num_steps)
  inputs.check_radius(epsilon, norm=norm)
  if isinstance(target_rank, int):
    _check(target_rank >= 2, 'target_rank', target_rank, '2 or more')
  _check(num_classes >= 2, 'num_classes', num_classes, '2 or more: one has to be wrong')
  _check(0 <= alpha_max <= 1, 'alpha_max', alpha_max, '0 to 1')
  _check(eta >= 1, 'eta', eta, '1 or more')
  _check(0 <= beta <= 1, 'beta', beta, '0 to 1')
  ball, dual_norm = balls.BALLS[norm], _DUAL_NORMS[norm]

  def attack(logits_fn, image, label, rng):
    if targeted and isinstance(target_rank, int):
      # Not before: a config is checked before its number of classes is known.
      allowed = f'2 to {num_classes}, the number of classes'
      _check(target_rank <= num_classes, 'target_rank', target_rank, allowed)
    logits = logits_fn(image)
    target = apgd.target_of_rank(logits, label, target_rank)

    def is_wrong(logits):
      return (logits.argmax(-1) != label)[:, None, None, None]

    def difference(logits, pullback, other):
      """Returns the logit of another class less the true one's, and its gradient."""

      def sum_of_differences(logits):
        pair = jnp.stack([other, label], -1)
        z = jnp.take_along_axis(logits, pair, -1)
        return (z[:, 0] - z[:, 1]).sum(), z[:, 0] - z[:, 1]

      weights, df = jax.grad(sum_of_differences, has_aux=True)(logits)
      return df[:, None, None, None], pullback(weights)[0]

    def nearest_boundary(logits, pullback):
      """Returns `difference` of the class whose boundary is nearest, if linear."""

      def compare(nearest, k):
        ratio, *_ = nearest
        df, w = difference(logits, pullback, jnp.full_like(label, k))
        new = jnp.abs(df) / (dual_norm(w) + _TINY)
        new = jnp.where((label == k)[:, None, None, None], jnp.inf, new)
        is_nearer = new < ratio
        return tuple(
          jnp.where(is_nearer, x, y) for x, y in zip((new, df, w), nearest, strict=True)
        ), None

      zero = jnp.zeros_like(image[:, :1, :1, :1])
      start = (zero + jnp.inf, zero, jnp.zeros_like(image))
      (_, df, w), _ = jax.lax.scan(compare, start, jnp.arange(num_classes))
      return df, w

    def step(state):
      i, x, nearest, distance = state
      logits, pullback = jax.vjp(logits_fn, x)
      if targeted:
        df, w = difference(logits, pullback, target)
      else:
        df, w = nearest_boundary(logits, pullback)
      b = (w * x).sum((-3, -2, -1), keepdims=True) - df
      from_x = hyperplanes.project(x, w, b, norm=norm)
      from_image = hyperplanes.project(image, w, b, norm=norm)
      near = jnp.maximum(ball.norm(from_x), _MIN_LENGTH)
      far = jnp.maximum(ball.norm(from_image), _MIN_LENGTH)
      alpha = jnp.minimum(near / (near + far), alpha_max)
      x = (1.0 - alpha) * (x + eta * from_x) + alpha * (image + eta * from_image)
      x = jnp.clip(x, 0.0, 1.0)
      wrong, new = is_wrong(logits_fn(x)), ball.norm(x - image)
      # What is good enough stays, however long others of the batch go on.
      is_nearer = wrong & (new < distance) & (distance > epsilon)
      nearest = jnp.where(is_nearer, x, nearest)
      distance = jnp.where(is_nearer, new, distance)
      return i + 1, jnp.where(wrong, image + beta * (x - image), x), nearest, distance

    def goes_on(state):
      i, _, _, distance = state
      return (i < num_steps) & (distance > epsilon).any()

    start = image
    if random_start:
      keys = balls.keys_of_examples(rng, len(image))
      noise = jax.vmap(ball.border_noise)(keys, image)
      start = jnp.clip(image + 0.5 * epsilon * noise, 0.0, 1.0)
    distance = jnp.where(is_wrong(logits), 0.0, jnp.inf)
    state = jax.lax.while_loop(goes_on, step, (0, start, image, distance))
    _, _, nearest, distance = state
    if not keep_farther:
      nearest = jnp.where(distance <= epsilon, nearest, image)
    return jax.lax.stop_gradient(nearest)

  return attack


def _check(is_allowed: bool, name: str, value: float, allowed: str):
  if not is_allowed:
    raise errors.UserError(f'attack {name} is {value}; allowed: {allowed}')
