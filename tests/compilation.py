"""Programs that are ready sooner and run slower: for tests, which make a few steps."""

import contextlib
import json

import jax
import pytest
import tensorflow as tf

from advprop_jax import experiment, schema


@contextlib.contextmanager
def without_optimizations():
  """Leaves out what XLA and TensorFlow do to make programs run faster."""
  jax.config.update('jax_disable_most_optimizations', True)
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
  yield
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False})
  jax.config.update('jax_disable_most_optimizations', False)


@contextlib.contextmanager
def experiments_once():
  """Makes one experiment of each config, so that its programs are compiled once.

  For tests that do not change the files of a data set.
  """
  create, found = experiment.create_experiment, {}

  def create_once(config):
    key = json.dumps(schema.read(config))
    if key not in found:
      found[key] = create(config)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, 'create_experiment', create_once)
    yield
