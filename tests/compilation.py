"""Programs that are ready sooner and run slower: for tests, which make a few steps."""

import contextlib

import jax
import tensorflow as tf


@contextlib.contextmanager
def without_optimizations():
  """Leaves out what XLA and TensorFlow do to make programs run faster."""
  jax.config.update('jax_disable_most_optimizations', True)
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
  yield
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False})
  jax.config.update('jax_disable_most_optimizations', False)
