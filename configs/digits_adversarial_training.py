r"""The other control: clean and adversarial images share one norm (AdvProp, fig. 5).

python main.py --config=configs/digits_adversarial_training.py
"""

from configs import default, digits_advprop


def get_config(argument=None):
  config = digits_advprop.get_config(argument)
  config.streams = default.ADVERSARIAL_TRAINING
  return config
