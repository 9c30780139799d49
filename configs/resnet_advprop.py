r"""AdvProp with ResNets on ImageNet.

  python main.py --config=configs/resnet_advprop.py:50 --workdir=gs://bucket/r50
  python main.py --config=configs/resnet_advprop.py:50,vanilla
  python main.py --config=configs/resnet_advprop.py:50,smoke

50, 101, 152, 200 or x50_32x4d, x50_32x8d, x152_32x8d (ResNeXt). Published by others,
not ours, ResNet-50, attack of 1 step: top-1 77.4 % (76.7 without adversarial examples,
tingxueronghua/pytorch-classification-advprop), 77.5 % (76.2; Fast AdvProp, table 1).

Recipe: `resnets.py`, SAT's, with 105 epochs and a fourth step down at 100, as in the
first of the two, which otherwise has another one (batch 256, plain momentum, no
smoothing of labels, no colour jitter). Attack: epsilon 1 of 255, 1 step of 1. Run: 135
million images (105 epochs) of 224 px; 50: 8.8e18 operations, 101: 1.7e19, 152: 2.5e19,
200: 3.2e19, 2.7 times those of the control (counted by models/arithmetic.py).
"""

from configs import arguments, default, resnets


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*resnets.SIZES, 'vanilla', 'smoke'))
  config = resnets.get_config(arguments.choose(words, 'size', resnets.SIZES))
  config.num_epochs = 105.0
  config.optim.schedule.milestones_epochs = (30.0, 60.0, 90.0, 100.0)
  config.attack = default.PGD
  if 'vanilla' in words:
    config.streams = default.VANILLA
  return arguments.finish(config, words)
