r"""Makes golden_apgd.json: where AutoAttack's own APGD goes, for ours to equal.

  pip install torch pyautoattack
  python tests/attacks/golden_apgd.py > tests/attacks/golden_apgd.json

A small network with a hidden layer is attacked from a start that is given to both; its
weights, the images and the noise are drawn here, and need not be stored.
"""

import json

import numpy as np

# Norm, loss, epsilon and number of steps; none makes all examples fall.
CASES = {
  'linf/ce': ('linf', 'ce', 0.05, 100),
  'linf/dlr': ('linf', 'dlr', 0.05, 100),
  'linf/targeted_dlr': ('linf', 'targeted_dlr', 0.05, 50),
  'l2/ce': ('l2', 'ce', 0.4, 30),
  'l2/dlr': ('l2', 'dlr', 0.4, 30),
  'l2/targeted_dlr': ('l2', 'targeted_dlr', 0.4, 30),
}
NUM_CLASSES, BATCH_SIZE, SHAPE, RANK = 6, 8, (4, 4, 3), 3


def draw():
  """Returns images in [0, 1], many at its ends, noise in [-1, 1], and two weights.

  numpy promises that `RandomState` draws the same for ever.
  """
  rng = np.random.RandomState(0)
  image = np.clip(rng.uniform(-0.3, 1.3, size=(BATCH_SIZE, *SHAPE)), 0, 1)
  noise = rng.uniform(-1, 1, size=image.shape)
  hidden = rng.standard_normal((48, 16)) / 2
  out = rng.standard_normal((16, NUM_CLASSES))
  return tuple(x.astype(np.float32) for x in (image, noise, hidden, out))


def main():
  import importlib.metadata
  import unittest.mock

  import torch
  from pyautoattack import autopgd_base

  image, noise, hidden, out = map(torch.tensor, draw())

  def predict(x):
    return torch.tanh(x.reshape(len(x), -1) @ hidden) @ out

  label = predict(image).argmax(-1)
  version = importlib.metadata.version('pyautoattack')
  golden = {'pyautoattack': version, 'results': {}}
  for name, (norm, loss, epsilon, num_steps) in CASES.items():
    arguments = {'n_iter': num_steps, 'eps': epsilon}
    arguments['norm'] = {'linf': 'Linf', 'l2': 'L2'}[norm]
    if loss == 'targeted_dlr':
      attack = autopgd_base.APGDAttack_targeted(predict, **arguments)
      attack.y_target = predict(image).argsort(descending=True)[:, RANK - 1]
    else:
      attack = autopgd_base.APGDAttack(predict, loss=loss, **arguments)
    attack.init_hyperparam(image)
    drawn = (noise + 1) / 2 if norm == 'linf' else noise
    draws = {'rand': lambda shape, x=drawn: x, 'randn': lambda shape, x=drawn: x}
    with unittest.mock.patch.multiple(torch, **draws):
      best, withstands, best_loss, _ = attack.attack_single_run(image, label)
    golden['results'][name] = {
      'best': np.round(best.numpy().astype(np.float64), 6).reshape(-1).tolist(),
      'best_loss': np.round(best_loss.numpy().astype(np.float64), 6).tolist(),
      'withstands': [bool(x) for x in withstands],
    }
  print(json.dumps(golden))


if __name__ == '__main__':
  main()
