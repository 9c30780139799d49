r"""Times one compiled step and counts its arithmetic; prints one line of JSON.

  python benchmarks/step_time.py --model efficientnet_b0 --size 224 --batch 8 \
      --method advprop --pgd-steps 1

Imports the core only, so jax, flax and optax are enough. On the CPU set
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as launch/local.sh does. With --peer, a line
that another program printed, its times stand beside ours; see README.md here.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from advprop_jax import (
  attacks,
  branches,
  losses,
  models,
  optim,
  parallel,
  train_state,
  train_step,
)
from advprop_jax.models import efficientnet
from benchmarks import arithmetic

NUM_CLASSES = 1000
EPSILON = 4 / 255
# Our methods, and what the peer calls the same computation.
PEER_KEYS = {
  'forward': 'forward',
  'image_grad': 'grad_images',
  'vanilla': 'train_step',
  'advprop': 'advprop_step',
}


def create_streams(method: str, pgd_steps: int):
  """Returns the streams of a training method."""
  clean = train_step.Stream('clean', 'image', 'label', None, 'running', 'clean', 1.0)
  attack = attacks.make_pgd(
    num_classes=NUM_CLASSES,
    epsilon=EPSILON,
    step_size=max(1 / 255, EPSILON / max(pgd_steps, 1)),
    num_steps=pgd_steps,
    targeted=True,
    prob_start_from_clean=0.2,
  )
  adv = clean._replace(name='adv', attack=attack, norm='adv')
  return {'vanilla': (clean,), 'advprop': (clean, adv)}[method]


def create_training(model, streams, *, image_size: int):
  """Returns (step, create_state) of a whole training step, with optimizer and averages.

  Args:
    model: see `models.create_model`.
    streams: of `create_streams`.
    image_size: pixels.
  """
  tx = optim.sgd(lambda step: 0.01, momentum=0.9, weight_decay=1e-5)
  step = train_step.make_train_step(
    model, tx, streams, label_smoothing=0.1, ema_decay=0.9999
  )
  create_state = functools.partial(
    train_state.create_train_state,
    model,
    tx,
    branch_names=tuple(dict.fromkeys(stream.norm for stream in streams)),
    image_size=image_size,
    seed=0,
    keep_ema=True,
  )
  return step, create_state


def create_step(args, model):
  """Returns (step, arguments): a data-parallel function and what to call it with."""
  rng = np.random.default_rng(0)
  batch = parallel.shard(
    {
      'image': rng.random((args.batch, args.size, args.size, 3), np.float32),
      'label': np.arange(args.batch, dtype=np.int32) % NUM_CLASSES,
    }
  )
  trains = args.method in ('vanilla', 'advprop')
  streams = create_streams(args.method if trains else 'vanilla', args.pgd_steps)
  step, create_state = create_training(model, streams, image_size=args.size)
  state = jax.block_until_ready(parallel.replicate(create_state()))
  batch = jax.device_put(batch)
  if trains:
    mapped = parallel.data_parallel(step, split=(False, True), donate_state=True)
    return mapped, (state, batch)

  def loss(image, label, variables):
    # Through the statistics of the batch, as the peer does.
    logits = model.apply(variables, image, train=False, use_running_average=False)
    return losses.cross_entropy(logits, label).mean()

  def measured(state, batch):
    variables = branches.variables(
      state.params, state.norm, state.batch_stats, branches.CLEAN
    )
    function = jax.grad(loss) if args.method == 'image_grad' else loss
    # Outputs come back stacked over the devices.
    return jnp.asarray(function(batch['image'], batch['label'], variables))[None]

  mapped = parallel.data_parallel(measured, split=(False, True), split_outputs=True)
  return mapped, (state, batch)


def compiled_flops(args, model, compiled) -> float:
  """Returns XLA's count for the compiled program, over all devices.

  XLA counts the body of a loop once however often it runs. The step loops over its
  branches, and an attack of several steps over these; what is missing is added from
  programs that do nothing but one of each.
  """
  flops = compiled.cost_analysis()['flops'] * jax.local_device_count()
  if args.method != 'advprop':
    return flops
  model = model.clone(bn_axis_name=None)
  image = jnp.zeros((args.batch, args.size, args.size, 3))
  label = jnp.zeros(args.batch, jnp.int32)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image[:1], train=False)
  )

  def branch_gradients(variables, image):
    def loss(trained):
      logits, updated = model.apply(
        {**variables, **trained},
        image,
        train=True,
        rngs={'dropout': jax.random.key(0)},
        mutable=['batch_stats'],
      )
      return losses.cross_entropy(logits, label, label_smoothing=0.1).mean(), updated

    trained = {key: variables[key] for key in ('params', 'norm')}
    return jax.grad(loss, has_aux=True)(trained)

  def attack_step(variables, image):
    def loss(image):
      logits = model.apply(variables, image, train=False)
      return losses.cross_entropy(logits, label)

    return attacks.pgd_linf(
      loss, image, image, epsilon=EPSILON, step_size=EPSILON, num_steps=1
    )

  def count(function):
    return jax.jit(function).lower(variables, image).compile().cost_analysis()['flops']

  flops += count(branch_gradients)
  if args.pgd_steps > 1:  # XLA unrolls a loop of one.
    flops += (args.pgd_steps - 1) * count(attack_step)
  return flops


def analytic_flops(args, model) -> int:
  """Returns `arithmetic`'s count for the whole batch."""
  count = arithmetic.count_model(model, args.size)
  per_image = {
    'forward': lambda: arithmetic.forward(count, running=False),
    'image_grad': lambda: arithmetic.image_grad(count, running=False),
    'vanilla': lambda: arithmetic.train(count, clean=1, attacked=0, num_steps=0),
    'advprop': lambda: arithmetic.train(
      count, clean=1, attacked=1, num_steps=args.pgd_steps
    ),
  }[args.method]()
  return args.batch * per_image


