"""What the attacks refuse: images, labels, radii and outputs of models."""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import errors

# Of messages on radii and steps.
PIXEL_UNIT = "in units of pixels in [0, 1]: the papers' 8 is 8 / 255"
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
  if image.shape[-1] > 3 >= image.shape[1]:
    raise errors.UserError(
      f'images are {list(image.shape)}, as of PyTorch; allowed: [N, H, W, C], which '
      'image.transpose(0, 2, 3, 1) makes of them'
    )
  if image.dtype != np.uint8 and not np.isfinite(image).all():
    count = int((~np.isfinite(image)).any((1, 2, 3)).sum())
    raise errors.UserError(
      f'{count} of {len(image)} images have values that are not finite; allowed: 0 to 1'
    )
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


def check_epsilon(
  epsilon, *, norm: str, image_shape: tuple[int, ...], name: str = 'epsilon'
) -> float:
  """Returns a radius; raises UserError if it is none, or no image is as far away.

  Args:
    epsilon: in pixel units of [0, 1], or of 'l2' the norm over all values.
    norm: 'linf' or 'l2'.
    image_shape: (H, W, C).
    name: of the value, for the message.
  """
  largest, unit = 1.0, PIXEL_UNIT
  if norm == 'l2':
    largest = math.sqrt(math.prod(image_shape))
    unit = f'the L2 norm between a black and a white image of shape {image_shape}'
  is_number = isinstance(epsilon, int | float | np.number)
  if not is_number or not 0 < epsilon < largest:
    raise errors.UserError(
      f'{name} is {epsilon!r}; allowed: a number above 0, below {largest:.4g}, {unit}'
    )
  return float(epsilon)


def hint_of_small_radius(
  epsilon: float, *, norm: str, image_shape: tuple[int, ...]
) -> str:
  """Returns a line on an L2 radius that is less than rounding to bytes changes, or ''.

  Such a radius is often one of L-infinity with `norm='l2'`.
  """
  rounding = 0.5 / 255 * math.sqrt(math.prod(image_shape))
  if norm != 'l2' or epsilon >= rounding:
    return ''
  return (
    f'an L2 radius below {rounding:.2g} is less than rounding to bytes can change in '
    f'images of {image_shape[0]} x {image_shape[1]}'
  )


def check_radius(epsilon, *, norm: str):
  """Raises UserError if an attack cannot have a radius; one that is traced can be any.

  Args:
    epsilon: a number, 0 or more: in pixel units of [0, 1], or of 'l2' the norm over all
      values of an image; or a traced array.
    norm: 'linf' or 'l2'.
  """
  if not isinstance(epsilon, int | float):
    return
  largest, unit = math.inf, 'an L2 norm over all values of an image'
  if norm == 'linf':
    largest, unit = 1, PIXEL_UNIT
  if not 0 <= epsilon <= largest:
    raise errors.UserError(
      f'attack epsilon is {epsilon}; allowed: 0 to {largest}, {unit}'
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


def check_key(rng) -> jax.Array:
  """Returns one typed key of it.

  Raises:
    UserError: it is none.
  """
  if isinstance(rng, jax.Array):
    if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) and not rng.ndim:
      return rng
    if rng.dtype == np.uint32 and rng.shape == (2,):  # Of jax.random.PRNGKey.
      return jax.random.wrap_key_data(rng)
  given = f'of shape {list(rng.shape)}' if hasattr(rng, 'shape') else repr(rng)
  raise errors.UserError(f'rng is {given}; allowed: one key, as jax.random.key(0)')


def count_classes(logits_fn: Callable, *inputs: jax.ShapeDtypeStruct) -> int:
  """Returns how many logits a model has, from shapes alone.

  Args:
    logits_fn: the model.
    *inputs: what it is called with: an image [1, H, W, C], and a key perhaps.

  Raises:
    UserError: it takes something else, cannot be traced, or returns no [B, K].
  """
  names = ', '.join(('image', 'rng')[: len(inputs)])
  try:
    inspect.signature(logits_fn).bind(*inputs)
  except TypeError as e:
    raise errors.UserError(
      f'the model cannot be called as logits_fn({names}): {e}; allowed: with '
      "version='rand' functions of images and a key, otherwise of images alone"
    ) from e
  except ValueError:  # What is not written in Python has no signature.
    pass
  try:
    logits = jax.eval_shape(logits_fn, *inputs)
  except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as e:
    reason = ' '.join(str(e).split('\n')[0].split())
    raise errors.UserError(
      f'the model cannot be traced by jax.jit: {reason}; allowed: functions of '
      'jax.numpy, without if, float or NumPy on what depends on the image'
    ) from e
  shape = getattr(logits, 'shape', None)
  if shape is None or len(shape) != 2 or shape[0] != 1:
    given = type(logits).__name__ if shape is None else f'shape {list(shape)}'
    raise errors.UserError(
      f'the model returns {given} for one image; allowed: logits, of shape [1, K]'
    )
  return shape[1]


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
