r"""AdvProp, EfficientNet-B0 on ImageNet.

  python main.py --config=configs/effnet_b0_advprop.py --workdir=gs://bucket/b0
  python main.py --config=configs/effnet_b0_advprop.py:smoke

Published top-1 with the official recipe (AdvProp + AutoAugment): 77.6 %; not ours. The
optimizer and the augmentation here are not yet that recipe's.
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  return arguments.smoke(config) if 'smoke' in words else config
