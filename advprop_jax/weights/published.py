"""Published weights as a network: read, checked, and with what belongs to them."""

import collections
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from advprop_jax import branches, errors, model_config, models, schema
from advprop_jax.evaluation import labels
from advprop_jax.models import activations, efficientnet
from advprop_jax.weights import names, namings, readers, recipes
from advprop_jax.workdir import directory

RESNET_IMAGE_SIZE = 224  # Pixels. Source: timm, SmoothAdversarialTraining.
_AVERAGE = '/ExponentialMovingAverage'
_BATCH_SIZE = 100  # Of evaluation: fits into memory, and into ImageNet's 50,000.


class Network(NamedTuple):
  """A published network, read and checked."""

  variables: dict[str, Any]  # {'params', 'norm', 'batch_stats'}, numpy.
  config: schema.Section  # Its sections 'model' and 'data'.
  about: dict[str, Any]  # Where it comes from; JSON values.


def read_network(
  source: str,
  name: str,
  *,
  recipe_name: str = 'auto',
  class_names: tuple[str, ...] | None = None,
  channel_order: str | None = None,
  averaged: bool | None = None,
  activation: str | None = None,
  image_size: int | None = None,
  cast: bool = False,
) -> Network:
  """Reads the weights of a source into a model.

  Args:
    source: see `readers.read`.
    name: of the model, a key of `models.MODELS`.
    recipe_name: a key of `recipes.RECIPES`, or 'auto', see `recipes.choose`.
    class_names: one per logit, in their order; None: ImageNet's 1000.
    channel_order: 'rgb' or 'bgr', that the source expects; None: the recipe's.
    averaged: whether to take averages over the training, of a TensorFlow or `.pth`
      checkpoint that has plain weights, too; None: as the recipe has it, of `.pth`
      files averages.
    activation: name of the network's; None: the model's own, of a ResNet the one in the
      path of the source, or that which the source has parameters of.
    image_size: side of the images in pixels; None: the model's own.
    cast: take values of another type than float32, too.

  Raises:
    UserError: the source cannot be used, and the message says why.
  """
  errors.check_choice('--name', name, models.MODELS)
  if image_size is not None:
    schema.check_section('data', {'image_size': image_size})
  found = readers.read(source, averaged=averaged)
  where = str(found.path)
  bare_model = models.create_model(name)
  naming, prefix = names.find_naming(bare_model, found.arrays, where=where)
  if naming.title in ('timm', 'efficientnet-jax'):  # Which has some of timm's.
    recipes.check_architecture(found.facts.get('architecture', ''), where)
  recipe, reason = recipes.choose(
    recipe_name, path=where, model=name, naming=naming.title
  )
  stated = recipes.stated_size(found.facts) or _size_in_path(name, where)
  size = image_size or stated or _native_size(name)
  if recipe_name == 'auto':
    before, recipe = recipe, recipes.with_facts(recipe, found.facts, size)
    values = zip(recipe._fields, before, recipe, strict=True)
    if changed := [name for name, old, new in values if old != new]:
      reason += f"; {', '.join(changed)} by timm's config.json"
  if stated and not image_size and stated != _native_size(name):
    reason += f'; {stated} px by ' + (
      "timm's config.json" if 'input_size' in found.facts else 'the path'
    )
  if channel_order is not None:
    errors.check_choice('--channel_order', channel_order, ['rgb', 'bgr'])
    recipe = recipe._replace(channel_order=channel_order)
  arrays, without_average = _select_averages(
    found, naming, wanted=averaged, default=recipe.averaged
  )
  if class_names is None:
    class_names = labels.imagenet_synsets()
  elif doubled := [x for x, n in collections.Counter(class_names).items() if n > 1]:
    raise errors.UserError(
      f'--class_names has {doubled[0]!r} more than once; allowed: a name for each class'
    )
  _check_classes(arrays, naming, prefix, class_names, where=where)
  section = _model_section(
    name, recipe, activation or _find_activation(bare_model, arrays, naming, where)
  )
  data = {
    'name': 'imagenet2012',
    'class_names': class_names,
    'image_size': size,
    'crop_padding': recipe.crop_padding,
    'resize_method': recipe.resize_method,
    'eval_batch_size': _BATCH_SIZE,
  }
  config = schema.Section(model=schema.Section(section), data=schema.Section(data))
  # Not `create_model`, which sets JAX's precision: the caller may be about to train.
  model = model_config.create_module(config, num_classes=len(class_names))
  shapes = model_config.abstract_variables(
    config, model, branch_names=(branches.CLEAN,)
  )
  template = branches.variables(**shapes, branch=branches.CLEAN)
  variables = names.fill(
    model, template, arrays, (naming, prefix), where=where, model_name=name
  )
  for path, x in jax.tree_util.tree_leaves_with_path(variables):
    _check_values(jax.tree_util.keystr(path), x, cast=cast, where=where)
  variables = jax.tree.map(lambda x: x.astype(np.float32), variables)
  if recipe.channel_order == 'bgr':  # The same function, of RGB.
    stem = variables['params']['stem_conv']
    stem['kernel'] = np.ascontiguousarray(stem['kernel'][:, :, ::-1])
  about = {
    'files': {x.name: directory.sha256(x) for x in found.files},
    'names': naming.title,
    'recipe': recipe.title,
    'recipe_reason': reason,
    'licence': recipe.licence,
    'channel_order': recipe.channel_order,
    'without_average': without_average,
    'remark': recipe.remark,
  }
  return Network(variables, config, about)


