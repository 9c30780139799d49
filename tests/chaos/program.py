"""The program that is killed: `main.py` with a network that trains within seconds.

Its arrays are of all sizes that Orbax treats differently: inside of an index that has
checksums, and in files of their own, which have none.
"""

import os
import sys

import flax.linen as nn

from advprop_jax import parallel, preemption, startup
from advprop_jax.models import norm


class SmallNetwork(nn.Module):
  """Conv, batch norm, ReLU, dropout, two dense layers, of which the first is wide."""

  num_classes: int
  bn_axis_name: str | None = None
  bn_axis_index_groups: tuple[tuple[int, ...], ...] | None = None

  @nn.compact
  def __call__(self, image, *, train, use_running_average=None):
    if use_running_average is None:
      use_running_average = not train
    x = nn.Conv(8, (3, 3), strides=4, use_bias=False, name='conv')(image - 0.5)
    x = norm.BatchNorm(
      momentum=0.9,
      epsilon=1e-3,
      axis_name=self.bn_axis_name,
      axis_index_groups=self.bn_axis_index_groups,
      name='bn',
    )(x, use_running_average=use_running_average)
    x = nn.relu(x).mean((1, 2))
    x = nn.relu(nn.Dense(2048, name='wide')(x))
    x = nn.Dropout(0.5)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name='classifier')(x)


def create_model(config, *, num_classes):
  """Stands in for `model_config.create_model`."""
  return SmallNetwork(num_classes, **parallel.statistics_scope(config.model.bn_scope))


def arguments(workdir, data_dir, *, num_steps: int, save_steps: int, **changes) -> list:
  """Returns the command line of a run: steps of 8 images of the digits.

  Args:
    workdir: of the run.
    data_dir: of the digits.
    num_steps: of the run.
    save_steps: from one checkpoint to the next.
    **changes: values of the config, as {'eval__every_epochs': 1.0}.
  """
  epoch = 6  # Steps.
  config = {
    'data.data_dir': data_dir,
    'data.train_split': 'train[:48]',
    'data.eval_split': 'test[:16]',
    'data.batch_size': 8,
    'data.eval_batch_size': 8,
    'data.image_size': 32,
    'log_every_steps': 5,
    'num_epochs': num_steps / epoch,
    'eval.every_epochs': num_steps / epoch,
    'checkpoint.every_epochs': save_steps / epoch,
    'checkpoint.keep_last': 2,
    **{key.replace('__', '.'): x for key, x in changes.items()},
  }
  return [
    '--config=configs/digits_advprop.py:smoke',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in config.items()),
  ]


def run(words: list[str]):
  """Runs main.py with these words; ends the process."""
  preemption.watch()
  startup.remove_broken_when_warned(os.environ['JAX_COMPILATION_CACHE_DIR'])
  from absl import app

  import main
  from advprop_jax import model_config

  model_config.create_model = create_model
  app.run(main.main, flags_parser=main.parse_flags, argv=['main.py', *words])


if __name__ == '__main__':
  run(sys.argv[1:])
