r"""The other control: clean and adversarial images share one norm (AdvProp, fig. 5).

python main.py --config=configs/fashion_adversarial_training.py
"""

from configs import default, fashion_advprop


def get_config(argument=None):
  config = fashion_advprop.get_config(argument)
  config.streams = default.ADVERSARIAL_TRAINING
  return config