def describe(network: Network) -> str:
  """Returns in a line what was converted, and with which preprocessing."""
  model, data, about = network.config.model, network.config.data, network.about
  return (
    f'{model.name} with {len(data.class_names)} classes; names: {about["names"]}; '
    f'recipe: {about["recipe"]} ({about["recipe_reason"]}); mean {model.mean}, std '
    f'{model.std}, images of {data.image_size} px, crop padding {data.crop_padding}, '
    f'channels {about["channel_order"]}'
  )


def warnings(network: Network):
  """Yields what the user should know of the weights, a line each."""
  if without := network.about['without_average']:
    yield f'no average of {", ".join(without)}: their plain values are taken'
  if network.about['recipe_reason'] == recipes.BY_DEFAULT:
    yield (
      'nothing says what the weights were trained with: the preprocessing is that of '
      'AdvProp. Weights of clean images predict badly with it: convert those again, '
      'with --recipe=imagenet'
    )


def _size_in_path(name: str, where: str) -> int | None:
  """Returns the size in pixels that the path states, if any.

  SAT's ResNets for larger images and Noisy Student's L2 for smaller ones have it.
  """
  if name in efficientnet.VARIANTS and name != 'efficientnet_l2':
    return None
  end = '/'.join(pathlib.PurePath(where).parts[-2:])
  found = re.findall(r'[-_](299|380|475)(?=[-_./]|$)', end)
  return int(found[-1]) if found else None


def _native_size(name: str) -> int:
  if name in efficientnet.VARIANTS:
    return efficientnet.VARIANTS[name].image_size
  return RESNET_IMAGE_SIZE


def _select_averages(
  source: readers.Source,
  naming: namings.Naming,
  *,
  wanted: bool | None,
  default: bool,
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the variables to use, by their plain names, and which have no average."""
  arrays = source.arrays
  plain = {x: y for x, y in arrays.items() if not x.endswith(_AVERAGE)}
  averages = {
    x.removesuffix(_AVERAGE): y for x, y in arrays.items() if x.endswith(_AVERAGE)
  }
  if wanted and not averages and not source.are_averages:
    raise errors.UserError(
      f'{source.path} has no averages; allowed: without --averaged, its plain weights'
    )
  if wanted is False and source.are_averages:
    raise errors.UserError(
      f'{source.path} has averages alone; allowed: without --no-averaged'
    )
  if not averages or not (default if wanted is None else wanted):
    return plain, []
  without = sorted(x for x in plain.keys() - averages if not naming.is_unused(x))
  return plain | averages, without


def _check_classes(arrays, naming, prefix, class_names, *, where: str):
  """Raises UserError unless the source has a logit for each class."""
  bias = arrays.get(prefix + naming.value_name('classifier', 'params/bias'))
  if bias is not None and bias.shape != (len(class_names),):
    raise errors.UserError(
      f'{where} has {bias.size} classes; expected: {len(class_names)}; allowed: '
      "ImageNet's 1000, or --class_names=FILE with the name of each, one a line"
    )


def _find_activation(model, arrays, naming: namings.Naming, where: str) -> str:
  """Returns the name of the activation that a source was trained with.

  Raises:
    UserError: nothing says it.
  """
  if isinstance(model, efficientnet.EfficientNet):
    return model.activation
  if any(x.endswith('smoothrelu_beta') for x in arrays):
    return 'smooth_relu'
  if naming.torch_layout:
    return activations.RELU
  stems = pathlib.PurePath(where.lower()).parts[-2:]  # 'Res50-silu/model-100'.
  for word in [x for stem in stems for x in stem.replace('_', '-').split('-')]:
    if word in activations.ACTIVATIONS:
      return word
  raise errors.UserError(
    f'nothing says which activation {where} was trained with; allowed: '
    f'--activation={" or ".join(activations.ACTIVATIONS)}'
  )


def _model_section(name: str, recipe: recipes.Recipe, activation: str) -> dict:
  """Returns the section `model` of the config, with all keys of configs/default.py."""
  section: dict[str, Any] = {'name': name}
  if name in efficientnet.VARIANTS:
    section['drop_connect_rate'] = 0.2  # Source: the official code, for every size.
  else:
    section['even_pool_padding'] = False
  return section | {
    'activation': activation,
    'smooth_backward': 'none',
    'mean': recipe.mean,
    'std': recipe.std,
    'dtype': 'float32',
    'remat_blocks': False,
    'cpu_kernels': True,
    'bn_momentum': recipe.bn_momentum,
    'bn_epsilon': recipe.bn_epsilon,
    'bn_scope': 'device',
    **recipe.attributes,
  }


def _check_values(name: str, x: np.ndarray, *, cast: bool, where: str):
  """Raises UserError for values that no trained network has."""
  if x.dtype != np.float32 and not cast:
    raise errors.UserError(
      f'{where} is {x.dtype} at {name}; expected: float32, which the published numbers '
      'are of; allowed: the float32 weights, or --cast to take these'
    )
  x = x.astype(np.float32)
  if not np.isfinite(x).all():
    raise errors.UserError(
      f'{where} is damaged: {name} is not finite; allowed: a whole file'
    )
  if name.endswith("['var']") and (x < 0).any():
    raise errors.UserError(
      f'{where} is damaged: the variance {name} is {x.min()}; allowed: 0 or more'
    )
