r"""Smooth adversarial training on Fashion-MNIST: ReLU against a smooth activation.

python main.py --config=configs/fashion_sat.py:silu
python main.py --config=configs/fashion_sat.py:relu
"""

from configs import arguments, default, fashion_advprop, resnet_sat


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*resnet_sat.ACTIVATIONS, 'full', 'smoke'))
  config = fashion_advprop.get_config('full' if 'full' in words else None)
  config.model.activation = arguments.choose(
    words, 'activation', resnet_sat.ACTIVATIONS, default='silu'
  )
  config.streams = default.ADVERSARIAL_ONLY
  config.attack = default.PGD_SAT
  return arguments.finish(config, words)
