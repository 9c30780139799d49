r"""Times one compiled step and counts its arithmetic; prints one line of JSON.

  python benchmarks/step_time.py --model efficientnet_b0 --size 224 --batch 8 \
      --method advprop --pgd-steps 1

Imports the core only, so jax, flax and optax are enough. On the CPU set
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as main.py does. With --peer, a line
that another program printed, its times stand beside ours; see README.md here.
"""

import functools
import json
import math
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

from advprop_jax import branches, errors, losses, models, parallel
from advprop_jax.attacks import gradient
from advprop_jax.models import arithmetic
from benchmarks import training

# What the peer calls the same computation, if it has it.
PEER_KEYS = {
  'forward': 'forward',
  'image_grad': 'grad_images',
  'vanilla': 'train_step',
  'advprop': 'advprop_step',
}


def create_step(args, model):
  """Returns (step, arguments): a data-parallel function and what to call it with."""
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.random((args.batch, args.size, args.size, 3), np.float32),
    'label': np.arange(args.batch, dtype=np.int32) % training.NUM_CLASSES,
  }
  trains = args.method in training.METHODS
  step, create_state = training.create_training(
    model,
    args.method if trains else 'vanilla',
    pgd_steps=args.pgd_steps,
    image_size=args.size,
  )
  state = jax.block_until_ready(parallel.replicate(create_state()))
  # What is timed is the step, not the way of the images to their devices.
  batch = next(parallel.prefetch([batch]))
  if trains:
    mapped = parallel.data_parallel(step, split=(False, True), donate_state=True)
    return mapped, (state, batch)

  def loss(image, label, variables):
    # Through the statistics of the batch, as the peer does.
    logits = model.apply(variables, image, train=False, use_running_average=False)
    return losses.cross_entropy(logits, label).mean()

  def measured(state, batch):
    variables = branches.variables(
      state.params, state.norms, state.batch_stats, branches.CLEAN
    )
    function = jax.grad(loss) if args.method == 'image_grad' else loss
    # Outputs come back stacked over the devices.
    return jnp.asarray(function(batch['image'], batch['label'], variables))[None]

  mapped = parallel.data_parallel(measured, split=(False, True), split_outputs=True)
  return mapped, (state, batch)


def compiled_flops(args, model, compiled) -> float:
  """Returns XLA's count for the compiled program, over all devices.

  XLA counts the body of a loop once however often it runs. The step loops over its
  branches, and the attack over its steps; what is missing is added from programs that
  do nothing but one of each.
  """
  flops = compiled.cost_analysis()['flops'] * jax.local_device_count()
  cost = training.METHODS.get(args.method)
  if cost is None:
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
    fgsm = gradient.make_fgsm(
      num_classes=model.num_classes, epsilon=training.EPSILON, targeted=False
    )
    logits_fn = functools.partial(model.apply, variables, train=False)
    return fgsm(logits_fn, image, label, jax.random.key(0))

  def count(function):
    return jax.jit(function).lower(variables, image).compile().cost_analysis()['flops']

  if cost.branches > 1:
    flops += (cost.branches - 1) * count(branch_gradients)
  if cost.attacks and args.pgd_steps > 1:
    flops += cost.attacks * (args.pgd_steps - 1) * count(attack_step)
  return flops


def analytic_flops(args, model) -> float:
  """Returns `arithmetic`'s count for the whole batch."""
  count = arithmetic.count_model(model, args.size)
  if args.method == 'forward':
    return args.batch * arithmetic.forward(count, running=False)
  if args.method == 'image_grad':
    return args.batch * arithmetic.image_grad(count, running=False)
  cost = training.METHODS[args.method]
  num_steps = args.pgd_steps if cost.attacks else 0
  return args.batch * arithmetic.train(
    count, clean=cost.clean, attacked=cost.attacked, num_steps=num_steps
  )


