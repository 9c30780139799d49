r"""Smooth adversarial training (SAT) with ResNets on ImageNet.

  python main.py --config=configs/resnet_sat.py:50,silu --workdir=gs://bucket/sat
  python main.py --config=configs/resnet_sat.py:50,relu
  python main.py --config=configs/resnet_sat.py:50,silu,smoke

Adversarial images only, of an attack of one step that starts at random; the activation
is every one of models/activations.py. An alpha of its own:
`--config.model.activation=celu:0.5`. Published, not ours, ResNet-50 at epsilon 4,
accuracy in %, clean / under PGD-200 (a figure of SAT's README, read to 0.05; its
parametric_softplus has an alpha that we could not find, ours is 10):

  relu          68.8 / 33.0      gelu   69.95 / 41.65
  softplus      68.4 / 40.0      elu    69.2 / 41.7
  smooth_relu   69.4 / 40.3      silu   69.7 / 42.3
  parametric_softplus  68.8 / 38.7

Attack: epsilon 4 of 255, 1 step of 4. Recipe: `resnets.py`. Run: 128 million images
(100 epochs) of 224 px; 50: 5.3e18 operations, 1.7 times those of training on clean
images (counted by models/arithmetic.py).
"""

from configs import arguments, default, resnets

ACTIVATIONS = (
  *('relu', 'softplus', 'parametric_softplus', 'silu', 'gelu', 'gelu_exact', 'elu'),
  *('celu', 'smooth_relu', 'mish'),
)


def get_config(argument=None):
  words = arguments.parse(argument, allowed=(*resnets.SIZES, *ACTIVATIONS, 'smoke'))
  config = resnets.get_config(arguments.choose(words, 'size', resnets.SIZES))
  config.model.activation = arguments.choose(words, 'activation', ACTIVATIONS)
  config.streams = default.ADVERSARIAL_ONLY
  config.attack = default.PGD_SAT
  return arguments.finish(config, words)
