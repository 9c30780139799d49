"""Initial weights, drawn on the host.

The distributions are the official code's. numpy draws them: XLA takes about a tenth of
a second to compile the random numbers of one kernel, which is 10 s for B0 and 25 s for
B7, for arithmetic of a moment. They are a function of the key, whatever the device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def conv_kernel(key, shape, dtype=jnp.float32):
  """Returns a [k, k, in, out] kernel: normal, not truncated, variance 2 / fan-out.

  The fan-out is k * k * out, of a depthwise kernel [k, k, 1, C] one group's: k * k.
  Source: `conv_kernel_initializer` of the official code (tensorflow/tpu), where a
  depthwise kernel is [k, k, C, 1].
  """
  outputs = 1 if shape[2] == 1 else shape[3]
  std = math.sqrt(2 / (shape[0] * shape[1] * outputs))
  return _draw(key, shape, dtype, lambda rng: std * rng.standard_normal(shape))


def dense_kernel(key, shape, dtype=jnp.float32):
  """Returns an [in, out] kernel: uniform within +-1 / sqrt(out).

  Source: `dense_kernel_initializer` of the official code (tensorflow/tpu).
  """
  limit = 1 / math.sqrt(shape[1])
  return _draw(key, shape, dtype, lambda rng: rng.uniform(-limit, limit, shape))


def _draw(key, shape, dtype, draw):
  """Returns draw(numpy's generator of the key); works inside `jit` as well."""

  def on_host(key_data):
    rng = np.random.default_rng(np.asarray(key_data))
    return draw(rng).astype(dtype)

  return jax.pure_callback(
    on_host, jax.ShapeDtypeStruct(shape, dtype), jax.random.key_data(key)
  )
