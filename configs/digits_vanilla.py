r"""The control of `digits_advprop.py`: the same recipe on clean images alone.

python main.py --config=configs/digits_vanilla.py
"""

from configs import default, digits_advprop


def get_config(argument=None):
  config = digits_advprop.get_config(argument)
  config.streams = default.VANILLA
  return config
