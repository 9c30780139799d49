r"""Makes golden_square.npz: Square of AutoAttack, for our own to equal.

  pip install torch pyautoattack==0.2.0
  python tests/attacks/golden_square.py tests/attacks/golden_square.npz

Its authors' code draws from `torch.rand` alone: here that takes the numbers of
`numbers` in the order of its calls, of one image after the other, since a window is
shared by a batch. Network, images and numbers are functions of seeds, so that they need
not be stored.
"""

import math
import sys
import unittest.mock

import numpy as np

NUM_CLASSES, NUM_FEATURES = 5, 24
# Name -> norm, size of images, epsilon, iterations. With 17 pixels the first windows of
# the L2 attack begin at pixel 1; with 8 they are of one pixel, and some off the image.
CASES = {
  'linf': ('linf', 17, 0.03, 700),
  'l2': ('l2', 17, 0.6, 700),
  'l2_small': ('l2', 8, 0.2, 100),
}
# Of images, found by trying: the second falls within the iterations, the first never.
SEEDS = {'linf': (0, 1), 'l2': (6, 1), 'l2_small': (6, 2)}
# Of windows, over so many iterations: image sizes and p_init. The first side of
# (10, 1 / 16) is 2.5 before it is rounded.
SIDES, NUM_ITERATIONS = ((10, 1 / 16), (17, 0.3), (64, 0.8)), 8200


def weights(image_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the two matrices of `logits = tanh(3 * (image - 0.5) @ a) @ b`."""
  rng = np.random.RandomState(image_size)  # numpy promises the same for ever.
  shape = (image_size**2 * 3, NUM_FEATURES)
  a = rng.standard_normal(shape) / np.sqrt(shape[0])
  b = rng.standard_normal((NUM_FEATURES, NUM_CLASSES)) / np.sqrt(NUM_FEATURES)
  return a.astype(np.float32), b.astype(np.float32)


def image(seed: int, image_size: int) -> np.ndarray:
  """Returns an image, float32 [1, H, H, 3]; a part of the pixels is 0 or 1."""
  rng = np.random.RandomState(seed)
  values = rng.uniform(-0.2, 1.2, (1, image_size, image_size, 3))
  return np.clip(values, 0, 1).astype(np.float32)


def label(x: np.ndarray) -> int:
  """Returns what the network predicts."""
  a, b = weights(x.shape[1])
  return int((np.tanh(3 * (x.reshape(1, -1) - 0.5) @ a) @ b).argmax())


def numbers(name: str, seed: int) -> dict[str, np.ndarray]:
  """Returns the random numbers of a run; see `Draw` and `StartDraw`."""
  norm, size, _, num_queries = CASES[name]
  rng = np.random.RandomState(100 + seed)
  num = size // (size // 5)
  shape = (size, 3) if norm == 'linf' else (num, num, 3)
  return {
    'start_transpose': rng.uniform(size=(num, num)) < 0.5,
    'start_sign': np.sign(rng.uniform(-1, 1, shape)).astype(np.float32),
    'position': rng.uniform(size=(num_queries, 4)).astype(np.float32) * 0.999,
    'transpose': rng.uniform(size=num_queries) < 0.5,
    'sign': np.sign(rng.uniform(-1, 1, (num_queries, 3))).astype(np.float32),
  }


def calls(norm: str, draws: dict[str, np.ndarray]):
  """Yields what every call of `torch.rand` returns."""

  def uniform(sign):
    return 0.5 + sign / 4

  if norm == 'linf':
    yield uniform(draws['start_sign']).T[None, :, None, :]
  else:
    for transpose, sign in zip(
      draws['start_transpose'].ravel(), draws['start_sign'].reshape(-1, 3), strict=True
    ):
      yield uniform(np.float32([transpose * 2 - 1]))
      yield uniform(sign)[None, :, None, None]
  for position, transpose, sign in zip(
    draws['position'], draws['transpose'], draws['sign'], strict=True
  ):
    yield from position[: 2 if norm == 'linf' else 4, None]
    if norm == 'linf':
      yield uniform(sign)[:, None, None]
    else:
      yield uniform(np.float32([transpose * 2 - 1]))
      yield uniform(sign)[None, :, None, None]


def main(path: str):
  import torch
  from pyautoattack import square

  def run(name, seed):
    norm, size, epsilon, num_queries = CASES[name]
    a, b = map(torch.tensor, weights(size))
    margins = []

    def predict(x):
      flat = x.permute(0, 2, 3, 1).reshape(len(x), -1)
      logits = torch.tanh(3 * (flat - 0.5) @ a) @ b
      top = logits[0].clone()
      top[y] = -math.inf
      margins.append(float(logits[0, y] - top.max()))
      return logits

    attack = square.SquareAttack(
      predict,
      norm={'linf': 'Linf', 'l2': 'L2'}[norm],
      n_queries=num_queries,
      eps=epsilon,
      resc_schedule=False,
    )
    x, y = image(seed, size), label(image(seed, size))
    x = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    queue = calls(norm, numbers(name, seed))

    def rand(shape):
      result = torch.tensor(next(queue))
      assert list(result.shape) == list(shape), (result.shape, shape)
      return result

    attack.init_hyperparam(x)
    with unittest.mock.patch('torch.rand', rand):
      _, best = attack.attack_single_run(x, torch.tensor([y]))
    # Nothing may hang on a rounding: kept or not, and whether the margin is positive.
    lowest = np.minimum.accumulate(margins)
    change = np.abs(margins[1:] - lowest[:-1])
    assert change[change > 0].min() > 1e-5 and np.abs(margins).min() > 1e-4
    print(name, seed, len(margins), lowest[-1], file=sys.stderr)
    return np.float32(margins), best.permute(0, 2, 3, 1).numpy()[0]

  def sides(norm, size, p_init):
    attack = square.SquareAttack(
      lambda x: torch.tensor([[1.0, 0.0]]).repeat(len(x), 1),
      norm={'linf': 'Linf', 'l2': 'L2'}[norm],
      n_queries=NUM_ITERATIONS,
      eps=0.1,
      p_init=p_init,
      resc_schedule=False,
    )
    found = []

    def random_int(low, high):
      found.append(size - high)
      return torch.tensor([low])

    attack.random_int = random_int
    x = torch.zeros(1, 3, size, size)
    attack.init_hyperparam(x)
    attack.attack_single_run(x, torch.tensor([0]))
    return np.uint8(found[:: 2 if norm == 'linf' else 4])

  golden = {}
  for norm in ('linf', 'l2'):
    for size, p_init in SIDES:
      golden[f'sides/{norm}/{size}/{p_init}'] = sides(norm, size, p_init)
  for name, seeds in SEEDS.items():
    for seed in seeds:
      margins, best = run(name, seed)
      golden[f'{name}/{seed}/margins'] = margins
      golden[f'{name}/{seed}/best'] = best
  np.savez_compressed(path, **golden)


if __name__ == '__main__':
  main(sys.argv[1])
