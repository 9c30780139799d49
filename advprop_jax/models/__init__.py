"""Names of models: `create_model('efficientnet_b0', num_classes=1000)`."""

import flax.linen as nn

from advprop_jax import errors
from advprop_jax.models import efficientnet

MODELS = efficientnet.VARIANTS


def create_model(name: str, *, num_classes: int = 1000, **overrides) -> nn.Module:
  """Returns the named model.

  Args:
    name: a key of MODELS.
    num_classes: K, the width of the logits.
    **overrides: attributes of `efficientnet.EfficientNet` to differ from the variant's.

  Raises:
    UserError: the name is not a key of MODELS.
  """
  errors.check_choice('model', name, MODELS)
  variant = MODELS[name]
  attributes = {
    'width': variant.width,
    'depth': variant.depth,
    'dropout_rate': variant.dropout_rate,
  }
  return efficientnet.EfficientNet(
    num_classes=num_classes, **{**attributes, **overrides}
  )
