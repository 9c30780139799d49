r"""Makes an ordinary workdir of published weights.

  python -m advprop_jax.weights.convert --source=efficientnet-b0 \
      --name=efficientnet_b0 --workdir=runs/b0_advprop

The workdir has a checkpoint of step 0 with the one branch 'clean', a config with the
preprocessing that belongs to the weights, and a model card. It is evaluated, loaded,
exported and started from as a run of one's own.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from advprop_jax import branches, errors, model_config, models, schema
from advprop_jax.evaluation import labels
from advprop_jax.models import activations, efficientnet
from advprop_jax.weights import card, names, namings, readers, recipes
from advprop_jax.workdir import checkpoint, directory

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
    averaged: whether to take the averages of a TensorFlow checkpoint; None: as the
      recipe has it.
    activation: name of the network's; None: the model's own, of a ResNet the one in the
      path of the source, or that which the source has parameters of.
    image_size: side of the images in pixels; None: the model's own.
    cast: take values of another type than float32, too.

  Raises:
    UserError: the source cannot be used, and the message says why.
  """
  errors.check_choice('--name', name, models.MODELS)
  found = readers.read(source)
  where = str(found.path)
  bare_model = models.create_model(name)
  naming, prefix = names.find_naming(bare_model, found.arrays, where=where)
  if naming.title == 'timm':
    recipes.check_architecture(found.facts.get('architecture', ''), where)
  recipe, reason = recipes.choose(
    recipe_name, path=where, model=name, naming=naming.title
  )
  size = image_size or _stated_size(found.facts, where) or _native_size(name)
  recipe = recipes.with_facts(recipe, found.facts, size)
  if 'mean' in found.facts:
    reason += "; preprocessing by timm's config.json"
  if channel_order is not None:
    errors.check_choice('--channel_order', channel_order, ['rgb', 'bgr'])
    recipe = recipe._replace(channel_order=channel_order)
  arrays, without_average = _select_averages(
    found.arrays, naming, wanted=averaged, default=recipe.averaged, where=where
  )
  if class_names is None:
    class_names = labels.imagenet_synsets()
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
  model = model_config.create_model(config, num_classes=len(class_names))
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
  }
  return Network(variables, config, about)


def convert(source: str, name: str, workdir: str, **options) -> Network:
  """Writes a workdir that holds the weights of a source.

  Args:
    source: see `readers.read`.
    name: of the model, a key of `models.MODELS`.
    workdir: local directory that does not exist or is empty.
    **options: see `read_network`.

  Returns:
    What was converted.

  Raises:
    UserError: the source cannot be used, or the workdir; then there is no workdir.
  """
  with directory.new_directory(workdir, flag='--workdir') as path:
    network = read_network(source, name, **options)
    parts = {
      'params': network.variables['params'],
      'norms': {branches.CLEAN: network.variables['norm']},
      'batch_stats': {branches.CLEAN: network.variables['batch_stats']},
    }
    with checkpoint.Checkpointer(path / 'checkpoints') as checkpointer:
      checkpointer.save(
        0,
        {'model': jax.tree.map(jnp.asarray, parts)},
        config=network.config,
        examples_seen=0,
        fingerprint={},
      )
    directory.write_config(path, network.config)
    (path / card.ORIGIN).write_text(json.dumps(network.about, indent=2) + '\n')
    card.write_card(path, workdir=path)
  for warning in warnings(network):
    logging.warning('%s', warning)
  return network


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


def _stated_size(facts: Mapping[str, Any], where: str) -> int | None:
  """Returns the size in pixels that timm's config.json or the path states, if any."""
  if 'input_size' in facts:
    return int(facts['input_size'][-1])
  # SAT's ResNets for larger images, Noisy Student's L2 for smaller ones.
  found = re.findall(
    r'[-_](299|380|475)(?![0-9])', '/'.join(pathlib.PurePath(where).parts[-2:])
  )
  return int(found[-1]) if found else None


def _native_size(name: str) -> int:
  if name in efficientnet.VARIANTS:
    return efficientnet.VARIANTS[name].image_size
  return RESNET_IMAGE_SIZE


def _select_averages(
  arrays: Mapping[str, np.ndarray],
  naming: namings.Naming,
  *,
  wanted: bool | None,
  default: bool,
  where: str,
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the variables to use, by their plain names, and which have no average."""
  plain = {x: y for x, y in arrays.items() if not x.endswith(_AVERAGE)}
  averages = {
    x.removesuffix(_AVERAGE): y for x, y in arrays.items() if x.endswith(_AVERAGE)
  }
  if wanted and not averages:
    raise errors.UserError(
      f'{where} has no averages; allowed: without --averaged, its weights as they are'
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


def _parse(argv) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.weights.convert',
    description='Makes a workdir of published weights, which are local files.',
  )
  parser.add_argument('--source', required=True, help='Folder or file of the weights.')
  parser.add_argument(
    '--name', required=True, help='Of the model: efficientnet_b0, resnet_50, ...'
  )
  parser.add_argument('--workdir', required=True, help='Made; must not exist.')
  parser.add_argument(
    '--recipe',
    default='auto',
    dest='recipe_name',
    help='What they were trained with, which decides about the preprocessing: '
    f'{", ".join(recipes.RECIPES)}. Default: what path and names say, or advprop.',
  )
  parser.add_argument(
    '--class_names',
    type=pathlib.Path,
    help="A file, one name a line, in the order of the logits. Default: ImageNet's.",
  )
  parser.add_argument('--image_size', type=int, help="Pixels; default: the model's.")
  parser.add_argument('--activation', help='Default: what the source says, or ReLU.')
  parser.add_argument(
    '--channel_order', help='rgb or bgr, that the weights expect. Default: the recipe.'
  )
  parser.add_argument(
    '--averaged',
    action=argparse.BooleanOptionalAction,
    help='Take the averages of a TensorFlow checkpoint. Default: the recipe.',
  )
  parser.add_argument(
    '--cast', action='store_true', help='Take values that are not float32, too.'
  )
  return parser.parse_args(argv)


def main(argv=None):
  """Runs the command; ends the process with one line if the input is at fault."""
  options = vars(_parse(argv))
  try:
    if options['class_names'] is not None:
      options['class_names'] = _read_lines(options['class_names'])
    network = convert(**options)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  print(f'{options["workdir"]} holds {describe(network)}')


def _read_lines(path: pathlib.Path) -> tuple[str, ...]:
  try:
    return tuple(x for x in path.read_text().splitlines() if x)
  except (OSError, UnicodeDecodeError) as e:
    raise errors.UserError(
      f'--class_names {path} cannot be read: {e}; allowed: a text file, one name a line'
    ) from e


if __name__ == '__main__':
  main()
