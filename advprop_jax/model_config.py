"""From a config to its network. Needs neither data nor TensorFlow."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advprop_jax import errors, models, parallel, registry, schema
from advprop_jax.workdir import restore


def with_class_names(config: schema.Section, class_names) -> schema.Section:
  """Returns a config that says which class each logit stands for."""
  data = schema.Section(config.data | {'class_names': tuple(class_names)})
  return schema.Section(config | {'data': data})


def create_model(config, *, num_classes: int) -> nn.Module:
  """Returns the model of a config, and sets JAX's precision for the whole process."""
  jax.config.update('jax_default_matmul_precision', matmul_precision(config))
  return create_module(config, num_classes=num_classes)


def matmul_precision(config) -> str | None:
  """Returns the precision of products of float32 that a config's model needs; see JAX.

  'float32' holds for every device: JAX's own default lets TPUs and recent GPUs multiply
  float32 in bfloat16 or TF32.
  """
  dtype = config.model['dtype']
  errors.check_choice('model.dtype', dtype, ['bfloat16', 'float32'])
  return 'highest' if dtype == 'float32' else None


def create_module(config, *, num_classes: int) -> nn.Module:
  """Returns the model of a config, whose precision is set elsewhere."""
  section = dict(config.model)
  scope = parallel.statistics_scope(section.pop('bn_scope'))
  section.pop('smooth_backward', None)  # Of the training, see `methods.py`.
  return registry.create(
    'model', models.MODELS, section, num_classes=num_classes, **scope
  )


def abstract_variables(config, model, *, branch_names) -> dict[str, Any]:
  """Returns the shapes and types of {'params', 'norms', 'batch_stats'} of a model."""
  size = config.data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  variables = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), image)
  return {
    'params': variables['params'],
    'norms': dict.fromkeys(branch_names, variables['norm']),
    'batch_stats': dict.fromkeys(branch_names, variables['batch_stats']),
  }


def restore_variables(
  reader: restore.Reader,
  step: int,
  config,
  model: nn.Module,
  *,
  averaged: bool | None = None,
) -> tuple[dict[str, Any], bool]:
  """Returns {'params', 'norms', 'batch_stats'} of a checkpoint, and if it is averages.

  All branches that the checkpoint has; nothing that only training needs is read.

  Args:
    reader: of the directory.
    step: one of `reader.steps()`.
    config: of the model.
    model: the checkpoint's, see `create_model`.
    averaged: see `Checkpointer.restore_model`.

  Raises:
    UserError: the checkpoint is of another model, is damaged, or has no averages.
  """
  _, branch_names = reader.describe(step)
  template = abstract_variables(config, model, branch_names=branch_names)
  return reader.restore_model(step, template, averaged=averaged)
