"""Models by name: `create_model('efficientnet_b0', num_classes=1000)`."""

import functools

import flax.linen as nn

from advprop_jax import registry
from advprop_jax.models import efficientnet, resnet

# Name -> module class, or function of attributes, that returns a Flax module. The
# program gives `num_classes` and what norms share; the rest is a config's section.
MODELS = {
  name: functools.partial(
    efficientnet.EfficientNet,
    width=variant.width,
    depth=variant.depth,
    stages=variant.stages,
    dropout_rate=variant.dropout_rate,
    se_ratio=variant.se_ratio,
    activation=variant.activation,
    scale_ends=variant.scale_ends,
  )
  for name, variant in efficientnet.VARIANTS.items()
} | {
  name: functools.partial(resnet.ResNet, **variant._asdict())
  for name, variant in resnet.VARIANTS.items()
}


def create_model(name: str, *, num_classes: int = 1000, **attributes) -> nn.Module:
  """Returns the named model.

  Args:
    name: a key of MODELS.
    num_classes: K, the width of the logits.
    **attributes: of the model, to differ from its own defaults.

  Raises:
    UserError: the name is not a key of MODELS, or the model has no such attribute.
  """
  section = {'name': name, **attributes}
  return registry.create('model', MODELS, section, num_classes=num_classes)
