r"""Smooth adversarial training (SAT) with EfficientNets on ImageNet.

  python main.py --config=configs/effnet_sat.py:b0 --workdir=gs://bucket/sat_b0
  python main.py --config=configs/effnet_sat.py:b0,smoke

b0 to b7, or l1. Published clean top-1 in %, not ours (README of
cihangxie/SmoothAdversarialTraining):

  b0 65.2  b1 68.6  b2 70.3  b3 73.1  b4 75.9  b5 77.8  b6 79.2  b7 79.8  l1 80.7

"L1-Enhanced", whose weights are averages and of whose recipe nothing else is known:
82.2, and 58.6 under attack at epsilon 4 (SAT, abstract). Adversarial images only,
epsilon 4 of 255, 1 step of 4. The norms' constants, 0.9 and 1e-5, are those of the
released weights; the training recipe of these networks was not released: here the
official one of EfficientNet, its 350 epochs shortened to 100, steps of the learning
rate included, without AutoAugment and without averages: our choice.
Run: 128 million images; b0: 5.2e17 operations, b4: 5.8e18, b7: 5.0e19, l1: 2.1e20, 1.7
times those of training on clean images (counted by models/arithmetic.py).
"""

from configs import arguments, default, effnet_sizes

SIZES = ('b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7', 'l1')


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*SIZES, 'smoke'))
  size = arguments.choose(words, 'size', SIZES)
  config = effnet_sizes.get_config('b7' if size == 'l1' else size)
  config.num_epochs = 100.0
  config.data.augmentation = default.NO_AUGMENTATION
  config.model.update(name=f'efficientnet_{size}', bn_momentum=0.9, bn_epsilon=1e-5)
  config.streams = default.ADVERSARIAL_ONLY
  config.attack = default.PGD_SAT
  config.optim.ema_decay = 0.0
  # As far down as in the official 350 epochs: without averages the last rate counts.
  config.optim.schedule.decay_epochs *= 100 / 350
  if size == 'l1':
    config.model.remat_blocks = True
  return arguments.finish(config, words)
