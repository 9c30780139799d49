"""What falls on an image, or lies before it: fog, frost and drops of water.

See `corruptions.py`.
"""

import functools

import numpy as np
from scipy import fft, ndimage

# Of the five photographs of frost that the published code crops: mean red, green and
# blue, and standard deviation of their mean, over all crops of 224 pixels, and the
# exponent of the power spectrum. The second and the third look the same. Source:
# measured, on the copies in the package imagecorruptions-imaug 1.1.5.
FROSTS = (
  ((77, 148, 164), 18, -1.85),
  ((198, 202, 212), 21, -1.68),
  ((198, 202, 212), 21, -1.68),
  ((145, 160, 173), 27, -1.25),
  ((101, 112, 124), 38, -1.79),
)
FROST_SIDE = 512
# Of the distances in water, as OpenCV's DIST_L2 with a mask of 5 has them: steps and
# their lengths, in 1 / DISTANCE_UNIT pixels. Source: `distransform.cpp` of OpenCV.
DISTANCE_UNIT = 1 << 16
DISTANCE_STEPS = (
  ((0, 1), (1, 0), 1.0),
  ((1, 1), (1, -1), 1.4),
  ((1, 2), (2, 1), 2.1969),
  ((1, -2), (2, -1), 2.1969),
)
MAX_DISTANCE = 20  # In pixels. Source: as in `corruptions.py`.
EDGE_THRESHOLDS = (50, 150)  # Source: likewise.
RIPPLES = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))  # Source: likewise.


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
  """Returns a fractal cloud by the diamond-square algorithm.

  Args:
    side: in pixels.
    decay: by what the amplitude shrinks when the scale is halved.

  Returns:
    float64 [S, S], from 0 to 1; S is the smallest power of two from `side` on, and 2
    at least. The cloud is periodic.
  """
  size = 1 << max(side - 1, 1).bit_length()
  cloud = np.zeros((size, size))
  step, amplitude = size, 100.0

  def disturbed(total):
    # The amplitude counts twice, as published.
    return total / 4 + amplitude * rng.uniform(-amplitude, amplitude, total.shape)

  while step >= 2:
    half = step // 2
    corners, centres = cloud[::step, ::step], cloud[half::step, half::step]
    total = corners + np.roll(corners, -1, 0)
    centres[:] = disturbed(total + np.roll(total, -1, 1))
    above = centres + np.roll(centres, 1, 0)
    cloud[::step, half::step] = disturbed(above + (corners + np.roll(corners, -1, 1)))
    beside = centres + np.roll(centres, 1, 1)
    cloud[half::step, ::step] = disturbed(beside + (corners + np.roll(corners, -1, 0)))
    step, amplitude = half, amplitude / decay
  cloud -= cloud.min()
  return cloud / cloud.max()


def frost(shape: tuple, rng: np.random.Generator) -> np.ndarray:
  """Returns a crop of a frosted pane.

  The published code crops one of five photographs, which are not ours to copy. Noise
  stands in for each, with its mean colour, contrast and power spectrum, but none of its
  crystals. Images that exceed a pane see it repeated.

  Args:
    shape: (H, W).

  Returns:
    uint8 [H, W, 3].
  """
  pane = _pane(int(rng.integers(len(FROSTS))))
  top, left = (int(rng.integers(0, FROST_SIDE)) for _ in range(2))
  rows = np.arange(top, top + shape[0]) % FROST_SIDE
  columns = np.arange(left, left + shape[1]) % FROST_SIDE
  return pane[rows[:, None], columns]


@functools.lru_cache(maxsize=len(FROSTS))
def _pane(index: int) -> np.ndarray:
  """Returns uint8 [FROST_SIDE, FROST_SIDE, 3]: always the same, and periodic."""
  colour, std, exponent = FROSTS[index]
  noise = np.random.default_rng(index).standard_normal((FROST_SIDE, FROST_SIDE))
  frequency = np.hypot(np.fft.fftfreq(FROST_SIDE)[:, None], np.fft.rfftfreq(FROST_SIDE))
  frequency[0, 0] = np.inf  # Noise of mean 0.
  noise = fft.irfft2(fft.rfft2(noise) * frequency ** (exponent / 2), noise.shape)
  pane = np.array(colour) + (std / noise.std()) * noise[..., None]
  return np.clip(pane, 0, 255).astype(np.uint8)


