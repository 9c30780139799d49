"""One host's process of `test_multi_host.py`: trains on 4 / hosts CPU devices.

  python multi_host_run.py WORKDIR DATA_DIR HOSTS

Slurm's variables say which host this is, as they would on a cluster.
"""

import os
import sys

import jax
import numpy as np
import optax
import test_train
import test_train_step
from tiny_model import TinyModel

from advprop_jax import experiment, parallel, train

workdir, data_dir, num_hosts = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update('jax_num_cpu_devices', 4 // num_hosts)
if num_hosts > 1:
  jax.distributed.initialize()
index = jax.process_index()
assert jax.device_count() == 4 and jax.process_count() == num_hosts

# 1. Three steps on the same global batches, whoever holds which part of them.
model = TinyModel(**parallel.statistics_scope('all'))
tx = optax.sgd(0.1, momentum=0.9)
streams = (test_train_step.clean(), test_train_step.adv())
state = test_train_step.create_state(model, tx, streams)
step = test_train_step.create_step(model, tx, streams)
for i in range(3):
  batch = test_train_step.batch(i)
  part = len(batch['label']) // num_hosts
  batch = {k: x[index * part : (index + 1) * part] for k, x in batch.items()}
  state, _ = step(state, parallel.shard(batch))
leaves = jax.tree.leaves((state.params, state.norms, state.batch_stats))
np.savez(f'{workdir}_step_{index}.npz', *leaves)


# 2. A whole run: data of each host's own, evaluation, checkpoints; then once more, with
# an epoch added, so that every host resumes.
def create_model(config, *, num_classes):
  return TinyModel(num_classes, **parallel.statistics_scope('all'))


experiment.create_model = create_model
config = test_train.small_config(data_dir)
values = train.train_and_evaluate(config, workdir)
assert values['val/num_examples'] == 12
config.num_epochs = 2.0
values = train.train_and_evaluate(config, workdir)
print('result', os.getpid(), repr(sorted(values.items())))
