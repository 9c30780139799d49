"""Keeps XLA's CPU backend from fusing a function with what surrounds it."""

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function):
  """Returns `function` as one that XLA calls, instead of making it part of its caller.

  Its inputs and outputs are in memory, nothing else is. Left to itself the CPU backend
  computes a cheap sum again for every reader, and stores what two expensive functions
  have in common. An `optimization_barrier` does not help: it is gone before fusion.

  Args:
    function: of arrays.
  """
  jitted = jax.jit(function)

  def call(*args):
    # XLA's own attribute; where it is unknown the function is inlined, and as correct.
    with set_xla_metadata(inlineable='false'):
      return jitted(*args)

  return call
