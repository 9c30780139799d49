"""The nearest point of a hyperplane in the range of pixels, by a search on one number.

Every value moves at its own rate in the direction that closes the gap to the plane,
until it is at the end of its range. What has been closed after a move is concave and
piecewise linear in its length: Newton's method from 0 climbs to the length that closes
the gap, and ends after finitely many steps. Nothing is sorted: that is slow in XLA.
"""

import jax
import jax.numpy as jnp

from advprop_jax.attacks import balls

_TINY = 1e-30
# Far more than it takes, 3 to 20. A search that ends early stops short of the plane.
_MAX_STEPS = 100
# How fast values move, the fastest at 1: so the move is the shortest in its norm.
_RATES = {
  'linf': jnp.ones_like,
  'l2': lambda w: jnp.abs(w) / jnp.maximum(balls.linf_norm(w), _TINY),
}


def project(point: jax.Array, w: jax.Array, b: jax.Array, *, norm: str) -> jax.Array:
  """Returns the shortest way from `point` to the plane <w, x> = b within [0, 1].

  What an example gets does not depend on the others. If the plane is out of reach,
  every value with w != 0 goes to the end of its range; those with w == 0 stay.

  Args:
    point: where the way begins, float32 [B, H, W, 3] in [0, 1].
    w: the normal of the plane, like `point`; 0 everywhere: the way is 0.
    b: its offset, float32 [B, 1, 1, 1].
    norm: what the way is short in, 'linf' or 'l2'.

  Returns:
    The difference to add to `point`, like it.
  """
  gap = b - _total(w * point)
  direction = jnp.sign(gap) * jnp.sign(w)
  room = jnp.where(direction > 0, 1.0 - point, point)
  gap, weight, rate = jnp.abs(gap), jnp.abs(w), _RATES[norm](w)

  def newton(state):
    num_steps, length, _ = state
    at_end = length * rate >= room
    closed = _total(jnp.where(at_end, weight * room, 0.0))
    slope = _total(jnp.where(at_end, 0.0, weight * rate))
    moves = slope > 0
    tried = jnp.where(moves, (gap - closed) / jnp.where(moves, slope, 1.0), 0.0)
    return num_steps + 1, jnp.maximum(length, tried), (tried > length).any()

  def goes_on(state):
    num_steps, _, grows = state
    return grows & (num_steps < _MAX_STEPS)

  start = (0, jnp.zeros_like(gap), True)
  _, length, _ = jax.lax.while_loop(goes_on, newton, start)
  return direction * jnp.minimum(length * rate, room)


def _total(x: jax.Array) -> jax.Array:
  """Returns the sum of every image, [B, 1, 1, 1]."""
  return x.sum((-3, -2, -1), keepdims=True)
