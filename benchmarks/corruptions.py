r"""Times every corruption of one image, and prints a table in Markdown.

  python benchmarks/corruptions.py --size 32 --size 224

Milliseconds per image on one core, the mean over the severities, of each severity the
fastest of `--repeats` calls. Where the package imagecorruptions is installed (PyPI:
imagecorruptions-imaug, which has the 19 functions), its time stands beside, and ours
over its.
"""

import argparse
import pathlib
import statistics
import sys
import time
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from advprop_jax.input import corruptions

try:
  import imagecorruptions
except ImportError:
  imagecorruptions = None


def measure(call, repeats: int) -> float:
  """Returns the milliseconds of `call(severity)`, the mean over the severities."""

  def once(severity):
    start = time.perf_counter()
    call(severity)
    return 1000 * (time.perf_counter() - start)

  severities = range(1, corruptions.NUM_SEVERITIES + 1)
  for severity in severities:  # Fills caches.
    call(severity)
  return statistics.mean(min(once(x) for _ in range(repeats)) for x in severities)


def time_corruption(name: str, size: int, repeats: int) -> tuple[float, float | None]:
  """Returns milliseconds per image: ours, and the package's if it is there."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  image = rng.integers(0, 256, (size, size, 3), np.uint8)
  ours = measure(lambda x: corruptions.CORRUPTIONS[name](image, x, rng), repeats)
  if imagecorruptions is None:
    return ours, None

  def theirs(severity):
    imagecorruptions.corrupt(image, corruption_name=name, severity=severity)

  return ours, measure(theirs, repeats)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=int, action='append', required=True)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args(argv)
  print('| size | corruption | ours, ms | package, ms | ratio |\n|---|---|---|---|---|')
  for size in args.size:
    times = {
      name: time_corruption(name, size, args.repeats)
      for name in corruptions.CORRUPTIONS
    }
    ours, theirs = zip(*times.values(), strict=True)
    total = None if None in theirs else statistics.mean(theirs)
    for name, (own, other) in {**times, 'mean': (statistics.mean(ours), total)}.items():
      pair = f'{other:.2f} | {own / other:.2f}' if other else ' | '
      print(f'| {size} | {name} | {own:.2f} | {pair} |', flush=True)


if __name__ == '__main__':
  main()
