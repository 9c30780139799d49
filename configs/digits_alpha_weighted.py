r"""Adversarial training on a shared norm, with weighted losses.

  python main.py --config=configs/digits_alpha_weighted.py
  python main.py --config=configs/digits_alpha_weighted.py:alpha=0.8

The loss is alpha * J(clean) + (1 - alpha) * J(adversarial), alpha 0.5 or 0.1 to 0.9.
With 0.5 it is half of `digits_adversarial_training.py`.
"""

from configs import arguments, default, digits_advprop


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*arguments.ALPHAS, 'smoke'))
  config = digits_advprop.get_config()
  alpha = arguments.choose(words, 'alpha', arguments.ALPHAS, default='alpha=0.5')
  config.streams = default.alpha_weighted(arguments.ALPHAS[alpha])
  return arguments.finish(config, words)
