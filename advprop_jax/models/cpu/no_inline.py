"""Keeps XLA's CPU backend from fusing a function with what surrounds it."""

import functools

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def no_inline(function, static_argnames=()):
  """Returns `function` as one that XLA calls, instead of making it part of its caller.

  Its inputs and outputs are in memory, nothing else is. Left to itself the CPU backend
  computes a cheap sum again for every reader, and stores what two expensive functions
  have in common. An `optimization_barrier` does not help: it is gone before fusion.

  Apply it once, to a function of a module: like `jax.jit` it compiles anew for another
  function object.

  Args:
    function: of arrays.
    static_argnames: arguments that are not arrays, as of `jax.jit`.
  """
  jitted = jax.jit(function, static_argnames=static_argnames)

  @functools.wraps(function)
  def call(*args, **kwargs):
    # XLA's own attribute; where it is unknown the function is inlined, and as correct.
    with set_xla_metadata(inlineable='false'):
      return jitted(*args, **kwargs)

  return call
