"""A network of two layers with branch norms, for tests that are not about the model."""

import flax.linen as nn

from advprop_jax import parallel
from advprop_jax.models import norm


def create_tiny_model(config, *, num_classes, dropout_rate=0.0):
  """Stands in for `model_config.create_model`."""
  scope = parallel.statistics_scope(config.model.bn_scope)
  return TinyModel(num_classes, dropout_rate, **scope)


class TinyModel(nn.Module):
  """Conv, batch norm, ReLU, mean, dropout, dense: the interface of the real models."""

  num_classes: int = 5
  dropout_rate: float = 0.0
  bn_axis_name: str | None = None
  bn_axis_index_groups: tuple[tuple[int, ...], ...] | None = None

  @nn.compact
  def __call__(self, image, *, train, use_running_average=None):
    if use_running_average is None:
      use_running_average = not train
    x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name='conv')(image - 0.5)
    x = norm.BatchNorm(
      momentum=0.9,
      epsilon=1e-3,
      axis_name=self.bn_axis_name,
      axis_index_groups=self.bn_axis_index_groups,
      name='bn',
    )(x, use_running_average=use_running_average)
    x = nn.relu(x).mean((1, 2))
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name='classifier')(x)
