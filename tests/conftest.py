"""Test-wide settings: four CPU devices, strict dtypes, no random key used twice."""

import os
import tempfile

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# XLA's older emitters of CPU code compile in less than half the time; subprocesses
# inherit them. What stands in the environment comes later, and wins: as users have it
# with `XLA_FLAGS=--xla_cpu_use_fusion_emitters=true`.
os.environ['XLA_FLAGS'] = ' '.join(
  ['--xla_cpu_use_fusion_emitters=false', os.environ.get('XLA_FLAGS', '')]
)

import compilation
import jax
import pytest
import tensorflow as tf

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_debug_key_reuse', True)
tf.config.set_visible_devices([], 'GPU')

# Many tests build the same programs: compile each once in a process. Not in one folder
# for all processes, since JAX may read there what another has half written.
_cache = tempfile.TemporaryDirectory(prefix='advprop_jax_test_compilations_')
jax.config.update('jax_compilation_cache_dir', _cache.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def pytest_collection_modifyitems(items):
  """Puts what takes most of a minute first in either half of the list.

  Each of two processes starts with its half and takes over some of the other's when it
  is done: that should be short ones.
  """
  first = [item for item in items if item.get_closest_marker('long')]
  others = [item for item in items if not item.get_closest_marker('long')]
  half, middle = len(first) // 2, (len(items) - len(first)) // 2
  items[:] = first[:half] + others[:middle] + first[half:] + others[middle:]


@pytest.fixture(scope='session')
def imagenet_dir(tmp_path_factory):
  """Returns a data_dir with a small imagenet2012, prepared once in a process."""
  import tiny_imagenet  # Loads tensorflow-datasets: only where it is needed.

  data_dir = tmp_path_factory.mktemp('imagenet')
  tiny_imagenet.prepare(data_dir, tmp_path_factory.mktemp('archives'))
  return data_dir


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory):
  """Returns a data_dir that the digits are prepared in, once in a process."""
  return tmp_path_factory.mktemp('tensorflow_datasets')


@pytest.fixture(scope='session')
def saved_run_dir(tmp_path_factory):
  """Returns the directory of a run with a tiny network, saved once in a process."""
  import saved_run  # Loads Orbax: only where it is needed.

  path = tmp_path_factory.mktemp('saved_run')
  saved_run.write(path)
  return path


@pytest.fixture
def fast_compilation():
  """Leaves out optimizations: two steps take longer to compile than to make."""
  with compilation.without_optimizations():
    yield
