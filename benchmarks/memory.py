r"""Compiles a training step for a TPU without having one; prints one line of JSON.

  pip install libtpu
  python benchmarks/memory.py --model efficientnet_b7 --size 600 --batch 4 \
      --method advprop --remat activations

What XLA's compiler says of the program: bytes at the peak, of arguments and of
temporaries, and arithmetic, all of one core with `--batch` images. Nothing is run, so
there are no times. XLA counts the body of a loop once, however often it runs.
"""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advprop_jax import models, parallel
from advprop_jax.models import efficientnet
from benchmarks import step_time

# The compiler's own range is -1 to 1; at the least B0 compiles in a minute.
LEAST_EFFORT = {'exec_time_optimization_effort': -1.0, 'memory_fitting_effort': -1.0}


def measure(args) -> dict:
  """Returns the line's keys and values."""
  model = models.create_model(args.model, dtype='bfloat16', remat=args.remat)
  streams = step_time.create_streams(args.method, args.pgd_steps)
  step, create_state = step_time.create_training(model, streams, image_size=args.size)
  topology = topologies.get_topology_desc(platform='tpu', topology_name=args.topology)
  mesh = Mesh(np.array(topology.devices[:1]), (parallel.AXIS,))

  def on_core(tree, spec):
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  state = jax.eval_shape(create_state)
  batch = {
    'image': jax.ShapeDtypeStruct((args.batch, args.size, args.size, 3), jnp.float32),
    'label': jax.ShapeDtypeStruct((args.batch,), jnp.int32),
  }
  whole, split = PartitionSpec(), PartitionSpec(parallel.AXIS)
  sharded = jax.shard_map(
    step, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False
  )
  start = time.perf_counter()
  lowered = jax.jit(sharded, donate_argnums=0).lower(
    on_core(state, whole), on_core(batch, split)
  )
  compiled = lowered.compile(compiler_options=LEAST_EFFORT)
  memory = compiled.memory_analysis()
  return {
    'model': args.model,
    'method': args.method,
    'pgd_steps': args.pgd_steps if args.method == 'advprop' else 0,
    'size': args.size,
    'batch': args.batch,
    'dtype': 'bfloat16',
    'remat': args.remat,
    'device': topology.devices[0].device_kind,
    'compile_secs': time.perf_counter() - start,
    'peak_bytes': memory.peak_memory_in_bytes,
    'argument_bytes': memory.argument_size_in_bytes,
    'temp_bytes': memory.temp_size_in_bytes,
    'flops': compiled.cost_analysis()['flops'],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='efficientnet_b0', choices=models.MODELS)
  parser.add_argument('--size', type=int, default=224, help='pixels')
  parser.add_argument('--batch', type=int, default=32, help='of one core')
  parser.add_argument('--method', default='advprop', choices=['vanilla', 'advprop'])
  parser.add_argument('--pgd-steps', type=int, default=1)
  parser.add_argument('--remat', default='none', choices=efficientnet.REMAT_POLICIES)
  parser.add_argument('--topology', default='v5e:2x2')
  args = parser.parse_args()
  # The core of a TPU that is not there: what runs, runs on the CPU.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    print(json.dumps(measure(args)))
  except RuntimeError as e:
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  main()
