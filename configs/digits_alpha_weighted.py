r"""Adversarial training on a shared norm, with weighted losses.

python main.py --config=configs/digits_alpha_weighted.py

The loss is alpha * J(clean) + (1 - alpha) * J(adversarial) with alpha 0.5: half of
`digits_adversarial_training.py`.
"""

from configs import default, digits_advprop


def get_config(argument=None):
  config = digits_advprop.get_config(argument)
  config.streams = default.ALPHA_WEIGHTED
  return config
