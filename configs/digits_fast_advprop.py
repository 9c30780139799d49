r"""Fast AdvProp on digits: a fifth of the images is attacked, once.

python main.py --config=configs/digits_fast_advprop.py

Epochs and warm-up are those of `digits_advprop.py`, divided by 1.2. Of 80 images 64 are
clean, as many as there, and the learning rate is the same.
"""

from configs import arguments, default, digits_advprop


def get_config(argument=None):
  words = arguments.parse(argument)
  config = digits_advprop.get_config()
  config.method = dict(default.FAST_ADVPROP, epsilon=8 / 255, step_size=8 / 255)
  config.data.batch_size = 80
  config.num_epochs /= 1.2
  config.optim.schedule.warmup_epochs /= 1.2
  config.optim.schedule.learning_rate *= 64 / 80  # It is given for 256 images.
  return arguments.finish(config, words)
