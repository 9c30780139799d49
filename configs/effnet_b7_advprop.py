r"""AdvProp, EfficientNet-B7 on ImageNet.

  python main.py --config=configs/effnet_b7_advprop.py --workdir=gs://bucket/b7
  python main.py --config=configs/effnet_b7_advprop.py \
      --config.optim.accumulate_steps=16  # Fewer devices: parts of the batch in turn.
  python main.py --config=configs/effnet_b7_advprop.py:smoke

Published, not ours, with AutoAugment; in brackets the same without adversarial
examples, `effnet_vanilla.py:b7`:

  ImageNet top-1      85.2 %  (84.5)
  ImageNet-C mCE      52.9    (59.4), less is better
  ImageNet-A top-1    44.7 %  (37.7)
  Stylized-ImageNet   26.6 %  (21.8)

Sources: top-1, tensorflow/tpu, README of models/official/efficientnet (in brackets its
state at the time of the paper); the others, AdvProp, experiments on distorted sets.

Attack: epsilon 4 of 255, 5 steps of 1; 4 is the best of 1, 2, 3 and 4 on B7. Run: 448
million images (350 epochs) of 600 px in 218,949 steps of 2,048; 5.6e20 operations, 5.3
times those of the control (counted by advprop_jax/models/arithmetic.py).
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b7'
  config.data.image_size = 600
  # Source: AdvProp, experiments: attack strength by size of the network.
  config.attack.update(epsilon=4 / 255, num_steps=5)
  return arguments.finish(config, words)
