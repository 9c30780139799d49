r"""AdvProp's pilot study on digits: adversarial images only, then clean ones.

python main.py --config=configs/digits_pilot.py

Two phases of one command, in `phase_0` and `phase_1` of the workdir.
"""

from configs import arguments, default, digits_advprop


def get_config(argument=None):
  words = arguments.parse(argument)
  config = digits_advprop.get_config()
  fine_tuning = dict(default.COSINE, learning_rate=0.025, warmup_epochs=0.0)
  config.phases = (
    {'streams': default.ADVERSARIAL_ONLY},
    {
      'streams': default.VANILLA,
      'num_epochs': 5.0,
      'optim': {'schedule': fine_tuning},
    },
  )
  return arguments.finish(config, words)
