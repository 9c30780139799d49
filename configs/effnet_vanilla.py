r"""The control of `effnet_b*_advprop.py`: the official recipe, clean images alone.

  python main.py --config=configs/effnet_vanilla.py:b7 --workdir=gs://bucket/vanilla_b7
  python main.py --config=configs/effnet_vanilla.py:b7,randaugment
  python main.py --config=configs/effnet_vanilla.py:b7,smoke

Published top-1 in %, not ours:

                  b0    b1    b2    b3    b4    b5    b6    b7    b8
  AutoAugment    77.3  79.2  80.3  81.7  83.0  83.7  84.2  84.5  84.8
  RandAugment                                  83.9        85.0  85.4
  its magnitude                                 17          28    28

Sources: tensorflow/tpu, README of models/official/efficientnet at the time of AdvProp;
AutoAugment's B8, AdvProp. Those networks normalise with ImageNet's mean and standard
deviation, AdvProp's with 0.5; everything else is the AdvProp config's of the same size.
At these magnitudes and in one sub-policy of AutoAugment, Posterize and Solarize have
arguments outside of their range, which wrap around as in the official code.
"""

from configs import arguments, default, effnet_sizes

# Two layers of this magnitude. Source: README of the official code.
RANDAUGMENT_MAGNITUDES = {'b5': 17, 'b7': 28, 'b8': 28}


def get_config(argument=None):
  size, words = effnet_sizes.parse(argument, allowed=('randaugment', 'smoke'))
  config = effnet_sizes.get_config(size)
  config.streams = default.VANILLA
  # Source: MEAN_RGB and STDDEV_RGB of the official code.
  config.model.mean = (0.485, 0.456, 0.406)
  config.model.std = (0.229, 0.224, 0.225)
  if 'randaugment' in words:
    if size not in RANDAUGMENT_MAGNITUDES:
      raise ValueError(
        f'randaugment has no published setting for {size}; allowed: '
        f'{", ".join(RANDAUGMENT_MAGNITUDES)}'
      )
    config.data.augmentation = dict(
      default.RANDAUGMENT, magnitude=RANDAUGMENT_MAGNITUDES[size]
    )
  return arguments.finish(config, words)
