r"""AdvProp, EfficientNet-B8 on ImageNet.

  python main.py --config=configs/effnet_b8_advprop.py --workdir=gs://bucket/b8
  python main.py --config=configs/effnet_b8_advprop.py \
      --config.optim.accumulate_steps=16  # Fewer devices: parts of the batch in turn.
  python main.py --config=configs/effnet_b8_advprop.py:smoke

Published, not ours, with AutoAugment; in brackets the same without adversarial
examples, `effnet_vanilla.py:b8`:

  ImageNet top-1      85.5 %  (84.8)
  ImageNet-C, ImageNet-A, Stylized-ImageNet: none

Source: tensorflow/tpu, README of models/official/efficientnet; in brackets AdvProp.

Attack: epsilon 4 of 255, 5 steps of 1; no strength is published for B8, and it takes 4,
as B7 does. Run: 448 million images (350 epochs) of 672 px in 218,949 steps of 2,048;
9.2e20 operations, 5.3 times those of the control (counted by models/arithmetic.py).
"""

from configs import arguments, default


def get_config(argument=None):
  words = arguments.parse(argument)
  config = default.get_config()
  config.model.name = 'efficientnet_b8'
  config.data.image_size = 672
  # With 16 images a core 9.3 GB at the peak: benchmarks/README.md, memory.
  config.model.remat_blocks = True
  # Source: AdvProp, experiments: attack strength by size of the network.
  config.attack.update(epsilon=4 / 255, num_steps=5)
  return arguments.finish(config, words)
