"""The value range of images: the one place that scales them.

Two kinds, told apart by their type, as everywhere in the field: integers are bytes in
0..255, as they come from files and over the link to the devices; floats are in [0, 1],
the pixel unit that attacks and models compute in.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Image = TypeVar('Image', jax.Array, np.ndarray)


def to_unit(image: Image) -> Image:
  """Returns the image in pixel units, float32 in [0, 1], on its device.

  Args:
    image: uint8 in 0..255, or a float type in [0, 1], of any shape; of numpy or JAX,
      and so is the result.
  """
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 255.0
  return image.astype(jnp.float32)
