"""Sums of a batch norm in one pass, for XLA's CPU backend."""

import jax.numpy as jnp
from jax import lax

# Pixels that one loop sums in registers; LLVM unrolls, and so vectorises, up to some
# more. Measured on the CPU, see benchmarks/README.md.
MAX_RUN = 14


def _add_both(a, b):
  return a[0] + b[0], a[1] + b[1]


def moments(x):
  """Sums runs of pixels for both means in one loop, then the few sums of runs.

  XLA's CPU backend reads the images once for each mean, and one loop for both over all
  pixels is not vectorised.
  """
  axes = tuple(range(x.ndim - 1))
  channels = x.shape[-1]
  pixels = x.size // channels
  run = max(n for n in range(1, MAX_RUN + 1) if pixels % n == 0)
  if run < MAX_RUN // 2:
    return x.mean(axes), jnp.square(x).mean(axes)
  x = x.reshape(pixels // run, run, channels)
  zero = jnp.zeros((), x.dtype)
  sums = lax.reduce((x, jnp.square(x)), (zero, zero), _add_both, dimensions=(1,))
  return tuple(part.sum(0) / pixels for part in sums)
