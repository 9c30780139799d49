"""Initial weights, drawn on the host.

The distributions are the official code's. numpy draws them, from a `host_key`: XLA
compiles the random numbers of each kernel, and each kernel's key, apart, which is tens
of seconds for arithmetic of a moment. They are a function of the key, whatever the
device, and of numpy's version. The backend must have callbacks: see
`train_state.create_train_state`, which draws on the CPU.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as extend_random


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


def normal_kernel(key, shape, dtype=jnp.float32):
  """Returns an [in, out] kernel: normal, with standard deviation 0.01.

  Source: Goyal et al. 2017, section 5.1; SAT, `resnet_model.py`.
  """
  return _draw(key, shape, dtype, lambda rng: 0.01 * rng.standard_normal(shape))


def host_key(key):
  """Returns a key for `model.init` that is cheap to fold a parameter's name into.

  Like `key` it may be used inside `jit`. What is drawn from it by `jax.random` is of
  the quality of jax's own keys, and so is what is drawn here: numpy hashes its seed.

  Args:
    key: any key of 64 bits, such as `jax.random.key(0)`.
  """
  return jax.random.wrap_key_data(jax.random.key_data(key), impl=_HOST_KEY)


def _fold_in(key, data):
  """Returns `key`, uint32 [2], mixed with `data`: other data, another key.

  Source: the multipliers and the shift are those of MurmurHash3's finalizer.
  """
  mixed = (key ^ data) * jnp.array([0x85EBCA6B, 0xC2B2AE35], jnp.uint32)
  return mixed ^ (mixed >> 13)


def _as_threefry(key):
  return jax.random.wrap_key_data(key, impl='threefry2x32')


_HOST_KEY = extend_random.define_prng_impl(
  key_shape=(2,),
  seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl='threefry2x32')),
  split=lambda key, shape: jax.random.key_data(
    jax.random.split(_as_threefry(key), shape)
  ),
  random_bits=lambda key, bit_width, shape: jax.random.bits(
    _as_threefry(key), shape, f'uint{bit_width}'
  ),
  fold_in=_fold_in,
  name='advprop_host',
  tag='host',
)


def _draw(key, shape, dtype, draw):
  """Returns draw(numpy's generator of the key); works inside `jit` as well."""

  def on_host(key_data):
    rng = np.random.default_rng(np.asarray(key_data))
    return draw(rng).astype(dtype)

  return jax.pure_callback(
    on_host,
    jax.ShapeDtypeStruct(shape, dtype),
    jax.random.key_data(key),
    vmap_method='sequential',
  )
