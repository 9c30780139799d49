"""The training step that is measured, and the command line that says which."""

import argparse
import functools
import sys
from typing import NamedTuple

import jax

from advprop_jax import errors, fast_step, models, optim, train_state, train_step
from advprop_jax.attacks import gradient
from advprop_jax.streams import Stream

NUM_CLASSES = 1000
EPSILON = 4 / 255


class Cost(NamedTuple):
  """What a step does with each image of the batch, on average."""

  clean: float  # Passes, forward and backward, of images as they are.
  attacked: float  # Of attacked ones ...
  attacks: float  # ... and attacks.
  branches: int = 1  # Each with a forward and a backward pass of its own.

  def passes(self, pgd_steps: int) -> dict[str, float]:
    """Returns the passes of an image of the batch, as a line of JSON says them."""
    attack = self.attacks * pgd_steps
    return {
      'forward_passes': self.clean + self.attacked + attack,
      'backward_passes_to_weights': self.clean + self.attacked,
      'backward_passes_to_images': attack,  # Of an attack that does not train.
    }


# Methods that train, by name.
METHODS = {
  'vanilla': Cost(clean=1, attacked=0, attacks=0),
  'advprop': Cost(clean=1, attacked=1, attacks=1, branches=2),
  'adversarial_training': Cost(clean=1, attacked=1, attacks=1),
  'adversarial_only': Cost(clean=0, attacked=1, attacks=1),
  'fine_grained': Cost(clean=2, attacked=1, attacks=1, branches=3),
  # The attack trains, too: its pass is one of images with noise.
  'fast_advprop': Cost(clean=1.0, attacked=0.2, attacks=0),
}


def create_streams(method: str, pgd_steps: int) -> tuple[Stream, ...]:
  """Returns the streams of a training method."""
  clean = Stream('clean', 'image', 'label', None, 'running', 'clean', 1.0)
  attack = gradient.make_pgd(
    num_classes=NUM_CLASSES,
    epsilon=EPSILON,
    step_size=max(1 / 255, EPSILON / pgd_steps),
    num_steps=pgd_steps,
    targeted=True,
    prob_start_from_clean=0.2,
  )
  adv = clean._replace(name='adv', attack=attack, branch='adv')
  return {
    'vanilla': (clean,),
    'advprop': (clean, adv),
    'adversarial_training': (clean, adv._replace(branch='clean')),
    'adversarial_only': (adv._replace(branch='clean'),),
    'fine_grained': (clean, clean._replace(name='augmented', branch='augmented'), adv),
  }[method]


def create_training(model, method: str, *, pgd_steps: int, image_size: int):
  """Returns (step, create_state) of a whole training step, with optimizer and averages.

  Args:
    model: see `models.create_model`.
    method: of METHODS.
    pgd_steps: of its attack; Fast AdvProp always has one.
    image_size: pixels.
  """
  tx = optim.rmsprop(
    lambda step: 0.01, decay=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5
  )
  if method == 'fast_advprop':
    branch_names: tuple[str, ...] = ('clean', 'adv')
    components = fast_step.Components(
      adversarial_share=0.2,
      epsilon=EPSILON,
      step_size=EPSILON,
      statistics='batch',
      reuse_gradient=True,
      shuffle_over_devices=True,
      noise_weight=0.5,
      adversarial_weight=0.5,
      own_counts=True,
    )
    make_step = functools.partial(fast_step.make_fast_step, components=components)
  else:
    streams = create_streams(method, pgd_steps)
    branch_names = tuple(dict.fromkeys(stream.branch for stream in streams))
    make_step = functools.partial(train_step.make_train_step, streams=streams)
  step = make_step(model, tx, label_smoothing=0.1, ema_decay=0.9999)
  create_state = functools.partial(
    train_state.create_train_state,
    model,
    tx,
    branch_names=branch_names,
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
  add('--batch', type=positive, default=20, help='images of a step')
  add(
    '--method',
    default='advprop',
    choices=methods,
    help='what is computed, see README.md',
  )
  add('--pgd-steps', type=positive, default=1, help='of the attack')
  add('--dtype', default='float32', choices=['float32', 'bfloat16'], help='arithmetic')
  add('--remat-blocks', action='store_true', help='compute blocks again, for memory')
  return parser


def _attacks(method: str) -> bool:
  return method in METHODS and METHODS[method].attacks > 0


def check(args):
  """Raises UserError for a batch that a method cannot divide as it should."""
  num_devices = jax.device_count()
  # Of Fast AdvProp's images on a device a fifth is attacked.
  multiple = num_devices * (5 if args.method == 'fast_advprop' else 1)
  if args.batch % multiple:
    raise errors.UserError(
      f'--batch is {args.batch}; allowed with --method {args.method}: multiples of '
      f'{multiple}, for {num_devices} device{"s" * (num_devices > 1)}'
    )


def describe(args) -> dict:
  """Returns what a line of JSON says of its step, from the parser's arguments."""
  return {
    'model': args.model,
    'method': args.method,
    'pgd_steps': args.pgd_steps if _attacks(args.method) else 0,
    'size': args.size,
    'batch': args.batch,
    'dtype': args.dtype,
    'remat_blocks': args.remat_blocks,
    **(METHODS[args.method].passes(args.pgd_steps) if args.method in METHODS else {}),
  }


def exit_if_out_of_memory(error: Exception):
  """Ends the program with one line if that is what the error says."""
  message = str(error).strip().splitlines()[0]
  if 'RESOURCE_EXHAUSTED' in message:
    sys.exit(f'error: out of memory: {message}; allowed: a smaller --batch or --size')
