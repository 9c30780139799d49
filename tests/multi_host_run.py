"""One host's process of `test_multi_host.py`, with 4 / hosts CPU devices.

  python multi_host_run.py OUTPUT HOSTS

Slurm's variables say which host this is, as they would on a cluster.
"""

import sys

import jax
import numpy as np
import test_multi_host

from advprop_jax import errors, hosts

output, num_hosts = sys.argv[1], int(sys.argv[2])
jax.config.update('jax_num_cpu_devices', 4 // num_hosts)
jax.config.update('jax_disable_most_optimizations', True)
jax.distributed.initialize()
index = jax.process_index()
assert jax.device_count() == 4 and jax.process_count() == num_hosts

leaves = test_multi_host.three_steps(index, num_hosts)
attacked = test_multi_host.attack(index, num_hosts)
texts = hosts.texts_of_hosts('été' * (index + 1))
hosts.check_same_on_hosts('versions', {'jax': jax.__version__})
try:
  hosts.check_same_on_hosts('the config', {'seed': 0, 'num_epochs': index})
  message = ''
except errors.UserError as e:
  message = str(e)
told = {'texts': texts, 'message': message}
np.savez(f'{output}_{index}.npz', *leaves, **attacked, **told)
