r"""Fine-grained AdvProp on digits: clean, augmented and adversarial norms.

python main.py --config=configs/digits_fine_grained.py

The augmentation is RandAugment of one op, at a magnitude that leaves digits readable.
"""

from configs import arguments, default, digits_advprop


def get_config(argument=None):
  words = arguments.parse(argument)
  config = digits_advprop.get_config()
  config.data.augmentation = dict(default.RANDAUGMENT, num_layers=1, magnitude=3)
  config.streams = default.FINE_GRAINED
  return arguments.finish(config, words)
