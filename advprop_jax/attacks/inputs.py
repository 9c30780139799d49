"""What the attacks refuse: images, labels, radii and outputs of models."""

import math

import jax
import numpy as np

from advprop_jax import errors

MAX_PROBABILITY_ERROR = 1e-5  # Of rows that sum to 1. Source: AutoAttack's `checks.py`.


def check_images(image: np.ndarray, label: np.ndarray):
  """Raises UserError if images or labels are not what attacks expect."""
  if image.ndim != 4 or label.shape != image.shape[:1]:
    raise errors.UserError(
      f'images are {list(image.shape)} and labels {list(label.shape)}; allowed: '
      '[N, H, W, C] and [N]'
    )
  if not len(image):
    raise errors.UserError('there are no images; allowed: 1 or more')
  if not np.issubdtype(label.dtype, np.integer):
    raise errors.UserError(f'labels are {label.dtype}; allowed: whole numbers')
  if image.dtype != np.uint8 and not (0 <= image.min() and image.max() <= 1):
    raise errors.UserError(
      f'images have values from {image.min():.4g} to {image.max():.4g}; allowed: 0 to '
      '1, before any normalisation, which is part of the model'
    )


def check_labels(label: np.ndarray, *, num_classes: int):
  """Raises UserError if a label is none of a model's classes."""
  if not (0 <= label.min() and label.max() < num_classes):
    raise errors.UserError(
      f'labels are {label.min()} to {label.max()}; allowed: 0 to {num_classes - 1}, as '
      f'the model has {num_classes} logits'
    )


def check_epsilon(epsilon: float, *, norm: str):
  """Raises UserError if a radius is none."""
  unit = "below 1, in units of pixels in [0, 1]: the papers' 8 is 8 / 255"
  allowed = unit if norm == 'linf' else 'any L2 norm above 0'
  is_ok = math.isfinite(epsilon) and epsilon > 0 and (norm != 'linf' or epsilon < 1)
  if not is_ok:
    raise errors.UserError(f'epsilon is {epsilon}; allowed: above 0, {allowed}')


def check_radius(epsilon, *, norm: str):
  """Raises UserError if an attack cannot have a radius; one that is traced can be any.

  Args:
    epsilon: a number, 0 or more: in pixel units of [0, 1], or of 'l2' the norm over all
      values of an image; or a traced array.
    norm: 'linf' or 'l2'.
  """
  largest = 1 if norm == 'linf' else math.inf
  if isinstance(epsilon, int | float) and not 0 <= epsilon <= largest:
    raise errors.UserError(
      f'attack epsilon is {epsilon}; allowed: 0 to {largest}, in units of pixels in '
      "[0, 1]: the papers' 8 is 8 / 255"
    )


def check_count(name: str, value, *, least: int = 0):
  """Raises UserError if a number of steps or the like is none; a traced one can be any.

  Args:
    name: of the argument.
    value: a whole number, or a traced array.
    least: what is allowed.
  """
  if isinstance(value, jax.Array):
    return
  if not isinstance(value, int | np.integer) or value < least:
    raise errors.UserError(
      f'attack {name} is {value!r}; allowed: a whole number, {least} or more'
    )


def find_problem(logits: np.ndarray) -> str | None:
  """Returns in one line why a model's output is no logits, None if it may be.

  Args:
    logits: of some images, float32 [n, K], n > 0.
  """
  if not np.isfinite(logits).all():
    count = int((~np.isfinite(logits)).any(-1).sum())
    return (
      f'the model returns values that are not finite, for {count} of {len(logits)} '
      'images; allowed: finite logits'
    )
  limit = MAX_PROBABILITY_ERROR
  in_range = logits.min() > -limit and logits.max() < 1 + limit
  if in_range and (abs(logits.sum(-1) - 1) < limit).all():
    return (
      'the model returns probabilities: every row is in [0, 1] and sums to 1; allowed: '
      'logits, since the gradients of a softmax vanish'
    )
  return None
