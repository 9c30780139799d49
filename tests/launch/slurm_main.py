"""In the place of main.py in `test_slurm.py`: the same with a tiny network on CPUs.

  python slurm_main.py WORKDIR [arguments of main.py]

Trains once more at the end, into WORKDIR and without any interruption: that saves
starting the processes again.
"""

import os
import pathlib
import runpy
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

if __name__ == '__main__':
  import functools

  import jax
  from absl import flags
  from tiny_model import create_tiny_model

  from advprop_jax import hosts, model_config, train

  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_disable_most_optimizations', True)
  model_config.create_model = functools.partial(create_tiny_model, dropout_rate=0.5)
  straight = sys.argv.pop(1)
  if 'PREEMPT_AT' in os.environ:  # JAX looks for signals once a second.
    reached_preemption = hosts.reached_preemption

    def reach_slowly():
      time.sleep(0.25)
      return reached_preemption()

    hosts.reached_preemption = reach_slowly
  try:
    runpy.run_path(str(ROOT / 'main.py'), run_name='__main__')
  except SystemExit as e:
    if e.code:
      raise
  train.train_and_evaluate(flags.FLAGS.config, straight)
