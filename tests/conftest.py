"""Test-wide settings: four CPU devices, strict dtypes, no random key used twice."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import pytest
import tensorflow as tf

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_debug_key_reuse', True)
tf.config.set_visible_devices([], 'GPU')


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory):
  """Returns a data_dir that the digits are prepared in once."""
  return tmp_path_factory.mktemp('tensorflow_datasets')
