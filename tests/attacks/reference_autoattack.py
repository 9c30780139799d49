r"""Runs the reference's AutoAttack on our networks: data/autoattack_reference.json.

  pip install -r requirements-test.txt -r tests/attacks/requirements-autoattack.txt
  python tests/attacks/reference_autoattack.py

pyautoattack is by the authors of AutoAttack; it is written in PyTorch, whose gradients
of our networks are JAX's. Which examples withstand each attack is a line of the file.
"""

import functools
import json
import pathlib
import sys
import time
from importlib import metadata

import jax
import numpy as np

FILE = pathlib.Path(__file__).parent.parent / 'data' / 'autoattack_reference.json'
STANDARD = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
# Of the default tests: few targets and queries, so that they take seconds.
SMALL = {'num_targets': 2, 'num_queries': 300}
FULL = {'num_targets': 9, 'num_queries': 5000}


# Network, ball, and how many of its test images.
NETWORKS = (
  ('digits_advprop', 'linf', 12 / 255, 200),
  ('digits_adversarial_training', 'linf', 16 / 255, 100),
  ('fashion_adversarial_training', 'linf', 6 / 255, 100),
  ('digits_advprop', 'l2', 2.0, 100),
)


def cases():
  """Yields what is compared: network, examples, ball, attacks and their size."""
  for name, norm, epsilon, count in NETWORKS:
    ball = {'network': name, 'norm': norm, 'epsilon': epsilon}
    if name == 'digits_advprop':
      small = {**ball, 'num_examples': 24, **SMALL}
      for attack in (*STANDARD, 'apgd-dlr', 'fab'):
        # Of so few queries some examples fall at twice the radius alone.
        radius = epsilon * (2 if attack == 'square' else 1)
        yield {**small, 'epsilon': radius, 'attacks': [attack]}
      yield {**small, 'attacks': list(STANDARD)}
    whole = {**ball, 'num_examples': count, **FULL}
    yield {**whole, 'attacks': list(STANDARD)}
    for attack in (*STANDARD, 'apgd-dlr'):
      yield {**whole, 'attacks': [attack]}


def bridge(logits_fn):
  """Returns a JAX network as a function of PyTorch, of images [B, 3, H, W]."""
  import torch

  logits_fn = jax.jit(logits_fn)
  vjp = jax.jit(lambda x, g: jax.vjp(logits_fn, x)[1](g)[0])

  def fill(x):  # To a power of two, so that few programs are compiled.
    size = 1 << (len(x) - 1).bit_length()
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])

  def to_jax(x):
    return fill(np.ascontiguousarray(x.detach().numpy().transpose(0, 2, 3, 1)))

  class Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
      ctx.save_for_backward(x)
      return torch.from_numpy(np.array(logits_fn(to_jax(x))[: len(x)]))

    @staticmethod
    def backward(ctx, gradient):
      (x,) = ctx.saved_tensors
      found = vjp(to_jax(x), fill(gradient.numpy()))[: len(x)]
      found = np.ascontiguousarray(np.transpose(found, (0, 3, 1, 2)))
      return torch.from_numpy(found)

  return Logits.apply


def run(case, network, image, label):
  """Returns whether each example withstands the attacks of a case, and the seconds.

  Args:
    case: see `cases`.
    network: images of PyTorch to logits.
    image: uint8 [N, H, W, 3].
    label: int [N].
  """
  import pyautoattack
  import torch

  x = torch.from_numpy(
    image.astype(np.float32).transpose(0, 3, 1, 2).copy() / np.float32(255)
  )
  y = torch.from_numpy(label.astype(np.int64))
  attack = pyautoattack.AutoAttack(
    network,
    norm={'linf': 'Linf', 'l2': 'L2'}[case['norm']],
    eps=case['epsilon'],
    seed=0,
    version='custom',
    attacks=list(case['attacks']),
  )
  attack.apgd.n_restarts = attack.fab.n_restarts = 1
  attack.apgd_targeted.n_target_classes = case['num_targets']
  attack.fab.n_target_classes = case['num_targets']
  attack.square.n_queries = case['num_queries']
  start = time.monotonic()
  adversarial, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
  seconds = time.monotonic() - start
  with torch.no_grad():
    predicted = network(adversarial).argmax(-1)
  return (predicted == y).numpy(), seconds


def main():
  """Adds what is not in the file yet."""
  import trained

  about = {x: metadata.version(x) for x in ('pyautoattack', 'torch', 'jax')}
  content = json.loads(FILE.read_text()) if FILE.exists() else {'results': []}
  networks = functools.cache(lambda name: bridge(trained.load(name)))
  examples = functools.cache(trained.examples)
  for case in sorted(cases(), key=lambda x: (x['num_examples'], len(x['attacks']) < 2)):
    if any(case.items() <= result.items() for result in content['results']):
      continue
    found, seconds = run(
      case,
      networks(case['network']),
      *examples(case['network'], case['num_examples']),
    )
    flags = ''.join(str(int(x)) for x in found)
    content['results'].append({**case, 'robust': flags, 'seconds': round(seconds, 1)})
    content['versions'] = about
    lines = ',\n'.join(f'  {json.dumps(x)}' for x in content['results'])
    FILE.write_text(
      f'{{"versions": {json.dumps(about)},\n "results": [\n{lines}\n]}}\n'
    )
    print(case, f'{found.mean():.1%}', f'{seconds:.0f} s', flush=True)


if __name__ == '__main__':
  root = pathlib.Path(__file__).parent.parent.parent
  sys.path[:0] = [str(root), str(pathlib.Path(__file__).parent)]
  main()
