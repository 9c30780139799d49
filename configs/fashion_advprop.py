r"""AdvProp on Fashion-MNIST: 28 x 28 pixels, real images, a CPU.

  python main.py --config=configs/fashion_advprop.py
  python main.py --config=configs/fashion_advprop.py:full
  python main.py --config=configs/fashion_advprop.py:smoke

10,000 of the 60,000 training images, or with `full` all; 10,000 test images. Images are
enlarged to 32 x 32; the network is that of the digits.
"""

from configs import arguments, default, digits_advprop


def get_config(argument=None):
  words = arguments.parse(argument, allowed=('full', 'smoke'))
  config = digits_advprop.get_config()
  config.data.update(
    name='fashion_mnist',
    train_split='train' if 'full' in words else 'train[:10000]',
    batch_size=100,
    eval_batch_size=1000,
    shuffle_window=16384,
    flip=True,  # Clothes have no left and right.
  )
  config.attack.update(epsilon=4 / 255, step_size=2 / 255, num_steps=2)
  config.eval.attack.update(epsilon=4 / 255, step_size=1 / 255, num_steps=10)
  config.num_epochs = 10.0
  config.optim.schedule = dict(default.COSINE, learning_rate=0.25, warmup_epochs=1.0)
  config.eval.every_epochs = 5.0
  config.checkpoint.every_epochs = 5.0
  return arguments.finish(config, words)
