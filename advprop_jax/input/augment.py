"""AutoAugment and RandAugment of one example, as stateless TensorFlow ops.

Images are uint8 [H, W, 3], so round and cast before. Levels are the papers' scale of
strength, 0..10; RandAugment's magnitude is a level that may exceed it.

Randomness is stateless: everything is drawn, at once, from the `seed` of the example.

Why no library: none draws from a seed per example in a tf.data graph. keras and
keras-cv (batches, generators, other ranges), tf-models-official and big_vision (the
official ops on global randomness), torchvision, timm and DALI (not TensorFlow), imax,
augmax and dm-pix (JAX, on the accelerator) were considered.

Source, also of all constants without another: tensorflow/tpu
`models/official/efficientnet/autoaugment.py`. Papers: Cubuk et al. 2019, AutoAugment,
arXiv:1805.09501; Cubuk et al. 2020, RandAugment, arXiv:1909.13719.
"""

import functools

import numpy as np
import tensorflow as tf

from advprop_jax.input import augment_ops, color_jitter

# Ops whose argument is negated with probability 1/2.
SIGNED_OPS = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')

# The 25 sub-policies of AutoAugment v0: two times (op, probability, level), in order.
AUTOAUGMENT_POLICY = (
  (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
  (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
  (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
  (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
  (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
  (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
  (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
  (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
  (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
  (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
  (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
  (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
  (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
  (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
  (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
  (('Rotate', 1.0, 7), ('TranslateY', 0.8, 9)),
  (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
  (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
  (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
  (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
  (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
  (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
  (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
  (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
  (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
)

# The lengths at level 10, in pixels whatever the image's size.
AUTOAUGMENT_LENGTHS = {'cutout': 100, 'translate': 250}
RANDAUGMENT_LENGTHS = {'cutout': 40, 'translate': 100}


def argument_of(name: str, level: float, *, cutout: int, translate: int) -> float:
  """Returns the op's argument at a level, without sign; 0 for ops that take none.

  Args:
    name: a key of augment_ops.OPS.
    level: strength; 10 is the papers' largest.
    cutout: half the side of Cutout's square at level 10, in pixels.
    translate: length of a translation at level 10, in pixels.
  """
  share = level / 10
  factor = share * 1.8 + 0.1
  return {
    'Rotate': share * 30,
    'Posterize': int(share * 4),
    'Solarize': int(share * 256),
    'SolarizeAdd': int(share * 110),
    'Color': factor,
    'Contrast': factor,
    'Brightness': factor,
    'Sharpness': factor,
    'ShearX': share * 0.3,
    'ShearY': share * 0.3,
    'TranslateX': share * translate,
    'TranslateY': share * translate,
    'Cutout': int(share * cutout),
  }.get(name, 0)


def _plus_minus(name, level, lengths):
  argument = argument_of(name, level, **lengths)
  return argument, -argument if name in SIGNED_OPS else argument


# Per sub-policy and layer: index of the op in the list, from 1 on; its probability; its
# argument with either sign. float32[25, 2, 4].
_AUTOAUGMENT_OPS = sorted({op for pair in AUTOAUGMENT_POLICY for op, _, _ in pair})
_AUTOAUGMENT_TABLE = np.array(
  [
    [
      (
        1 + _AUTOAUGMENT_OPS.index(op),
        probability,
        *_plus_minus(op, level, AUTOAUGMENT_LENGTHS),
      )
      for op, probability, level in pair
    ]
    for pair in AUTOAUGMENT_POLICY
  ],
  np.float32,
)


def autoaugment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Applies AutoAugment v0: one of 25 sub-policies, of at most two ops.

  Args:
    image: uint8[H, W, 3], from 3 x 3 pixels on.
    seed: int[2].

  Returns:
    uint8[H, W, 3].
  """
  _, chosen, arguments = draw_autoaugment(seed)
  for layer in range(2):
    # Nothing runs, and nothing is copied, where the draw decided against the op.
    branches = [_identity] + [augment_ops.OPS[name] for name in _AUTOAUGMENT_OPS]
    image = _switch(branches, chosen[layer], image, arguments[layer])
  return image


def draw_autoaugment(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Draws what `autoaugment` does with this seed.

  Returns:
    index of the sub-policy, int32[]; per layer the op, int32[2], 0 for none, else 1 +
    the index in the list of the policy's ops; and its argument, float32[2].
  """
  draws = tf.random.stateless_uniform([5], seed)
  # A product of float32 below 1 and an integer n stays below n, also when rounded.
  sub_policy = tf.cast(draws[0] * len(AUTOAUGMENT_POLICY), tf.int32)
  layers = tf.gather(_AUTOAUGMENT_TABLE, sub_policy)
  op, probability, plus, minus = tf.unstack(layers, axis=-1)
  chosen = tf.where(draws[1:3] < probability, op, 0.0)
  return sub_policy, tf.cast(chosen, tf.int32), tf.where(draws[3:] < 0.5, plus, minus)


def randaugment(
  image: tf.Tensor, seed: tf.Tensor, *, num_layers: int, magnitude: float
) -> tf.Tensor:
  """Applies RandAugment: ops chosen uniformly of all 16, always applied.

  Args:
    image: uint8[H, W, 3], from 3 x 3 pixels on.
    seed: int[2].
    num_layers: how many ops follow each other, N in the paper.
    magnitude: the level of all of them, M in the paper; may exceed 10.

  Returns:
    uint8[H, W, 3].
  """
  chosen, arguments, centers = draw_randaugment(seed, num_layers, magnitude)
  for layer in range(num_layers):
    cutout_here = functools.partial(augment_ops.cutout, center=centers[layer])
    branches = list((augment_ops.OPS | {'Cutout': cutout_here}).values())
    image = _switch(branches, chosen[layer], image, arguments[layer])
  return image


def draw_randaugment(
  seed: tf.Tensor, num_layers: int, magnitude: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Draws what `randaugment` does with this seed.

  Returns:
    per layer the index in augment_ops.OPS, int32[N], the argument, float32[N], and the
    center of Cutout, float32[N, 2].
  """
  draws = tf.random.stateless_uniform([num_layers, 4], seed)
  chosen = tf.cast(draws[:, 0] * len(augment_ops.OPS), tf.int32)
  table = [
    _plus_minus(name, magnitude, RANDAUGMENT_LENGTHS) for name in augment_ops.OPS
  ]
  plus, minus = tf.unstack(tf.gather(tf.constant(table, tf.float32), chosen), axis=1)
  return chosen, tf.where(draws[:, 1] < 0.5, plus, minus), draws[:, 2:]


AUGMENTATIONS = {
  'none': lambda: None,
  'autoaugment': lambda: autoaugment,
  'randaugment': lambda *, num_layers, magnitude: functools.partial(
    randaugment, num_layers=num_layers, magnitude=magnitude
  ),
  'color_jitter': lambda *, brightness, contrast, saturation, lighting: (
    functools.partial(
      color_jitter.color_jitter,
      brightness=brightness,
      contrast=contrast,
      saturation=saturation,
      lighting=lighting,
    )
  ),
}


def _switch(branches, index, image, argument):
  calls = [functools.partial(branch, image, argument) for branch in branches]
  result = tf.switch_case(index, calls)
  return tf.ensure_shape(result, image.shape)


def _identity(image, _):
  return image
