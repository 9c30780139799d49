r"""SAT's study of gradients: a ReLU network whose backward pass is smooth in places.

  python main.py --config=configs/resnet_sat_gradient_study.py:attack
  python main.py --config=configs/resnet_sat_gradient_study.py:both,smoke

`attack`, `update` or `both`: where ReLU has the derivative of parametric softplus; its
control is `resnet_sat.py:50,relu`. Evaluation attacks the ReLU network by its own
gradient. Published, in words and no numbers: in the attack robustness rises and
accuracy falls, in the update both rise, in both more (SAT, section 3.2).

Everything else, and the cost, is that of `resnet_sat.py:50,relu`.
"""

from configs import arguments, resnet_sat

PLACES = ('attack', 'update', 'both')


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*PLACES, 'smoke'))
  config = resnet_sat.get_config('50,relu')
  config.model.smooth_backward = arguments.choose(words, 'place', PLACES)
  return arguments.finish(config, words)
