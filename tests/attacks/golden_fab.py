r"""Makes golden_fab.json: what AutoAttack's own FAB finds, for ours to equal.

  pip install torch pyautoattack
  python tests/attacks/golden_fab.py > tests/attacks/golden_fab.json

A small network with a hidden layer is attacked; its weights and the images are drawn
here, and need not be stored. AutoAttack looks for the nearest point whatever epsilon
is: ours does with epsilon 0.
"""

import json

import numpy as np

# Norm, and the rank of the target; None: untargeted.
CASES = {
  'linf/2': ('linf', 2),
  'linf/4': ('linf', 4),
  'linf/untargeted': ('linf', None),
  'l2/3': ('l2', 3),
  'l2/untargeted': ('l2', None),
}
NUM_CLASSES, BATCH_SIZE, NUM_STEPS = 5, 6, 20


def draw():
  """Returns images in [0, 1], many at its ends, [B, 3, 3, 3], and two weights.

  numpy promises that `RandomState` draws the same for ever.
  """
  rng = np.random.RandomState(0)
  image = np.clip(rng.uniform(-0.3, 1.3, size=(BATCH_SIZE, 3, 3, 3)), 0, 1)
  hidden = rng.standard_normal((27, 16)) / 2
  out = rng.standard_normal((16, NUM_CLASSES))
  return tuple(x.astype(np.float32) for x in (image, hidden, out))


def labels() -> np.ndarray:
  """Returns the predicted classes, but for the last example, int32 [B]."""
  image, hidden, out = draw()
  logits = np.tanh(image.reshape(BATCH_SIZE, -1) @ hidden) @ out
  label = logits.argmax(-1)
  label[-1] = (label[-1] + 1) % NUM_CLASSES
  return label.astype(np.int32)


def main():
  import importlib.metadata

  import torch
  from pyautoattack import fab_pt

  image, hidden, out = map(torch.tensor, draw())
  label = torch.tensor(labels()).long()

  def predict(x):
    return torch.tanh(x.reshape(len(x), -1) @ hidden) @ out

  version = importlib.metadata.version('pyautoattack')
  golden = {'pyautoattack': version, 'points': {}}
  for name, (norm, target_rank) in CASES.items():
    norm = {'linf': 'Linf', 'l2': 'L2'}[norm]
    attack = fab_pt.FABAttack_PT(predict, norm=norm, n_iter=NUM_STEPS)
    attack.target_class = target_rank
    is_targeted = target_rank is not None
    points = attack.attack_single_run(image, label, is_targeted=is_targeted)
    rounded = np.round(points.numpy().astype(np.float64), 6)
    golden['points'][name] = rounded.reshape(BATCH_SIZE, -1).tolist()
  print(json.dumps(golden))


if __name__ == '__main__':
  main()