def measure(args) -> dict:
  """Returns the line's keys and values."""
  model = models.create_model(
    args.model,
    num_classes=NUM_CLASSES,
    dtype=args.dtype,
    remat=args.remat,
    **parallel.statistics_scope('all'),
  )
  start = time.perf_counter()
  step, step_args = create_step(args, model)
  state_secs = time.perf_counter() - start

  start = time.perf_counter()
  compiled = step.lower(*step_args).compile()
  compile_secs = time.perf_counter() - start

  state, batch = step_args
  secs = []
  for i in range(args.repeats + 1):  # The first is a warm-up.
    start = time.perf_counter()
    outputs = jax.block_until_ready(compiled(state, batch))
    if i > 0:
      secs.append(time.perf_counter() - start)
    if isinstance(outputs, tuple):  # The old state has been donated.
      state = outputs[0]

  memory = compiled.memory_analysis()
  flops = compiled_flops(args, model, compiled)
  analytic = analytic_flops(args, model)
  return {
    'model': args.model,
    'method': args.method,
    'pgd_steps': args.pgd_steps if args.method == 'advprop' else 0,
    'size': args.size,
    'batch': args.batch,
    'dtype': args.dtype,
    'remat': args.remat,
    'state_secs': state_secs,
    'compile_secs': compile_secs,
    'step_secs': min(secs),
    'step_median_secs': statistics.median(secs),
    'images_per_sec': args.batch / min(secs),
    'flops': flops,
    'flops_per_sec': flops / min(secs),
    'flops_analytic': analytic,
    'flops_ratio': flops / analytic,
    'argument_bytes': memory.argument_size_in_bytes,
    'temp_bytes': memory.temp_size_in_bytes,
    'peak_bytes': memory.peak_memory_in_bytes,
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'versions': {x.__name__: x.__version__ for x in (jax, flax, optax)},
  }


def compare(result: dict, peer: dict) -> dict:
  """Returns what the peer measured of the same computation, and our time over its."""
  for key in ('model', 'size', 'batch'):
    if peer[key] != result[key]:
      sys.exit(f'error: {key} is {result[key]} and the peer measured {peer[key]}')
  if result['method'] == 'advprop' and peer['pgd_steps'] != result['pgd_steps']:
    sys.exit(
      f'error: {result["pgd_steps"]} steps of PGD and the peer made {peer["pgd_steps"]}'
    )
  secs = peer[PEER_KEYS[result['method']]]
  return {
    'peer': peer['peer'],
    'peer_step_secs': secs,
    'peer_ratio': result['step_secs'] / secs,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='efficientnet_b0', choices=models.MODELS)
  parser.add_argument('--size', type=int, default=224, help='pixels')
  parser.add_argument('--batch', type=int, default=8, help='over all devices')
  parser.add_argument('--method', default='advprop', choices=PEER_KEYS)
  parser.add_argument('--pgd-steps', type=int, default=1)
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
  parser.add_argument('--remat', default='none', choices=efficientnet.REMAT_POLICIES)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--peer', type=json.loads, help='line of JSON to compare with')
  args = parser.parse_args()
  # What is measured is compiling, not reading what was compiled before.
  jax.config.update('jax_enable_compilation_cache', False)
  result = measure(args)
  if args.peer:
    result |= compare(result, args.peer)
  print(json.dumps(result))


if __name__ == '__main__':
  main()
