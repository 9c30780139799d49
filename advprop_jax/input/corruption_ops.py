"""The operations on images that the corruptions are made of; see `corruptions.py`.

Each in the formulation that is fast in NumPy and SciPy, and checked against OpenCV,
scikit-image and ImageMagick, which the published code calls.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy import fft, ndimage


def disk_blur(image: np.ndarray, radius: int, smoothing: float) -> np.ndarray:
  """Returns the average over a disk around every pixel; mirrored at the borders.

  Args:
    image: float [H, W, C].
    radius: in pixels.
    smoothing: standard deviation of the blur of the disk's border.
  """
  kernel = _disk(radius, smoothing)
  reach = kernel.shape[0] // 2
  height, width = image.shape[:2]
  rows, columns = _mirrored(height, reach), _mirrored(width, reach)
  planes = np.moveaxis(image, -1, 0)[:, rows[:, None], columns]
  size = tuple(fft.next_fast_len(n, real=True) for n in planes.shape[1:])
  spectrum = fft.rfft2(planes, size) * _disk_spectrum(radius, smoothing, size)
  planes = fft.irfft2(spectrum, size)
  top = 2 * reach  # What comes before would need the image further outside.
  return np.moveaxis(planes[:, top : top + height, top : top + width], 0, -1)


@functools.lru_cache
def _disk(radius: int, smoothing: float) -> np.ndarray:
  """Returns the weights, float32 [2 r + 1, 2 r + 1]; small disks have a wide margin."""
  reach = max(radius, 8)
  line = np.arange(-reach, reach + 1)
  disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float32)
  disk /= disk.sum()
  half = 1 if radius <= 8 else 2
  taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * smoothing**2))
  taps /= taps.sum()
  for axis in (0, 1):
    disk = ndimage.correlate1d(disk, taps, axis, mode='mirror')
  return disk


@functools.lru_cache
def _disk_spectrum(radius: int, smoothing: float, size: tuple) -> np.ndarray:
  # Symmetric, so that convolving is correlating.
  return fft.rfft2(_disk(radius, smoothing).astype(np.float64), size)


@functools.lru_cache
def _mirrored(length: int, reach: int) -> np.ndarray:
  """Returns places 0 to length - 1, and so many on either side of them."""
  return np.pad(np.arange(length), reach, mode='reflect')


def glass_sources(shape: tuple, reach: int, rng: np.random.Generator) -> np.ndarray:
  """Returns the pixel that each pixel is taken from.

  One after the other, from the last to the first, the pixels are overwritten by one at
  most `reach` away, which may have been overwritten before. All at once here: whoever
  takes from an overwritten one takes from where that was taken, and so on. A chain of n
  is followed in log2(n) passes.

  Args:
    shape: (H, W). A border is left as it is, and so is an image that is all border.
    reach: shifts are drawn from -reach to reach - 1.

  Returns:
    int [H * W], of 0 to H * W - 1.
  """
  height, width = shape
  rows = np.arange(height - reach, reach, -1)
  columns = np.arange(width - reach, reach, -1)
  targets = (rows[:, None] * width + columns).ravel()
  shifts = rng.integers(-reach, reach, size=(targets.size, 2))
  sources = targets + shifts[:, 1] * width + shifts[:, 0]
  num_pixels = height * width
  # Pixels before: 0 to N - 1, after: N to 2 N - 1. Those further on were overwritten
  # already, if they are at all.
  follow = np.arange(2 * num_pixels) % num_pixels
  follow[num_pixels + targets] = sources + num_pixels * (sources > targets)
  found = follow[num_pixels:]
  while (found >= num_pixels).any():
    follow[num_pixels:] = follow[found]
  return found


def motion_blur(image: np.ndarray, radius: int, std: float, angle: float) -> np.ndarray:
  """Returns the image, blurred along a line that begins at each pixel.

  As ImageMagick has it: half a normal distribution along the line, each tap at the
  nearest pixel, borders repeated, and the sum rounded to 16 bits, then cut to 8.

  Args:
    image: uint8 [H, W, C].
    radius: the line has 2 * radius + 1 taps.
    std: of the weights, in pixels along the line.
    angle: in degrees, clockwise from the right.
  """
  num_taps = 2 * radius + 1
  steps = np.arange(num_taps)
  weights = np.exp(-(steps**2) / (2 * std**2))
  weights = (weights / weights.sum()).astype(np.float32)
  direction = np.deg2rad(angle)
  down = np.ceil(steps * np.sin(direction) - 0.5).astype(int)
  right = np.ceil(steps * np.cos(direction) - 0.5).astype(int)
  height, width = image.shape[:2]
  top, left = min(down), min(right)
  rows = np.arange(top, height + max(down)).clip(0, height - 1)
  columns = np.arange(left, width + max(right)).clip(0, width - 1)
  padded = image[rows[:, None], columns].astype(np.float32)
  total = np.zeros(image.shape, np.float32)
  for weight, y, x in zip(weights, down - top, right - left, strict=True):
    total += weight * padded[y : y + height, x : x + width]
  return (total + 1 / 514).astype(np.uint8)


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
  """Returns the middle of an image, magnified to the size of all of it.

  Args:
    image: float32 or float64 [H, W, C].
    factor: 1 or more.
  """
  zoomed = image.astype(np.float64)
  for _ in range(2):  # The rows, then the columns, which the first turn makes rows.
    low, high, low_weight, high_weight = _zoom_taps(zoomed.shape[0], float(factor))
    first, second = zoomed[low], zoomed[high]
    first *= low_weight
    second *= high_weight
    first += second
    zoomed = np.swapaxes(first, 0, 1)
  return zoomed.astype(image.dtype)


@functools.lru_cache(maxsize=1024)
def _zoom_taps(length: int, factor: float) -> tuple:
  """Returns two places and two weights for each of a line's new values."""
  crop = int(np.ceil(length / factor))
  matrix = ndimage.zoom(np.eye(crop), (factor, 1), order=1)
  first = (matrix.shape[0] - length) // 2
  matrix = matrix[first : first + length]
  low = (matrix > 0).argmax(1)
  high = np.minimum(low + 1, crop - 1)
  line = np.arange(length)
  low_weight = matrix[line, low]
  high_weight = np.where(high > low, matrix[line, high], 0)
  start = (length - crop) // 2
  return (
    start + low,
    start + high,
    low_weight[:, None, None],
    high_weight[:, None, None],
  )


