"""What belongs to published weights: preprocessing, constants of the norms, licence.

The values of a file do not say it, and with another preprocessing than in the training
a network predicts badly without any error.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from advprop_jax import errors, schema


class Recipe(NamedTuple):
  """What a published set of weights was trained and evaluated with."""

  title: str
  mean: tuple[float, float, float]  # Of pixels in [0, 1].
  std: tuple[float, float, float]
  bn_momentum: float
  bn_epsilon: float
  licence: str
  resize_method: str = 'bicubic_tf1'
  crop_padding: int = 32
  channel_order: str = 'rgb'  # Or 'bgr', that the first convolution expects.
  averaged: bool = True  # Whether the published numbers are of averaged weights.
  attributes: Mapping[str, Any] = {}  # More of the model.
  remark: str = ''  # What cannot be had here as it was there.


# Reason of a choice without a reason, see `choose`.
BY_DEFAULT = 'by default'
_STD = schema.VALUES['model.std']
_CROP_PCT = schema.Range(0.01, 1)
_INPUT_SIZE = schema.Range(1, length=3, integer=True)  # Channels, height, width.
_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Sources: `preprocessing.py` and README of the official code (tensorflow/tpu), README
# and `EfficientNet/`, `ResNet/` of cihangxie/SmoothAdversarialTraining, timm's configs.
RECIPES = {
  'advprop': Recipe(
    'AdvProp', _HALF, _HALF, bn_momentum=0.99, bn_epsilon=1e-3, licence='Apache-2.0'
  ),
  'imagenet': Recipe(
    'EfficientNet on clean images, AutoAugment, RandAugment or Noisy Student',
    _IMAGENET_MEAN,
    _IMAGENET_STD,
    bn_momentum=0.99,
    bn_epsilon=1e-3,
    licence='Apache-2.0',
  ),
  'lite': Recipe(
    'EfficientNet-Lite',
    _HALF,
    _HALF,
    bn_momentum=0.99,
    bn_epsilon=1e-3,
    licence='Apache-2.0',
    remark='evaluated as timm does; the official code has (x - 127) / 128, x in bytes, '
    'and the bilinear interpolation of TensorFlow 1',
  ),
  'sat': Recipe(
    'smooth adversarial training, EfficientNet',
    _HALF,
    _HALF,
    bn_momentum=0.9,
    bn_epsilon=1e-5,
    licence='MIT',
    averaged=False,  # But for L1-Enhanced.
  ),
  'sat_resnet': Recipe(
    'smooth adversarial training, ResNet',
    _HALF,
    _HALF,
    bn_momentum=0.9,
    bn_epsilon=1e-5,
    licence='MIT; its code is derived from code under CC-BY-NC',
    resize_method='bicubic',
    channel_order='bgr',  # Its images are loaded by OpenCV and not turned round.
    averaged=False,
    remark="its images were resized by OpenCV's cubic interpolation, which has "
    'a = -0.75; here a = -0.5: the published accuracy may not be met exactly',
  ),
  'timm_resnet': Recipe(
    "ResNet, PyTorch's",
    _IMAGENET_MEAN,
    _IMAGENET_STD,
    bn_momentum=0.9,
    bn_epsilon=1e-5,
    licence="as the model's page says",
    resize_method='bilinear',
    attributes={'even_pool_padding': True},
  ),
}
# In the name of a file or folder -> the recipe; the name nearest to the file counts.
# Names: the official folders, lukemelas' files and timm's models; of the latter two
# those without a word for it are of clean images.
_HINTS = (
  (r'^adv-efficientnet|^advprop$|[._]ap([._-]|$)', 'advprop'),
  (r'^(ckpts|ckptsaug|randaug|noisystudent)$|^noisy_student|-randaug', 'imagenet'),
  (r'[._](ns|aa|ra)([._-]|$)|\.in1k', 'imagenet'),
  (r'^(tf_)?efficientnet[-_]b\d-[0-9a-f]{8}\.', 'imagenet'),
)
_NUM_PARTS = 3  # Of a path: what lies above says nothing of the weights.
_HUB_CACHE = 'models--'  # But the folders of Hugging Face's cache do.
# Of timm's models those that are ours; others have the same names and shapes and
# another padding, epsilon or pooling.
_TIMM = (
  r'(tf_efficientnet_(b\d|l2|lite\d)|resnet(50|101|152|200)|resnext\d+_32x\dd)(_\w+)?'
)
_TIMM_OTHERS = (
  r'(^|/|--)((pt_)?efficientnet_(b|lite)\d\w*[-.](\w+_in1k|[0-9a-f]{8})'
  r'|resnet(aa|blur|rs|v2)\w*)'
)


def check_architecture(name: str, path: str):
  """Raises UserError for a model of timm that is none of ours.

  Args:
    name: as timm's config.json states it; '': it does not, and the path decides.
    path: of the weights.
  """
  if not name:
    other = re.search(_TIMM_OTHERS, path)
    name = other[2] if other else ''
  if name and not re.fullmatch(_TIMM, name):
    raise errors.UserError(
      f"{path} is timm's {name}, which computes otherwise; allowed: "
      'tf_efficientnet_*, resnet50 and the like, resnext50_32x4d'
    )


def choose(name: str, *, path: str, model: str, naming: str) -> tuple[Recipe, str]:
  """Returns the recipe of a source, and why it is this one.

  Args:
    name: a key of RECIPES, or 'auto'.
    path: of the source.
    model: a key of `models.MODELS`.
    naming: title of the source's naming, see `namings.py`.

  Raises:
    UserError: the name is unknown, or is of other models.
  """
  errors.check_choice('--recipe', name, ['auto', *RECIPES])
  is_resnet = model.startswith('resne')
  if name != 'auto':
    if is_resnet != name.endswith('_resnet'):
      raise errors.UserError(
        f'--recipe={name} is not for {model}; allowed: '
        f'{", ".join(x for x in RECIPES if is_resnet == x.endswith("_resnet"))}'
      )
    return RECIPES[name], 'as asked for'
  if is_resnet:
    name = 'timm_resnet' if naming == 'timm' else 'sat_resnet'
    return RECIPES[name], f'{naming} names'
  if 'lite' in model:
    return RECIPES['lite'], 'the name of the model'
  parts = pathlib.PurePath(path).parts
  cached = [x for x in parts if x.startswith(_HUB_CACHE)]
  for part in reversed([*cached, *parts[-_NUM_PARTS:]]):
    for pattern, name in _HINTS:
      if re.search(pattern, part):
        return RECIPES[name], f'{part!r} in the path'
  return RECIPES['advprop'], BY_DEFAULT


def stated_size(facts: Mapping[str, Any]) -> int | None:
  """Returns the side of images in pixels that timm's config.json states, if it does.

  Args:
    facts: its section 'pretrained_cfg'.

  Raises:
    UserError: it is none, or images are not square.
  """
  if 'input_size' not in facts:
    return None
  stated = facts['input_size']
  size = tuple(stated) if isinstance(stated, list) else stated
  _check('input_size', size, _INPUT_SIZE)
  if size[1] != size[2]:
    raise errors.UserError(
      f"timm's config.json has {stated!r} for input_size; allowed: square images"
    )
  return size[2]


def with_facts(recipe: Recipe, facts: Mapping[str, Any], image_size: int) -> Recipe:
  """Returns a recipe with the values that timm's config.json states, if it does.

  Args:
    recipe: what holds where it states nothing.
    facts: its section 'pretrained_cfg'.
    image_size: S, in pixels.

  Raises:
    UserError: a value is of another type, or out of its range.
  """
  values: dict[str, Any] = {}
  for key, allowed in (('mean', schema.VALUES['model.mean']), ('std', _STD)):
    if key in facts:
      stated = facts[key]
      values[key] = tuple(stated) if isinstance(stated, list) else stated
      _check(key, values[key], allowed)
  if 'crop_pct' in facts:
    _check('crop_pct', facts['crop_pct'], _CROP_PCT)
    # The same part of the shorter side: S / (S + padding).
    values['crop_padding'] = round(image_size * (1 / facts['crop_pct'] - 1))
  method = facts.get('interpolation')
  # The official networks' bicubic is TensorFlow 1's, which timm has not.
  if recipe.resize_method != 'bicubic_tf1' and method in ('bicubic', 'bilinear'):
    values['resize_method'] = method
  if facts.get('license'):
    values['licence'] = str(facts['license'])
  return recipe._replace(**values)


def _check(key: str, value, allowed: schema.Range | schema.Kind):
  if not allowed.allows(value):
    raise errors.UserError(
      f"timm's config.json has {value!r} for {key}; allowed: {allowed}"
    )
