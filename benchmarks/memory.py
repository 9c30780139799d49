r"""Compiles a training step for a TPU without having one; prints one line of JSON.

  .venv/bin/pip install 'jax[tpu]'
  python benchmarks/memory.py --model efficientnet_b7 --size 600 --batch 4 \
      --method advprop --remat-blocks

What XLA's compiler says of the program, for one core with `--batch` images: bytes that
are in use at the peak, and bytes to allocate, which are those of arguments and of
temporaries with the gaps between them. Nothing is run, so there are no times.
"""

import json
import os
import pathlib
import sys
import time

# libtpu lets one process at a time have the TPU; here none of them wants it.
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advprop_jax import errors, models, parallel
from benchmarks import training

# The compiler's own range is -1 to 1; at the least B0 compiles in a minute.
LEAST_EFFORT = {'exec_time_optimization_effort': -1.0, 'memory_fitting_effort': -1.0}


def measure(args) -> dict:
  """Returns the line's keys and values."""
  model = models.create_model(
    args.model, dtype=args.dtype, remat_blocks=args.remat_blocks
  )
  step, create_state = training.create_training(
    model, args.method, pgd_steps=args.pgd_steps, image_size=args.size
  )
  try:
    topology = topologies.get_topology_desc(platform='tpu', topology_name=args.topology)
  except (RuntimeError, ValueError) as e:
    reason = str(e).splitlines()[0]
    if 'TPU support not installed' in reason:
      reason = "libtpu is missing, `pip install 'jax[tpu]'` brings it"
    raise errors.UserError(f'no TPU to compile for: {reason}') from e
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
  print('compiling: one minute for B0, several for B7', file=sys.stderr)
  compiled = lowered.compile(compiler_options=LEAST_EFFORT)
  memory = compiled.memory_analysis()
  return {
    **training.describe(args),
    'device': topology.devices[0].device_kind,
    'compile_secs': time.perf_counter() - start,
    'peak_bytes': memory.peak_memory_in_bytes,
    'allocated_bytes': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
  }


def main():
  parser = training.create_parser(__doc__, methods=['vanilla', 'advprop'])
  parser.set_defaults(batch=32, dtype='bfloat16')
  parser.add_argument(
    '--topology', default='v5e:2x2', help='of which one core is compiled for'
  )
  args = parser.parse_args()
  # The core of a TPU that is not there: what runs, runs on the CPU.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    print(json.dumps(measure(args)))
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  except jax.errors.JaxRuntimeError as e:
    training.exit_if_out_of_memory(e)
    raise


if __name__ == '__main__':
  main()
