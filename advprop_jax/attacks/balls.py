"""Where an attack may go: noise to start from, directions, projections onto a ball.

Images are float32 in [0, 1], shape [..., H, W, 3]; L-infinity radii are in pixel units
of [0, 1], L2 radii are norms over all values of an image.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_TINY = 1e-12  # Below every norm: a division by 0 would be NaN.


def project_linf(
  x: jax.Array, center: jax.Array, epsilon: float | jax.Array
) -> jax.Array:
  """Returns the point nearest `x` with |x - center| <= epsilon and 0 <= x <= 1."""
  return jnp.clip(jnp.clip(x, center - epsilon, center + epsilon), 0.0, 1.0)


def project_l2(
  x: jax.Array, center: jax.Array, epsilon: float | jax.Array
) -> jax.Array:
  """Returns a point near `x` in the L2 ball around an image and in [0, 1].

  Clipping to the range of pixels never leaves the ball: its centre is in that range.
  """
  delta = x - center
  scale = jnp.minimum(1.0, epsilon / jnp.maximum(l2_norm(delta), _TINY))
  return jnp.clip(center + delta * scale, 0.0, 1.0)


def project_to_pixels(x: jax.Array, center: jax.Array) -> jax.Array:
  """Returns the point nearest `x` with 0 <= x <= 1, however far from the centre."""
  del center
  return jnp.clip(x, 0.0, 1.0)


def l2_norm(x: jax.Array) -> jax.Array:
  """Returns the L2 norm of every image, [..., 1, 1, 1] of [..., H, W, 3]."""
  return jnp.sqrt(jnp.square(x).sum((-3, -2, -1), keepdims=True))


def linf_norm(x: jax.Array) -> jax.Array:
  """Returns the largest absolute value of every image, [..., 1, 1, 1]."""
  return jnp.abs(x).max((-3, -2, -1), keepdims=True)


def l2_direction(gradient: jax.Array) -> jax.Array:
  """Returns the gradient of every image with the L2 norm 1; 0 stays 0."""
  return gradient / jnp.maximum(l2_norm(gradient), _TINY)


def noise_linf(
  rng: jax.Array, image: jax.Array, epsilon: float | jax.Array
) -> jax.Array:
  """Returns noise, uniform in the L-infinity ball, shaped like `image`."""
  return jax.random.uniform(rng, image.shape, image.dtype, -epsilon, epsilon)


def noise_l2(rng: jax.Array, image: jax.Array, epsilon: float | jax.Array) -> jax.Array:
  """Returns noise, uniform in the L2 ball of every image, shaped like `image`."""
  direction_rng, radius_rng = jax.random.split(rng)
  direction = l2_direction(jax.random.normal(direction_rng, image.shape, image.dtype))
  share = jax.random.uniform(radius_rng, image.shape[:-3] + (1, 1, 1), image.dtype)
  return epsilon * share ** (1 / math.prod(image.shape[-3:])) * direction


def border_noise_linf(rng: jax.Array, image: jax.Array) -> jax.Array:
  """Returns uniform noise whose largest absolute value is 1, shaped like `image`."""
  noise = jax.random.uniform(rng, image.shape, image.dtype, -1.0, 1.0)
  return noise / jnp.maximum(linf_norm(noise), _TINY)


def border_noise_l2(rng: jax.Array, image: jax.Array) -> jax.Array:
  """Returns noise of even directions with the L2 norm 1, shaped like `image`."""
  return l2_direction(jax.random.normal(rng, image.shape, image.dtype))


class Ball(NamedTuple):
  """What attacks need of the ball around an image."""

  norm: Callable[[jax.Array], jax.Array]  # Of differences, [..., 1, 1, 1].
  # x, center, epsilon.
  project: Callable[[jax.Array, jax.Array, float | jax.Array], jax.Array]
  direction: Callable[[jax.Array], jax.Array]  # Of a gradient: the step of size 1.
  border_noise: Callable[[jax.Array, jax.Array], jax.Array]  # rng, image: of norm 1.


BALLS = {
  'linf': Ball(linf_norm, project_linf, jnp.sign, border_noise_linf),
  'l2': Ball(l2_norm, project_l2, l2_direction, border_noise_l2),
}


def keys_of_examples(rng: jax.Array, num_examples: int) -> jax.Array:
  """Returns a key for every example, [B], of one key or of as many."""
  return rng if rng.ndim else jax.random.split(rng, num_examples)
