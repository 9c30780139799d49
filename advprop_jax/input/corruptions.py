"""The corruptions of ImageNet-C, on one image of any size.

`CORRUPTIONS[name](image, severity, rng)` returns a corrupted copy:

  image     uint8 [H, W, 3], RGB, sides of 1 pixel or more
  severity  1 to 5
  rng       np.random.Generator; a function that draws nothing ignores it

  returns   uint8 [H, W, 3]; fractions are dropped, as published

  raises    UserError: severity is none of 1 to 5

For a robustness figure of one's own images, never ImageNet-C's and never an mCE: the
published set has other images, of 224 pixels, and they were saved as JPEG of quality 85
afterwards, which is not done here. NOTES says so, for results.

Written for images of 224 pixels. Lengths in pixels (radii, widths of blurs, shifts) are
taken as published whatever the size, so small images are corrupted more. Two lengths go
with the image, as in the authors' versions for 32 and 64 pixels: elastic_transform's,
with the shorter side, and fog's map, the smallest power of two that covers the image.

Not the published result, even at 224 pixels, is frost alone: its photographs are
replaced by noise, see `corruption_fields.frost`.

Why no library: imagecorruptions (and -imaug) needs OpenCV, scikit-image and numba,
refuses sides below 32, draws from NumPy's global state, and its elastic_transform and
frost are other functions. NumPy, SciPy and Pillow are there anyway, and faster; see
benchmarks/README.md.

Source: Hendrycks & Dietterich 2019; `ImageNet-C/create_c/make_imagenet_c.py` of
hendrycks/robustness, commit 8190fe3.
"""

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
from scipy import ndimage

from advprop_jax import errors
from advprop_jax.input import corruption_fields, corruption_ops

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

