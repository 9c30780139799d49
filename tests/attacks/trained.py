"""Small networks that were trained here, and the images that they are tested on.

data/<config>.npz holds the averaged weights of the branch `clean` after
`python main.py --config=configs/<config>.py`, seed 0.
"""

import functools
import importlib
import pathlib

import jax
import numpy as np
from flax import traverse_util

from advprop_jax import evaluations, images, model_config, schema
from advprop_jax.evaluation import robustness, suites

DATA = pathlib.Path(__file__).parent.parent / 'data'


def read_config(name, data_dir=''):
  """Returns the config of a network, as evaluation has it."""
  config = importlib.import_module(f'configs.{name}').get_config()
  with config.unlocked():
    config.data.data_dir = str(data_dir)
    config.data.eval_batch_size = 120
  return schema.read(config)


def load(name):
  """Returns `logits_fn(image)` of a network: float32 in [0, 1] to [B, 10]."""
  config = read_config(name)
  model = model_config.create_model(config, num_classes=10)
  with np.load(DATA / f'{name}.npz') as file:
    variables = traverse_util.unflatten_dict({k: file[k] for k in file.files}, sep='/')
  variables = jax.tree.map(jax.numpy.asarray, variables)
  return functools.partial(model.apply, variables, train=False)


def examples(name, num_examples, data_dir=''):
  """Returns held-out images of a network, uint8 [N, 32, 32, 3], and their labels."""
  config = read_config(name, data_dir)
  class_names = images.open_to_evaluate(config, config.data.eval_split).class_names
  cell = evaluations.open_cell(
    model_config.with_class_names(config, class_names), suites.Cell()
  )
  found, _ = robustness.collect(
    cell.batches,
    num_examples=num_examples,
    num_total=cell.dataset.num_examples(cell.split),
    seed=0,
  )
  return found.image, found.label
