r"""AdvProp, EfficientNet-B0 on ImageNet.

  python main.py --config=configs/effnet_b0_advprop.py --workdir=gs://bucket/b0
  python main.py --config=configs/effnet_b0_advprop.py:smoke

Published, not ours, with AutoAugment; in brackets the same without adversarial
examples, `effnet_vanilla.py:b0`:

  ImageNet top-1      77.6 %  (77.3)
  ImageNet-C mCE      66.2    (70.7), less is better
  ImageNet-A top-1     7.1 %  (6.7)
  Stylized-ImageNet   14.6 %  (13.1)

Sources: top-1, tensorflow/tpu, README of models/official/efficientnet (in brackets its
state at the time of the paper); the others, AdvProp, experiments on distorted sets.

Attack: epsilon 1 of 255, 1 step of 1; 1 is the best of 1, 2, 3 and 4 on B0. Run: 448
million images (350 epochs) of 224 px in 218,949 steps of 2,048; 2.9e18 operations, 2.7
times those of the control (counted by advprop_jax/models/arithmetic.py).
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b0'
  config.data.image_size = 224
  # Source: AdvProp, experiments: attack strength by size of the network.
  config.attack.update(epsilon=1 / 255, num_steps=1)
  return arguments.finish(config, words)