NUM_SEVERITIES = 5
# Of severity 1 to 5. Source: as above, the lists `c` of its functions.
SEVERITIES: dict[str, tuple] = {
  # Standard deviation, in [0, 1].
  'gaussian_noise': (0.08, 0.12, 0.18, 0.26, 0.38),
  # Photons that white stands for.
  'shot_noise': (60, 25, 12, 5, 3),
  # Share of values that become 0 or 255.
  'impulse_noise': (0.03, 0.06, 0.09, 0.17, 0.27),
  # Radius of the disk; standard deviation that smooths its border.
  'defocus_blur': ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
  # Standard deviation of the blur; largest shift; passes over the image.
  'glass_blur': ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
  # Half the taps; standard deviation.
  'motion_blur': ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
  # End (nearly) and step of the factors, which begin at 1.
  'zoom_blur': ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
  # Mean and standard deviation of noise; its magnification; what counts as snow; half
  # the taps and standard deviation of the motion; weight of the image.
  'snow': (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
  ),
  # Weights of image and frost.
  'frost': ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
  # Strength; by what the fog's amplitude shrinks when its scale is halved.
  'fog': ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
  # Added to the value of HSV.
  'brightness': (0.1, 0.2, 0.3, 0.4, 0.5),
  # Factor about the mean of each channel.
  'contrast': (0.4, 0.3, 0.2, 0.1, 0.05),
  # Amplitude, standard deviation of the smoothing, and largest shift of the three
  # points of an affine map, as shares of 244 at 224 pixels.
  'elastic_transform': (
    (2, 0.7, 0.1),
    (2, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
  ),
  # Share of the sides that is left.
  'pixelate': (0.6, 0.5, 0.4, 0.3, 0.25),
  # Quality.
  'jpeg_compression': (25, 18, 15, 10, 7),
  # Standard deviation, as a share of the value.
  'speckle_noise': (0.15, 0.2, 0.35, 0.45, 0.6),
  # Standard deviation.
  'gaussian_blur': (1, 2, 3, 4, 6),
  # Mean, standard deviation and blur of noise; what counts as liquid; opacity of water
  # or blur of mud; which of the two.
  'spatter': (
    (0.65, 0.3, 4, 0.69, 0.6, 'water'),
    (0.65, 0.3, 3, 0.68, 0.6, 'water'),
    (0.65, 0.3, 2, 0.68, 0.5, 'water'),
    (0.65, 0.3, 1, 0.65, 1.5, 'mud'),
    (0.67, 0.4, 1, 0.65, 1.5, 'mud'),
  ),
  # Factor of the saturation of HSV; added to it.
  'saturate': ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}
ELASTIC_SIDE = 244 / 224  # 'Should have been 224', says the source.
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
GREY = (0.299, 0.587, 0.114)  # Source: ITU-R BT.601, as OpenCV has it.

# What is to be said beside a result.
NOTES = (
  'The functions of ImageNet-C on other images, not saved as JPEG afterwards: not '
  'ImageNet-C, and the error is not an mCE.',
  'Lengths in pixels are those published for 224 pixels: smaller images are corrupted '
  'more.',
  'frost: noise with the colours, contrasts and spectra of the published photographs '
  'stands in for them.',
)


def gaussian_noise(image, severity, rng):
  """Adds normal noise."""
  noise = rng.normal(0.0, _at('gaussian_noise', severity), image.shape)
  return _to_bytes(_unit(image) + noise)


def shot_noise(image, severity, rng):
  """Draws every value from the Poisson distribution of its photons."""
  photons = _at('shot_noise', severity)
  return _to_bytes(rng.poisson(_unit(image) * photons) / photons)


def impulse_noise(image, severity, rng):
  """Turns a share of the values, each by itself, into 0 or 255."""
  is_hit = rng.random(image.shape) <= _at('impulse_noise', severity)
  is_salt = rng.random(image.shape) <= 0.5
  return np.where(is_hit, np.where(is_salt, np.uint8(255), np.uint8(0)), image)


def speckle_noise(image, severity, rng):
  """Adds normal noise in proportion to the value."""
  unit = _unit(image)
  noise = rng.normal(0.0, _at('speckle_noise', severity), image.shape)
  return _to_bytes(unit + unit * noise)


def gaussian_blur(image, severity, rng):
  """Blurs."""
  del rng
  return _to_bytes(_blur(_unit(image), _at('gaussian_blur', severity)))


def defocus_blur(image, severity, rng):
  """Averages over a disk."""
  del rng
  radius, smoothing = _at('defocus_blur', severity)
  return _to_bytes(corruption_ops.disk_blur(_unit(image), radius, smoothing))


def glass_blur(image, severity, rng):
  """Blurs, takes pixels from nearby, and blurs again.

  The published code says 'swap', but copies: what it assigns are views of one array.
  """
  std, reach, num_passes = _at('glass_blur', severity)
  pixels = _to_bytes(_blur(_unit(image), std)).reshape(-1, 3)
  for _ in range(num_passes):
    pixels = pixels[corruption_ops.glass_sources(image.shape[:2], reach, rng)]
  return _to_bytes(_blur(_unit(pixels.reshape(image.shape)), std))


def motion_blur(image, severity, rng):
  """Blurs along a line of random direction, up to 45 degrees from the horizontal."""
  radius, std = _at('motion_blur', severity)
  angle = rng.uniform(-45, 45)
  return corruption_ops.motion_blur(image, radius, std, angle)


def zoom_blur(image, severity, rng):
  """Averages the image and its magnifications."""
  del rng
  end, step = _at('zoom_blur', severity)
  factors = np.arange(1, end, step)
  unit = _unit(image).astype(np.float32)
  total = np.zeros_like(unit)
  for factor in factors:
    total += corruption_ops.zoom(unit, factor)
  return _to_bytes((unit + total) / np.float32(len(factors) + 1))


def snow(image, severity, rng):
  """Pales the image, and lets snow fall on it, in a random direction."""
  mean, std, factor, threshold, radius, motion_std, weight = _at('snow', severity)
  flakes = rng.normal(mean, std, image.shape[:2])
  flakes = corruption_ops.zoom(flakes[..., None], factor)
  flakes[flakes < threshold] = 0
  angle = rng.uniform(-135, -45)
  flakes = corruption_ops.motion_blur(_to_bytes(flakes), radius, motion_std, angle)
  flakes = _unit(flakes)
  unit = _unit(image).astype(np.float32)
  grey = unit @ np.array(GREY, np.float32)
  pale = np.maximum(unit, grey[..., None] * np.float32(1.5) + np.float32(0.5))
  unit = np.float32(weight) * unit + np.float32(1 - weight) * pale
  return _to_bytes(unit + flakes + np.rot90(flakes, k=2))


def frost(image, severity, rng):
  """Adds frost, and darkens the image behind it."""
  weight, frost_weight = _at('frost', severity)
  ice = corruption_fields.frost(image.shape[:2], rng)
  return np.clip(weight * image + frost_weight * ice, 0, 255).astype(np.uint8)


def fog(image, severity, rng):
  """Adds a fractal cloud, and darkens so that white stays white."""
  strength, decay = _at('fog', severity)
  unit = _unit(image)
  white = unit.max()
  height, width = image.shape[:2]
  cloud = corruption_fields.plasma(max(height, width), decay, rng)
  unit += strength * cloud[:height, :width, None]
  return _to_bytes(unit * white / (white + strength))


def brightness(image, severity, rng):
  """Adds to the value of HSV."""
  del rng
  added = _at('brightness', severity)
  return _to_bytes(corruption_ops.change_hsv(_unit(image), value=lambda v: v + added))


def saturate(image, severity, rng):
  """Changes the saturation of HSV."""
  del rng
  factor, added = _at('saturate', severity)
  unit = corruption_ops.change_hsv(
    _unit(image), saturation=lambda s: s * factor + added
  )
  return _to_bytes(unit)


def contrast(image, severity, rng):
  """Brings the values closer to the mean of their channel."""
  del rng
  unit = _unit(image)
  mean = np.mean(unit, axis=(0, 1), keepdims=True)
  return _to_bytes((unit - mean) * _at('contrast', severity) + mean)


def elastic_transform(image, severity, rng):
  """Maps the image affinely, and then every pixel by itself, with its neighbours."""
  side = min(image.shape[:2]) * ELASTIC_SIDE
  amplitude, std, reach = (x * side for x in _at('elastic_transform', severity))
  unit = _unit(image).astype(np.float32)
  unit = corruption_ops.random_affine(unit, reach, rng)
  # Columns first, as published.
  shifts = [
    amplitude * corruption_ops.smooth(rng.uniform(-1, 1, image.shape[:2]), std)
    for _ in range(2)
  ]
  y, x = np.indices(image.shape[:2])
  places = np.stack([y + shifts[1], x + shifts[0]])
  return _to_bytes(corruption_ops.sample(unit, places, 'reflect'))


def pixelate(image, severity, rng):
  """Averages over squares."""
  del rng
  share = _at('pixelate', severity)
  height, width = image.shape[:2]
  size = (max(int(width * share), 1), max(int(height * share), 1))
  small = PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX)
  return np.array(small.resize((width, height), PIL.Image.Resampling.BOX))


