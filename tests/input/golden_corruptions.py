r"""Makes golden_corruptions.npz: what the published code of ImageNet-C returns.

  pip install numpy scipy pillow scikit-image opencv-python-headless wand
  apt-get install libmagickwand-6.q16-6
  python tests/input/golden_corruptions.py make_imagenet_c.py frost/ golden.npz

The published code is `ImageNet-C/create_c/make_imagenet_c.py` of hendrycks/robustness,
and `frost/` holds its photographs. Its functions run as they are, with what they import
replaced where its names are gone: `np.float_`, `np.fromstring`, `multichannel`, and an
entropy of its own for the noise of salt and pepper.

In the file: for each corruption every 16th pixel of `image()`, uint8 [5, 14, 14, 3],
after `np.random.seed(severity)`; as `<name>_change` the mean absolute change of the
whole image, float64 [5]. Of frost, whose photographs we have not, that alone, for each
of the five photographs, float64 [5, 5], the mean of about ten crops. And two parts:
`disk`, the weights of radius 10, float32 [21, 21], and `edges`, those that OpenCV finds
in `liquid()`, bool [60, 90].
"""

import ast
import ctypes
import io
import os
import sys
import types

import numpy as np

SIDE, EVERY, FROST_SEEDS = 224, 16, 50


def image() -> np.ndarray:
  """Returns noise of three scales, with a grey, a black and a white corner."""
  rng = np.random.RandomState(0)
  layers = [
    np.kron(rng.uniform(-1, 1, (SIDE // x, SIDE // x, 3)), np.ones((x, x, 1))) * weight
    for x, weight in ((56, 80), (14, 60), (1, 30))
  ]
  result = np.clip(128 + sum(layers), 0, 255).astype(np.uint8)
  result[:40, :40] = 100
  result[-30:, :40], result[:40, -30:] = 0, 255
  return result


def liquid() -> np.ndarray:
  """Returns blobs and noise, uint8 [60, 90], with weak and strong edges and ties."""
  rng = np.random.RandomState(1)
  y, x = np.indices((60, 90))
  places = rng.uniform(0, 90, (40, 2, 1, 1))
  heights = rng.uniform(0, 160, (40, 1, 1))
  waves = heights * np.exp(-((y - places[:, 0]) ** 2 + (x - places[:, 1]) ** 2) / 9)
  return (
    ((waves.sum(0) + rng.uniform(0, 30, (60, 90))) // 8 * 8)
    .clip(0, 255)
    .astype(np.uint8)
  )


def published(path: str) -> dict:
  """Returns the corruptions of the published file, and its `disk`, by name."""
  import cv2
  import PIL.Image
  import scipy.ndimage
  import skimage.color
  import skimage.filters
  import skimage.util
  from wand.api import library
  from wand.image import Image as WandImage

  def gaussian(x, sigma, multichannel=False, **kwargs):
    channel_axis = -1 if multichannel else None
    return skimage.filters.gaussian(x, sigma=sigma, channel_axis=channel_axis, **kwargs)

  def random_noise(x, mode, amount):
    seed = np.random.randint(1 << 30)
    return skimage.util.random_noise(x, mode=mode, amount=amount, rng=seed)

  library.MagickMotionBlurImage.argtypes = (ctypes.c_void_p,) + (ctypes.c_double,) * 3

  class MotionImage(WandImage):
    def motion_blur(self, radius, sigma, angle):
      library.MagickMotionBlurImage(self.wand, radius, sigma, angle)

  class OldNumpy(types.ModuleType):
    float_ = np.float64

    @staticmethod
    def fromstring(x, dtype):
      return np.frombuffer(x, dtype)

    def __getattr__(self, name):
      return getattr(np, name)

  space = {
    'BytesIO': io.BytesIO,
    'MotionImage': MotionImage,
    'PILImage': PIL.Image,
    'cv2': cv2,
    'gaussian': gaussian,
    'map_coordinates': scipy.ndimage.map_coordinates,
    'np': OldNumpy('numpy'),
    'scizoom': scipy.ndimage.zoom,
    'sk': types.SimpleNamespace(
      color=skimage.color, util=types.SimpleNamespace(random_noise=random_noise)
    ),
  }
  with open(path) as f:
    tree = ast.parse(f.read())
  tree.body = [x for x in tree.body if isinstance(x, ast.FunctionDef)]
  exec(compile(tree, path, 'exec'), space)
  # `fgsm` needs a network; it is no part of the set.
  names = [
    x.name
    for x in tree.body
    if x.args.args[-1:] and x.args.args[-1].arg == 'severity' and x.name != 'fgsm'
  ]
  return {name: space[name] for name in ['disk', *names]}


def change(result: np.ndarray, original: np.ndarray) -> float:
  """Returns the mean absolute change of an image, in levels."""
  return np.abs(result.astype(float) - original).mean()


def main(path: str, frost_dir: str, output: str):
  import cv2
  import PIL.Image

  functions = published(path)
  output, original = os.path.abspath(output), image()
  os.chdir(frost_dir)  # The published code reads them from where it runs.

  def corrupt(name, severity, seed):
    np.random.seed(seed)
    result = functions[name](PIL.Image.fromarray(original), severity)
    return np.uint8(result)

  arrays = {'disk': functions.pop('disk')(10, 0.5)}
  arrays['edges'] = cv2.Canny(liquid(), 50, 150) > 0
  for name in functions:
    results = [corrupt(name, severity, severity) for severity in range(1, 6)]
    if name == 'frost':
      changes: list[list] = [[] for _ in range(5)]
      for seed in range(FROST_SEEDS):
        index = np.random.RandomState(seed).randint(5)  # The first that it draws.
        results = [corrupt(name, severity, seed) for severity in range(1, 6)]
        changes[index].append([change(x, original) for x in results])
      arrays['frost_change'] = np.stack([np.mean(x, 0) for x in changes], -1)
      continue
    arrays[name] = np.stack(results)[:, ::EVERY, ::EVERY]
    arrays[f'{name}_change'] = np.array([change(x, original) for x in results])
  np.savez_compressed(output, **arrays)


if __name__ == '__main__':
  main(*sys.argv[1:])
