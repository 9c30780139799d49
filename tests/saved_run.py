"""The directory of a run with a tiny network of random weights, to test loading."""

import jax
import numpy as np

from advprop_jax import model_config, parallel, schema
from advprop_jax.workdir import checkpoint
from configs import default

CLASSES = ('cat', 'dog', 'flower', 'house', 'tree', 'car', 'bird')
# What the config of converted weights has, and no more.
CONFIG = schema.to_sections(
  {
    'model': {**default.RESNET, 'name': 'resnet_tiny', 'dtype': 'float32'},
    'data': {
      'name': 'imagenet2012',
      'class_names': CLASSES,
      'image_size': 32,
      'crop_padding': 8,
      'resize_method': 'bicubic_tf1',
      'eval_batch_size': 8,
    },
  }
)
OLD_STEP, STEP = 3, 12  # The newest has averages, and what training goes on from.
BRANCHES = ('clean', 'adv')


def create_module():
  """Returns the network."""
  return model_config.create_module(CONFIG, num_classes=len(CLASSES))


def draw_variables(seed):
  """Returns {'params', 'norms', 'batch_stats'}, of which no two arrays are equal."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    is_kernel = path[0].key == 'params' and len(x.shape) > 1
    low, high = (-0.1, 0.1) if is_kernel else (0.5, 1.5)
    return rng.uniform(low, high, x.shape).astype(x.dtype)

  shapes = model_config.abstract_variables(
    CONFIG, create_module(), branch_names=BRANCHES
  )
  return jax.tree_util.tree_map_with_path(draw, shapes)


def write(workdir):
  """Saves two checkpoints, replicated over all devices."""
  with checkpoint.Checkpointer(workdir / 'checkpoints', keep_last=2) as checkpointer:
    for step in (OLD_STEP, STEP):
      parts = {'model': draw_variables(step)}
      if step == STEP:
        parts |= {'ema': draw_variables(0), 'training': {'step': np.int32(step)}}
      checkpointer.save(
        step,
        parallel.replicate(parts),
        config=CONFIG,
        examples_seen=0,
        fingerprint={},
      )