def jpeg_compression(image, severity, rng):
  """Saves as JPEG of low quality."""
  del rng
  file = io.BytesIO()
  quality = _at('jpeg_compression', severity)
  PIL.Image.fromarray(image).save(file, 'JPEG', quality=quality)
  return np.array(PIL.Image.open(file))


def spatter(image, severity, rng):
  """Sprinkles water, or mud, on the image."""
  mean, std, blur, threshold, amount, kind = _at('spatter', severity)
  liquid = _blur(rng.normal(mean, std, image.shape[:2]), blur)
  liquid[liquid < threshold] = 0
  unit = _unit(image).astype(np.float32)
  if kind == 'water':
    drops = corruption_fields.water_drops(_to_bytes(liquid)) * np.float32(amount)
    return _to_bytes(unit + drops[..., None] * np.array(WATER, np.float32))
  mud = _blur((liquid > threshold).astype(np.float32), amount)
  mud[mud < 0.8] = 0
  mud = mud[..., None]
  return _to_bytes(unit * (1 - mud) + mud * np.array(MUD, np.float32))


CORRUPTIONS: dict[str, Corruption] = {
  'gaussian_noise': gaussian_noise,
  'shot_noise': shot_noise,
  'impulse_noise': impulse_noise,
  'defocus_blur': defocus_blur,
  'glass_blur': glass_blur,
  'motion_blur': motion_blur,
  'zoom_blur': zoom_blur,
  'snow': snow,
  'frost': frost,
  'fog': fog,
  'brightness': brightness,
  'contrast': contrast,
  'elastic_transform': elastic_transform,
  'pixelate': pixelate,
  'jpeg_compression': jpeg_compression,
  'speckle_noise': speckle_noise,
  'gaussian_blur': gaussian_blur,
  'spatter': spatter,
  'saturate': saturate,
}


def check_severity(severity: int) -> None:
  """Raises UserError unless `severity` is one of 1 to NUM_SEVERITIES."""
  if severity not in range(1, NUM_SEVERITIES + 1):
    raise errors.UserError(
      f'severity {severity} of a corruption is unknown; allowed: 1 to {NUM_SEVERITIES}'
    )


def _at(name: str, severity: int):
  """Returns the parameters of a corruption at a severity."""
  check_severity(severity)
  return SEVERITIES[name][severity - 1]


def _unit(image: np.ndarray) -> np.ndarray:
  return image / 255.0


def _to_bytes(unit: np.ndarray) -> np.ndarray:
  return (np.clip(unit, 0, 1) * 255).astype(np.uint8)


def _blur(image: np.ndarray, std: float) -> np.ndarray:
  return ndimage.gaussian_filter(image, std, mode='nearest', axes=(0, 1))
