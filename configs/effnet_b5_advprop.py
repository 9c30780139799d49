r"""AdvProp, EfficientNet-B5 on ImageNet.

  python main.py --config=configs/effnet_b5_advprop.py --workdir=gs://bucket/b5
  python main.py --config=configs/effnet_b5_advprop.py:smoke

Published, not ours, with AutoAugment; in brackets the same without adversarial
examples, `effnet_vanilla.py:b5`:

  ImageNet top-1      84.3 %  (83.7)
  ImageNet-C mCE      56.2    (62.3), less is better
  ImageNet-A top-1    34.4 %  (29.4)
  Stylized-ImageNet   24.4 %  (20.8)

Sources: top-1, tensorflow/tpu, README of models/official/efficientnet (in brackets its
state at the time of the paper); the others, AdvProp, experiments on distorted sets.

Attack: epsilon 4 of 255, 5 steps of 1; 1, 2, 3 and 4 are equal on B5, and it takes 4,
as B4 and B6 do. Run: 448 million images (350 epochs) of 456 px in 218,949 steps of
2,048; 1.5e20 operations, 5.3 times those of the control (counted by
advprop_jax/models/arithmetic.py).
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b5'
  config.data.image_size = 456
  # Source: AdvProp, experiments: attack strength by size of the network.
  config.attack.update(epsilon=4 / 255, num_steps=5)
  return arguments.finish(config, words)
