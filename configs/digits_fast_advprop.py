r"""Fast AdvProp on digits: a fifth of the images is attacked, once.

python main.py --config=configs/digits_fast_advprop.py

The schedule is that of `digits_advprop.py`, divided by 1.2; the batch has as many clean
images and a quarter more.
"""

from configs import arguments, default, digits_advprop


def get_config(argument=None):
  words = arguments.parse(argument)
  config = digits_advprop.get_config()
  config.method = dict(default.FAST_ADVPROP, epsilon=8 / 255, step_size=8 / 255)
  config.data.batch_size = 80
  config.num_epochs = 20 / 1.2
  return arguments.finish(config, words)
