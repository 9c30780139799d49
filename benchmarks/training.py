"""The training step that is measured, and the command line that says which."""

import argparse
import functools
import sys

from advprop_jax import models, optim, train_state, train_step
from advprop_jax.attacks import gradient

NUM_CLASSES = 1000
EPSILON = 4 / 255


def create_streams(method: str, pgd_steps: int):
  """Returns the streams of a training method."""
  clean = train_step.Stream('clean', 'image', 'label', None, 'running', 'clean', 1.0)
  attack = gradient.make_pgd(
    num_classes=NUM_CLASSES,
    epsilon=EPSILON,
    step_size=max(1 / 255, EPSILON / pgd_steps),
    num_steps=pgd_steps,
    targeted=True,
    prob_start_from_clean=0.2,
  )
  adv = clean._replace(name='adv', attack=attack, branch='adv')
  return {'vanilla': (clean,), 'advprop': (clean, adv)}[method]


def create_training(model, streams, *, image_size: int):
  """Returns (step, create_state) of a whole training step, with optimizer and averages.

  Args:
    model: see `models.create_model`.
    streams: of `create_streams`.
    image_size: pixels.
  """
  tx = optim.rmsprop(
    lambda step: 0.01, decay=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5
  )
  step = train_step.make_train_step(
    model, tx, streams, label_smoothing=0.1, ema_decay=0.9999
  )
  create_state = functools.partial(
    train_state.create_train_state,
    model,
    tx,
    branch_names=tuple(dict.fromkeys(stream.branch for stream in streams)),
    image_size=image_size,
    seed=0,
    keep_ema=True,
  )
  return step, create_state


def positive(text: str) -> int:
  """Returns the number; raises argparse's error for less than 1."""
  if (value := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'{value}; allowed: 1 or more')
  return value


def create_parser(doc: str, *, methods) -> argparse.ArgumentParser:
  """Returns a parser of what names a step: model, sizes, method, types.

  Args:
    doc: of the program; its first line is the description.
    methods: that the program knows.
  """
  parser = argparse.ArgumentParser(
    description=doc.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('--model', default='efficientnet_b0', choices=models.MODELS, help='name')
  add('--size', type=positive, default=224, help='of the images, pixels')
  add('--batch', type=positive, default=8, help='images of a step')
  add(
    '--method',
    default='advprop',
    choices=methods,
    help='what is computed, see README.md',
  )
  add('--pgd-steps', type=positive, default=1, help='of the attack of advprop')
  add('--dtype', default='float32', choices=['float32', 'bfloat16'], help='arithmetic')
  add('--remat-blocks', action='store_true', help='compute blocks again, for memory')
  return parser


def describe(args) -> dict:
  """Returns what a line of JSON says of its step, from the parser's arguments."""
  return {
    'model': args.model,
    'method': args.method,
    'pgd_steps': args.pgd_steps if args.method == 'advprop' else 0,
    'size': args.size,
    'batch': args.batch,
    'dtype': args.dtype,
    'remat_blocks': args.remat_blocks,
  }


def exit_if_out_of_memory(error: Exception):
  """Ends the program with one line if that is what the error says."""
  message = str(error).strip().splitlines()[0]
  if 'RESOURCE_EXHAUSTED' in message:
    sys.exit(f'error: out of memory: {message}; allowed: a smaller --batch or --size')
