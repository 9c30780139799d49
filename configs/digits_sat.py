r"""Smooth adversarial training on digits: adversarial images only, any activation.

  python main.py --config=configs/digits_sat.py:silu
  python main.py --config=configs/digits_sat.py:relu
  python main.py --config=configs/digits_sat.py:relu,both

With relu also `attack`, `update` or `both`: where its backward pass is smooth.
"""

from configs import arguments, default, digits_advprop, resnet_sat
from configs import resnet_sat_gradient_study as study


def get_config(argument=None):
  words = arguments.parse(
    argument, allowed=(*resnet_sat.ACTIVATIONS, *study.PLACES, 'smoke')
  )
  config = digits_advprop.get_config()
  config.model.activation = arguments.choose(
    words, 'activation', resnet_sat.ACTIVATIONS, default='silu'
  )
  config.model.smooth_backward = arguments.choose(
    words, 'place', study.PLACES, default='none'
  )
  config.streams = default.ADVERSARIAL_ONLY
  # One step that reaches the border from anywhere. Source: SAT.
  config.attack = dict(default.PGD_SAT, epsilon=8 / 255, step_size=8 / 255)
  return arguments.finish(config, words)
