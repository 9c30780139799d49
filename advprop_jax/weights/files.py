"""Image files without TensorFlow: found in folders, and read by Pillow.

What comes out is what `input/decode.py` reads. Of PNG, BMP and WebP the bytes are the
same. Of JPEG they differ by 1.0 grey levels in the mean and 18 at most, cropped and
resized to 224 pixels by 1.0 and 27: TensorFlow is asked for libjpeg's fast transform,
which the published networks were trained with, and Pillow always takes the accurate
one. Measured on 22 photographs, foolbox's and scikit-learn's, with Pillow 13.0,
libjpeg-turbo 3.2 and TensorFlow 2.21, which gives Pillow's very bytes if it is asked
for the accurate transform. Pillow also reads what `decode.py` does not: BMPs with a
palette, and the first image of an animation.
"""

import contextlib
import os
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from advprop_jax import errors
from advprop_jax.input import suffixes

FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')  # Pillow's names of what `decode.py` reads.


def find(paths: Iterable[str | os.PathLike]) -> list[str]:
  """Returns files as they are, and in the place of a folder the images in it, sorted.

  In a folder, and the folders in it, images are told by their names; what begins with a
  dot is left out.

  Raises:
    UserError: a folder has no images.
  """
  found: list[str] = []
  for path in paths:
    name = os.fspath(path)
    found += _images_in(name) if os.path.isdir(name) else [name]
  return found


def _images_in(folder: str) -> list[str]:
  images = []
  for root, folders, names in os.walk(folder):
    folders[:] = [x for x in folders if not suffixes.is_hidden(x)]
    images += [
      os.path.join(root, name)
      for name in names
      if suffixes.is_image(name) and not suffixes.is_hidden(name)
    ]
  if not images:
    raise errors.UserError(
      f'folder {folder} has no images; allowed: files that end in '
      f'{", ".join(suffixes.IMAGE_SUFFIXES)}, also in folders in it'
    )
  return sorted(images)


def read(path: str, *, exif_orientation: bool) -> np.ndarray:
  """Returns the pixels of an image file, uint8 [H, W, 3], RGB.

  Grey, CMYK and palette images become RGB; transparency is dropped, and of 16 bits the
  upper 8 count, as in `input/decode.py`.

  Args:
    path: of the file.
    exif_orientation: turn the image as the entry of its camera says.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with Image.open(path, formats=FORMATS) as opened:
      opened.load()
      image: Image.Image = opened
      if exif_orientation:
        # A damaged entry turns nothing; Pillow has no one error for it.
        with contextlib.suppress(Exception):
          image = ImageOps.exif_transpose(image)
      if image.mode.startswith('I'):  # 16 bits of grey.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      # Pillow warns when it drops transparency.
      image.info.pop('transparency', None)
      return np.asarray(image.convert('RGB'))
  except UnidentifiedImageError as e:
    raise _unreadable(path, 'it is none, or its header is damaged') from e
  except OSError as e:
    raise _unreadable(path, e.strerror or str(e)) from e
  # Whatever else Pillow raises, and of a damaged file that may be anything.
  except Exception as e:
    raise _unreadable(path, str(e) or type(e).__name__) from e


def _unreadable(path: str, reason: str) -> errors.UserError:
  return errors.UserError(
    f'cannot read image {path}: {" ".join(reason.split())}; allowed: '
    f'{", ".join(FORMATS)}'
  )
