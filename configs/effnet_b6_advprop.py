r"""AdvProp, EfficientNet-B6 on ImageNet.

  python main.py --config=configs/effnet_b6_advprop.py --workdir=gs://bucket/b6
  python main.py --config=configs/effnet_b6_advprop.py:smoke

Published, not ours, with AutoAugment; in brackets the same without adversarial
examples, `effnet_vanilla.py:b6`:

  ImageNet top-1      84.8 %  (84.2)
  ImageNet-C mCE      53.6    (60.6), less is better
  ImageNet-A top-1    40.6 %  (34.5)
  Stylized-ImageNet   25.9 %  (20.9)

The source prints a gain of 4.0 beside the two values of Stylized-ImageNet.

Sources: top-1, tensorflow/tpu, README of models/official/efficientnet (in brackets its
state at the time of the paper); the others, AdvProp, experiments on distorted sets.

Attack: epsilon 4 of 255, 5 steps of 1; 4 is the best of 1, 2, 3 and 4 on B6. Run: 448
million images (350 epochs) of 528 px in 218,949 steps of 2,048; 2.8e20 operations, 5.3
times those of the control (counted by advprop_jax/models/arithmetic.py).
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b6'
  config.data.image_size = 528
  # Source: AdvProp, experiments: attack strength by size of the network.
  config.attack.update(epsilon=4 / 255, num_steps=5)
  return arguments.finish(config, words)