def change_hsv(
  image: np.ndarray,
  *,
  value: Callable[[np.ndarray], np.ndarray] = np.asarray,
  saturation: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
  """Returns the image with other values and saturations, and the hues that it has.

  Args:
    image: float [H, W, 3], in [0, 1].
    value: of values, [H, W, 1], what they become, before they are cut off at 0 and 1.
    saturation: likewise. The hue of what has none is red.
  """
  high = image.max(-1, keepdims=True)
  spread = high - image.min(-1, keepdims=True)
  is_grey = spread == 0
  # Of each channel, how far it is below the highest: 0 to 1, the lowest.
  below = (high - image) / np.where(is_grey, 1, spread)
  below = np.where(is_grey, (0.0, 1.0, 1.0), below)
  purity = spread / np.where(high == 0, 1, high)
  return np.clip(value(high), 0, 1) * (1 - np.clip(saturation(purity), 0, 1) * below)


def random_affine(
  image: np.ndarray, reach: float, rng: np.random.Generator
) -> np.ndarray:
  """Returns the image under the affine map that moves three points at random.

  Args:
    image: float32 [H, W, C]. The points are corners of a square about its middle.
    reach: largest shift of a point in either direction, in pixels.
  """
  height, width = image.shape[:2]
  half = max(min(height, width) // 3, 1)
  corners = np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
  points = np.array([width // 2, height // 2], np.float32) + half * corners
  moved = points + rng.uniform(-reach, reach, points.shape).astype(np.float32)
  # [x, y, 1] of the result @ back -> [x, y] of the image.
  back = np.linalg.solve(np.c_[moved, np.ones(3)].astype(np.float64), points)
  y, x = np.indices((height, width))
  places = [x * back[0, i] + y * back[1, i] + back[2, i] for i in (1, 0)]
  return sample(image, np.stack(places), 'mirror')


def smooth(field: np.ndarray, std: float) -> np.ndarray:
  """Returns a field, blurred with any standard deviation; float64 [H, W].

  The field is mirrored, edges included, at its borders: then the cosine transform turns
  the blur into a product, however wide it is.
  """
  height, width = field.shape
  spectrum = fft.dctn(field)
  spectrum *= _blur_spectrum(height, std)[:, None] * _blur_spectrum(width, std)
  return fft.idctn(spectrum)


@functools.lru_cache(maxsize=64)
def _blur_spectrum(length: int, std: float) -> np.ndarray:
  taps = np.arange(1, int(3 * std + 0.5) + 1)  # Up to 3 deviations, as published.
  weights = np.exp(-(taps**2) / (2 * std**2))
  waves = np.cos(np.pi / length * np.arange(length)[:, None] * taps)
  return (1 + 2 * waves @ weights) / (1 + 2 * weights.sum())


def sample(image: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
  """Returns the image at other places, bilinearly.

  Args:
    image: float [H, W, C].
    places: float [2, H, W], rows and columns.
    mode: what is outside, as `scipy.ndimage` calls it.
  """
  return np.stack(
    [
      ndimage.map_coordinates(image[..., i], places, order=1, mode=mode)
      for i in range(image.shape[-1])
    ],
    axis=-1,
  )
