"""From the directory of a run to its network, on one device and without TensorFlow."""

import os

import jax

from advprop_jax import branches, errors, model_config, schema
from advprop_jax.weights import classifier
from advprop_jax.workdir import directory, restore


def load(
  workdir: str | os.PathLike,
  *,
  step: str | int,
  branch: str,
  averaged: bool | None,
  dtype: str | None,
  device: jax.Device | None,
) -> classifier.Classifier:
  """Returns the network of a checkpoint; see `advprop_jax.load`."""
  run = directory.last_run(os.fspath(workdir))
  if not directory.saved_steps(run):
    exists = os.path.isdir(os.path.expanduser(workdir))
    raise errors.UserError(
      f'{"no checkpoint is in" if exists else "there is no"} {workdir}; allowed: a '
      'directory that was trained in, or converted to'
    )
  with restore.Reader(f'{run}/checkpoints') as reader:
    found = reader.find(str(step))
    saved, branch_names = reader.describe(found)
    errors.check_choice('branch', branch, branch_names)
    config = _to_load(saved, dtype)
    precision = model_config.matmul_precision(config)
    if not config.data.get('class_names'):
      raise errors.UserError(
        f'the checkpoint {run}/checkpoints/{found} does not know the names of its '
        'classes; allowed: one of a version that writes them down'
      )
    module = model_config.create_module(
      config, num_classes=len(config.data.class_names)
    )
    variables, is_averaged = model_config.restore_variables(
      reader, found, config, module, averaged=averaged
    )
  # By way of the host: it was restored to all devices.
  variables = jax.device_get(branches.variables(**variables, branch=branch))
  return classifier.Classifier(
    module,
    jax.device_put(variables, device),
    config,
    precision=precision,
    step=found,
    averaged=is_averaged,
    branch=branch,
    branch_names=branch_names,
    device=device,
  )


def _to_load(saved: dict, dtype: str | None) -> schema.Section:
  """Returns the config of a checkpoint for one device, and for this arithmetic."""
  config = schema.to_sections(saved)
  change = {'bn_scope': 'device'} | ({'dtype': dtype} if dtype else {})
  return schema.Section(config | {'model': schema.Section(config.model | change)})
