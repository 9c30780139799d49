r"""AdvProp, EfficientNet-B1 on ImageNet.

  python main.py --config=configs/effnet_b1_advprop.py --workdir=gs://bucket/b1
  python main.py --config=configs/effnet_b1_advprop.py:smoke

Published, not ours, with AutoAugment; in brackets the same without adversarial
examples, `effnet_vanilla.py:b1`:

  ImageNet top-1      79.6 %  (79.2)
  ImageNet-C mCE      60.2    (65.1), less is better
  ImageNet-A top-1    10.1 %  (9.0)
  Stylized-ImageNet   17.8 %  (16.8)

The Stylized-ImageNet row may belong to another size: the source is damaged there.

Sources: top-1, tensorflow/tpu, README of models/official/efficientnet (in brackets its
state at the time of the paper); the others, AdvProp, experiments on distorted sets.

Attack: epsilon 1 of 255, 1 step of 1; 1 is the best of 1, 2, 3 and 4 on B1. Run: 448
million images (350 epochs) of 240 px in 218,949 steps of 2,048; 5.2e18 operations, 2.7
times those of the control (counted by advprop_jax/models/arithmetic.py).
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b1'
  config.data.image_size = 240
  # Source: AdvProp, experiments: attack strength by size of the network.
  config.attack.update(epsilon=1 / 255, num_steps=1)
  return arguments.finish(config, words)