def measure(args) -> dict:
  """Returns the line's keys and values."""
  model = models.create_model(
    args.model,
    num_classes=training.NUM_CLASSES,
    dtype=args.dtype,
    remat_blocks=args.remat_blocks,
    **parallel.statistics_scope('all'),
  )

  def note(text):
    print(text, file=sys.stderr)

  note('building the state')
  start = time.perf_counter()
  step, step_args = create_step(args, model)
  state_secs = time.perf_counter() - start

  note(f'built in {state_secs:.0f} s, compiling')
  start = time.perf_counter()
  compiled = step.lower(*step_args).compile()
  compile_secs = time.perf_counter() - start

  note(f'compiled in {compile_secs:.0f} s, timing {args.repeats} steps')
  state, batch = step_args
  secs = []
  for i in range(args.repeats + 1):  # The first is a warm-up.
    start = time.perf_counter()
    outputs = jax.block_until_ready(compiled(state, batch))
    if i > 0:
      secs.append(time.perf_counter() - start)
    if isinstance(outputs, tuple):  # The old state has been donated.
      state = outputs[0]

  note('counting the arithmetic')
  memory = compiled.memory_analysis()
  # What XLA calls the peak of a program for the CPU is less than its temporaries.
  on_cpu = jax.default_backend() == 'cpu'
  flops = compiled_flops(args, model, compiled)
  analytic = analytic_flops(args, model)
  result = {
    **training.describe(args),
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
    'peak_bytes': None if on_cpu else memory.peak_memory_in_bytes,
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'versions': {x.__name__: x.__version__ for x in (jax, flax, optax)},
  }
  if args.peak_tflops is not None:
    peak = args.peak_tflops * 1e12 * jax.device_count()
    result['utilisation'] = analytic / min(secs) / peak
  return result


def parse_peer(args) -> dict:
  """Returns the peer's name and its seconds for the same computation.

  Raises:
    UserError: its line is not of the same computation.
  """
  if args.method not in PEER_KEYS:
    raise errors.UserError(
      f'--peer is for {", ".join(PEER_KEYS)}; given: --method {args.method}'
    )
  try:
    peer = json.loads(args.peer)
    secs = float(peer[PEER_KEYS[args.method]])
    measured = {key: peer[key] for key in ('model', 'size', 'batch')}
    measured['dtype'] = peer.get('dtype', 'float32')
    if args.method == 'advprop':
      measured['pgd_steps'] = peer['pgd_steps']
    name = peer['peer']
  except (KeyError, TypeError, ValueError) as e:
    raise errors.UserError(
      f'--peer is not the line that is needed ({type(e).__name__}: {e}); allowed: JSON '
      f'with peer, model, size, batch, {"pgd_steps, " * (args.method == "advprop")}'
      f'and seconds as {PEER_KEYS[args.method]}'
    ) from e
  for key, value in measured.items():
    if value != getattr(args, key):
      raise errors.UserError(
        f'the peer measured {key} {value}, this is {getattr(args, key)}; allowed: the '
        'same computation'
      )
  if not 0 < secs < math.inf:
    raise errors.UserError(f'the peer measured {secs} seconds; allowed: more than 0')
  return {'peer': name, 'peer_step_secs': secs}


def main():
  parser = training.create_parser(
    __doc__, methods=[*training.METHODS, *('forward', 'image_grad')]
  )
  parser.add_argument(
    '--repeats', type=training.positive, default=7, help='steps to time'
  )
  parser.add_argument('--peak-tflops', type=float, help='of one device, published')
  parser.add_argument('--peer', help='line of JSON to compare with, see README.md')
  args = parser.parse_args()
  # What is measured is compiling, not reading what was compiled before.
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    if args.peak_tflops is not None and not args.peak_tflops > 0:
      raise errors.UserError(
        f'--peak-tflops is {args.peak_tflops}; allowed: more than 0'
      )
    training.check(args)
    peer = {} if args.peer is None else parse_peer(args)
    result = measure(args)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  except jax.errors.JaxRuntimeError as e:
    training.exit_if_out_of_memory(e)
    raise
  if peer:
    result |= {**peer, 'peer_ratio': result['step_secs'] / peer['peer_step_secs']}
  print(json.dumps(result))


if __name__ == '__main__':
  main()
