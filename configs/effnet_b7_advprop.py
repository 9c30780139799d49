r"""AdvProp, EfficientNet-B7 on ImageNet.

  python main.py --config=configs/effnet_b7_advprop.py --workdir=gs://bucket/b7
  python main.py --config=configs/effnet_b7_advprop.py:smoke

Published top-1 with the official recipe (AdvProp + AutoAugment): 85.2 %; not ours. The
optimizer and the augmentation here are not yet that recipe's.
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b7'
  config.data.image_size = 600
  # Large networks gain from strong attacks. Source: AdvProp, attack strength by size.
  config.attack.update(epsilon=4 / 255, num_steps=5)
  return arguments.smoke(config) if 'smoke' in words else config
