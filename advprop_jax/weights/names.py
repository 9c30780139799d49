"""From published names and layouts to ours, and back; see `namings.py`."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from advprop_jax import errors
from advprop_jax.weights.namings import NAMINGS, Naming

NUM_LISTED = 5  # So many names of a kind stand in a message.


def find_naming(
  model: nn.Module, arrays: Mapping[str, Any], *, where: str
) -> tuple[Naming, str]:
  """Returns the naming of a source's variables, and what stands before every name.

  The latter is the scope of a TensorFlow graph, 'efficientnet-b0/', or what PyTorch's
  wrappers put there, 'module.'.

  Args:
    model: the network that is to be filled.
    arrays: the variables of the source, by name.
    where: the source, for the message.

  Raises:
    UserError: the names are of none of the model's namings.
  """
  namings = NAMINGS[type(model)]
  found = []
  for naming in namings:
    stem = naming.value_name('stem_conv', 'params/kernel')
    for name in arrays:
      prefix = name.removesuffix(stem)
      if prefix != name and (not prefix or prefix.endswith(naming.separator)):
        found.append((len(prefix), naming, prefix))
  if not found:
    known = ', '.join(f'{x.example} ({x.title})' for x in namings)
    raise errors.UserError(
      f'{where} holds no {type(model).__name__} under a known name; found: '
      f'{_listed(arrays)}; allowed: weights with names like {known}'
    )
  _, naming, prefix = min(found, key=lambda x: x[0])
  return naming, prefix


def source_names(
  model: nn.Module, template: Mapping[str, Any], naming: Naming
) -> dict[tuple[str, ...], str]:
  """Returns {path of a value in `template`: the source's name of it}.

  Args:
    model: the network.
    template: what `model.init` returns, arrays or their shapes.
    naming: the source's.
  """
  blocks = dict(_blocks(model))
  result = {}
  for path in traverse_util.flatten_dict(template):
    collection, *layers, value = path
    block = blocks.get(layers[0])
    if block is None:
      table, place = naming.layers, ''
    else:
      table = naming.block_layers
      if block['plain'] and naming.plain_block_layers is not None:
        table = naming.plain_block_layers
      place = naming.block.format(**block)
      layers = layers[1:]
    layer = '/'.join(layers)
    names = [place, table.get(f'{layer}/{value}', table.get(layer, layer))]
    value_name = naming.values.get(
      f'{layer}/{value}', naming.values.get(f'{collection}/{value}', value)
    )
    result[path] = naming.separator.join(x for x in [*names, value_name] if x)
  return result


def fill(
  model: nn.Module,
  template: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  found: tuple[Naming, str],
  *,
  where: str,
  model_name: str,
) -> dict[str, Any]:
  """Returns the variables of a model, filled from a source, in the source's types.

  Every value is filled exactly once, and every variable of the source is used, or on
  the naming's list of those that no network consists of.

  Args:
    model: the network.
    template: shapes and types of what `model.init` returns.
    arrays: the source's variables, by name.
    found: their naming and what stands before their names, see `find_naming`.
    where: the source, for messages.
    model_name: of the network, for messages.

  Raises:
    UserError: values are missing, left over or of another shape.
  """
  naming, prefix = found
  names = {
    path: prefix + name for path, name in source_names(model, template, naming).items()
  }
  shapes = traverse_util.flatten_dict(template)
  missing, wrong, values = [], [], {}
  for path, name in names.items():
    expected = tuple(shapes[path].shape)
    if name not in arrays:
      missing.append(f'{name} {_source_shape(path, expected, naming)}')
      continue
    value = to_flax(arrays[name], path, naming)
    if value.shape != expected:
      allowed = _source_shape(path, expected, naming)
      wrong.append(f'{name} {tuple(arrays[name].shape)} instead of {allowed}')
    values[path] = value
  used = set(names.values())
  left = [
    f'{name} {tuple(x.shape)}'
    for name, x in arrays.items()
    if name not in used and not naming.is_unused(name)
  ]
  if missing or left or wrong:
    parts = [('missing', missing), ('left over', left), ('of another shape', wrong)]
    listed = '; '.join(f'{len(x)} {what}: {_listed(x)}' for what, x in parts if x)
    raise errors.UserError(
      f'{where} ({naming.title} names) does not hold the weights of {model_name}: '
      f'{listed}; allowed: exactly its {len(names)} variables'
    )
  return traverse_util.unflatten_dict(values)


def to_flax(x: np.ndarray, path: tuple[str, ...], naming: Naming) -> np.ndarray:
  """Returns a value of a source in Flax's layout, in memory of its own.

  Args:
    x: the value.
    path: ours of it, ('params', 'blocks_0', 'depthwise_conv', 'kernel').
    naming: the source's.
  """
  return np.ascontiguousarray(x.transpose(_axes(x.ndim, path, naming)))


def to_source(x: np.ndarray, path: tuple[str, ...], naming: Naming) -> np.ndarray:
  """Returns a value of ours in a source's layout; the inverse of `to_flax`."""
  axes = np.argsort(_axes(x.ndim, path, naming))
  return np.ascontiguousarray(x.transpose(axes))


def _axes(ndim: int, path, naming: Naming) -> tuple[int, ...]:
  if path[-1] == 'kernel':
    if naming.torch_layout:
      return (2, 3, 1, 0) if ndim == 4 else tuple(reversed(range(ndim)))
    if path[-2] == 'depthwise_conv' and ndim == 4:
      return (0, 1, 3, 2)  # TensorFlow's is [k, k, in, 1].
  return tuple(range(ndim))


def _source_shape(path, shape: tuple[int, ...], naming: Naming) -> tuple[int, ...]:
  axes = np.argsort(_axes(len(shape), path, naming))
  return tuple(shape[i] for i in axes)


def _blocks(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields every block's name of ours, and what its name elsewhere is made of."""
  index = 0
  for stage, repeats in enumerate(model.stage_sizes):
    stages = getattr(model, 'stages', ())
    for repeat in range(repeats):
      yield (
        f'blocks_{index}',
        {
          'index': index,
          'stage': stage,
          'stage_from_1': stage + 1,
          'repeat': repeat,
          'plain': bool(stages) and stages[stage].expand_ratio == 1,
        },
      )
      index += 1


def _listed(names) -> str:
  names = list(names)
  rest = ', ...' if len(names) > NUM_LISTED else ''
  return ', '.join(names[:NUM_LISTED]) + rest
