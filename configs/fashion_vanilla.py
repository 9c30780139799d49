r"""The control of `fashion_advprop.py`: the same recipe on clean images alone.

python main.py --config=configs/fashion_vanilla.py
"""

from configs import default, fashion_advprop


def get_config(argument=None):
  config = fashion_advprop.get_config(argument)
  config.streams = default.VANILLA
  return config
