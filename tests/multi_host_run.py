"""One host's process of `test_multi_host.py`, with 4 / hosts CPU devices.

  python multi_host_run.py steps|run WORKDIR DATA_DIR HOSTS

Slurm's variables say which host this is, as they would on a cluster.
"""

import os
import sys

import jax
import numpy as np
import test_multi_host

from advprop_jax import errors, hosts

what, workdir, data_dir, num_hosts = *sys.argv[1:4], int(sys.argv[4])
jax.config.update('jax_num_cpu_devices', 4 // num_hosts)
jax.config.update('jax_disable_most_optimizations', True)
jax.distributed.initialize()
index = jax.process_index()
assert jax.device_count() == 4 and jax.process_count() == num_hosts

if what == 'steps':
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
  np.savez(f'{workdir}_{index}.npz', *leaves, **attacked, **told)
else:  # Then once more, with steps added, so that every host resumes.
  import test_train
  from tiny_model import create_tiny_model

  from advprop_jax import model_config, train

  model_config.create_model = create_tiny_model
  config = test_train.small_config(data_dir)
  config.model.bn_scope = 'all'
  config.eval.every_epochs = 1.0
  config.checkpoint.every_epochs = 0.5
  values = train.train_and_evaluate(config, workdir)
  assert values['val/num_examples'] == 12
  config.num_epochs = 1.5
  values = train.train_and_evaluate(config, workdir)
  print('result', os.getpid(), repr(sorted(values.items())))