def water_drops(liquid: np.ndarray) -> np.ndarray:
  """Returns how much light drops of water reflect.

  Args:
    liquid: uint8 [H, W], 0 where it is dry.

  Returns:
    float32 [H, W] in [0, 1]; all 0 if nothing is wet.
  """
  distance = edge_distance(edges(liquid))
  ripples = _equalize((_sum_of_9(distance) * (1 / 9)).astype(np.uint8))
  ripples = ndimage.correlate(ripples.astype(np.int32), RIPPLES, mode='mirror')
  ripples = _sum_of_9(np.clip(ripples, 0, 255)) * (1 / 9)
  light = liquid * np.rint(ripples).astype(np.float32)
  return light / max(light.max(), 1)


def edges(image: np.ndarray) -> np.ndarray:
  """Returns which pixels of an uint8 [H, W] are edges by Canny; bool [H, W].

  As OpenCV has it: Sobel gradients, |dx| + |dy| for the magnitude, and the comparison
  with two of eight neighbours.
  """
  low, high = EDGE_THRESHOLDS
  image = image.astype(np.int32)
  dx = ndimage.sobel(image, 1, mode='nearest')
  dy = ndimage.sobel(image, 0, mode='nearest')
  width, height = np.abs(dx), np.abs(dy)
  strength = width + height
  around = np.pad(strength, 1)

  def neighbour(y, x):
    rows, columns = strength.shape
    return around[1 + y : 1 + y + rows, 1 + x : 1 + x + columns]

  # tan(22.5) and tan(67.5), in OpenCV's fixed point.
  flat = width * 13573
  steep = flat + (width << 16)
  height <<= 15
  across = (strength > neighbour(0, -1)) & (strength >= neighbour(0, 1))
  down = (strength > neighbour(-1, 0)) & (strength >= neighbour(1, 0))
  falling = (strength > neighbour(-1, -1)) & (strength > neighbour(1, 1))
  rising = (strength > neighbour(-1, 1)) & (strength > neighbour(1, -1))
  diagonal = np.where((dx < 0) == (dy < 0), falling, rising)
  is_peak = np.where(height < flat, across, np.where(height > steep, down, diagonal))
  is_peak &= strength > low
  # Weak ones count where they are connected with a strong one.
  groups, num_groups = ndimage.label(is_peak, np.ones((3, 3)))
  is_edge = np.zeros(num_groups + 1, bool)
  is_edge[groups[is_peak & (strength > high)]] = True
  return is_edge[groups]


def edge_distance(is_edge: np.ndarray) -> np.ndarray:
  """Returns the distance from every pixel to the nearest edge, or MAX_DISTANCE.

  The length of the shortest way in steps of DISTANCE_STEPS. Along each direction of
  steps by itself, 1, 2, 4, ... steps at once.

  Args:
    is_edge: bool [H, W].

  Returns:
    float32 [H, W].
  """
  limit = MAX_DISTANCE * DISTANCE_UNIT
  distance = np.where(is_edge, np.int32(0), np.int32(limit))
  for *directions, length in DISTANCE_STEPS:
    cost = round(length * DISTANCE_UNIT)
    for y, x in directions:
      count = 1
      while count * cost < limit:
        _step(distance, count * y, count * x, count * cost)
        _step(distance, -count * y, -count * x, count * cost)
        count *= 2
  return distance.astype(np.float32) / np.float32(DISTANCE_UNIT)


def _step(distance: np.ndarray, y: int, x: int, cost: int):
  """Shortens distances by a step: (y, x) further down and to the right."""
  height, width = distance.shape
  if abs(y) >= height or abs(x) >= width:
    return
  after = distance[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
  before = distance[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]
  np.minimum(after, before + cost, out=after)


def _sum_of_9(image: np.ndarray) -> np.ndarray:
  """Returns the sums over 3 x 3 pixels, mirrored at the borders, float64 [H, W]."""
  image = image.astype(np.float64)
  for axis in (0, 1):
    image = ndimage.correlate1d(image, np.ones(3), axis, mode='mirror')
  return image


def _equalize(image: np.ndarray) -> np.ndarray:
  """Returns an uint8 [H, W] with levels that are about equally frequent."""
  counts = np.bincount(image.ravel(), minlength=256)
  rest = counts.cumsum() - counts[image.min()]
  if not rest[-1]:
    return image
  scale = np.float32(255) / np.float32(rest[-1])
  levels = np.rint(rest.astype(np.float32) * scale)
  return np.clip(levels, 0, 255).astype(np.uint8)[image]
