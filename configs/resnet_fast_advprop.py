r"""Fast AdvProp with ResNets on ImageNet: at the cost of vanilla training.

  python main.py --config=configs/resnet_fast_advprop.py:50 --workdir=gs://bucket/fast
  python main.py --config=configs/resnet_fast_advprop.py:50,smoke

50, 101 or 152. Published, not ours (Fast AdvProp, tables 1 and 2), top-1 in %, in
brackets vanilla training at the same cost:

  ResNet-50   76.5 (76.2)
  ResNet-101  77.8 (77.8)
  ResNet-152  78.6 (78.3)

A fifth of the images is attacked, once; that makes 1.2 passes an image. So the schedule
is that of 105 epochs, divided by 1.2: 87.5 epochs, steps down after 25, 50, 75 and
83.3. Of 320 images 256 are clean, for which the rate is 0.1. No warm-up, no smoothing
of labels, no colour jitter. On 4 devices each has 64 clean images, as in the paper; on
more, fewer share their norms' statistics.

Other than in the released code: norms' scales and biases are not decayed; the last norm
of a block starts at 0 and the classifier with N(0, 0.01); the max-pool is padded as
TensorFlow's SAME and images are resized by TensorFlow's bicubic; epochs are not rounded
to whole numbers.

Run: 112 million images of 224 px; 50: 3.3e18 operations, 101: 6.3e18, 152: 9.3e18
(counted by models/arithmetic.py), as many as 105 epochs of clean images.
"""

from configs import arguments, default, resnets

SIZES = ('50', '101', '152')
SHARE = 0.2


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*SIZES, 'smoke'))
  config = resnets.get_config(arguments.choose(words, 'size', SIZES))
  config.method = dict(default.FAST_ADVPROP, adversarial_share=SHARE)
  config.num_epochs = 105 / (1 + SHARE)
  config.data.batch_size = 320
  config.data.augmentation = default.NO_AUGMENTATION
  config.optim.optimizer = dict(default.SGD, nesterov=False)
  config.optim.label_smoothing = 0.0
  config.optim.schedule.update(
    learning_rate=0.1 * (1 - SHARE),
    warmup_epochs=0.0,
    milestones_epochs=tuple(epoch / (1 + SHARE) for epoch in (30, 60, 90, 100)),
  )
  return arguments.finish(config, words)
