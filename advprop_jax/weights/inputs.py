"""What users give to a network: checked, with one line for what cannot be used."""

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import errors


def check_images(images) -> np.ndarray | jax.Array:
  """Returns an array of images, uint8 or of a float type, [B, H, W, 3].

  Raises:
    UserError: it is none, or floats are not in [0, 1].
  """
  images = as_array(images)
  is_float = jnp.issubdtype(images.dtype, jnp.floating)
  if (
    not (is_float or images.dtype == jnp.uint8)
    or images.ndim != 4
    or images.shape[3] != 3
    or 0 in images.shape
  ):
    raise errors.UserError(
      f'images are {images.dtype} {list(images.shape)}; allowed: [B, H, W, 3], as '
      'uint8 in 0 to 255 or as a float type in [0, 1]'
    )
  if isinstance(images, jax.core.Tracer):  # Its values are not known.
    return images
  if is_float and not (images.min() >= 0 and images.max() <= 1):  # Also of NaN.
    raise errors.UserError(
      f'float images are in {float(images.min()):.4g} to {float(images.max()):.4g}; '
      'allowed: 0 to 1, without a mean taken off; bytes as uint8'
    )
  return images


def check_label(label, *, num_images: int, num_classes: int) -> jax.Array:
  """Returns the class of each image, int32 [B], of one class for all or of B.

  Raises:
    UserError: they are no classes of the images.
  """
  label = np.asarray(label)
  if (
    not np.issubdtype(label.dtype, np.integer)
    or label.shape not in ((), (num_images,))
    or np.any((label < 0) | (label >= num_classes))
  ):
    raise errors.UserError(
      f'label is {label.tolist()!r}; allowed: a whole number from 0 to '
      f'{num_classes - 1}, or a list of one for each of {num_images} images'
    )
  return jnp.broadcast_to(jnp.asarray(label, jnp.int32), [num_images])


def as_array(images) -> np.ndarray | jax.Array:
  """Returns an array; UserError of images of different sizes."""
  if isinstance(images, np.ndarray | jax.Array):
    return images
  try:
    return np.asarray(images)
  except ValueError as e:
    raise errors.UserError(
      'images of different sizes make no array; allowed: [B, H, W, 3], or paths'
    ) from e


def as_number(name: str, x):
  """Returns an array's number as Python's, which has the hash that `jit` needs."""
  if not isinstance(x, np.ndarray | np.generic | jax.Array):
    return x
  if x.size != 1:
    raise errors.UserError(f'{name} is an array {list(x.shape)}; allowed: one number')
  return x.item()


def check_count(name: str, value: int):
  if not isinstance(value, int) or value < 1:
    raise errors.UserError(f'{name} is {value!r}; allowed: a whole number from 1 on')


def fill(images, size: int) -> np.ndarray:
  """Returns up to `size` images as so many, with black ones: few programs for all."""
  images = np.asarray(images)
  return np.pad(images, [(0, size - len(images))] + [(0, 0)] * (images.ndim - 1))
