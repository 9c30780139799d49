"""Trains image classifiers with adversarial examples, in JAX and Flax."""

import typing

if typing.TYPE_CHECKING:
  import os

  import jax

  from advprop_jax.weights.classifier import Classifier


def load(
  workdir: 'str | os.PathLike',
  step: str | int = 'newest',
  branch: str = 'clean',
  averaged: bool | None = None,
  dtype: str | None = None,
  device: 'jax.Device | None' = None,
) -> 'Classifier':
  """Returns the network of a run, to classify images or to attack them.

  It needs one device, whatever it was trained on, and no TensorFlow.

  Args:
    workdir: directory that has been trained in; of phases, the last one's counts.
    step: which checkpoint, 'newest', 'best' by its accuracy in training, or a step.
    branch: whose norms to use; 'clean' is the network that is evaluated and released.
    averaged: whether to load the averages of the weights; None: where there are some.
    dtype: of the arithmetic, 'float32' or 'bfloat16'; None: that of the training.
    device: where to compute; None: JAX's default.

  Raises:
    UserError: there is no such checkpoint or branch, or it is damaged.
  """
  # Not above: `import advprop_jax` loads nothing.
  from advprop_jax.weights import load as weights

  return weights.load(
    workdir, step=step, branch=branch, averaged=averaged, dtype=dtype, device=device
  )
