"""The formats that networks are exported in: a table, and the functions that write.

Each gets a directory, the network and what metadata.json will hold.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import export as jax_export

from advprop_jax import errors, pixels
from advprop_jax.weights import classifier, fold, names, namings, preprocess
from advprop_jax.workdir import directory

PLATFORMS = ('cpu', 'cuda', 'tpu')
_MIN_SIZE = 32  # Pixels, of all models.


def create_function(
  model: classifier.Classifier, *, fold_norms: bool, with_preprocessing: bool
) -> Callable[[jax.Array], jax.Array]:
  """Returns the function of images that is exported; its weights are constants."""
  if fold_norms:
    params, biases = fold.fold_norms(
      model.variables, bn_epsilon=model.config.model.bn_epsilon
    )
    apply_plain = fold.apply_folded(model.module, params, biases)

    def apply(image):
      with model.precision():
        return apply_plain(image)
  else:
    apply = functools.partial(model.apply, jax.tree.map(np.asarray, model.variables))

  if not with_preprocessing:
    return apply
  data = model.config.data

  def apply_to_bytes(image):
    image = preprocess.preprocess(
      image,
      image_size=data.image_size,
      crop_padding=data.crop_padding,
      resize_method=data.resize_method,
    )
    return apply(pixels.to_unit(image))

  return apply_to_bytes


def _function(model, about):
  return create_function(
    model,
    fold_norms=about['norms']['folded'],
    with_preprocessing=about['preprocessing']['inside'],
  )


def write_stablehlo(
  path: pathlib.Path, model: classifier.Classifier, about: dict[str, Any]
):
  """Writes model.stablehlo, one file for PLATFORMS, as `jax.export` reads it.

  Chosen for being in JAX, with promises of compatibility. An older JAX cannot always
  read what a newer one wrote: export with the oldest version that must read the file.
  """
  dtype = jnp.dtype(about['input']['dtype'])
  low = 1 if about['preprocessing']['inside'] else _MIN_SIZE
  shape = jax_export.symbolic_shape(
    'batch, height, width, 3', constraints=[f'height >= {low}', f'width >= {low}']
  )
  function = jax.jit(_function(model, about))
  exported = jax_export.export(function, platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(shape, dtype)
  )
  (path / 'model.stablehlo').write_bytes(exported.serialize())


def write_savedmodel(
  path: pathlib.Path, model: classifier.Classifier, about: dict[str, Any]
):
  """Writes saved_model.pb and the like, whose signature maps 'image' to 'logits'.

  Through jax2tf, which is in JAX, and TensorFlow, which reads the training images.
  """
  try:
    import tensorflow as tf
  except ImportError as e:
    raise errors.UserError(
      'a SavedModel is written by TensorFlow, which is not installed; allowed: pip '
      "install '.[export]', or --format=stablehlo"
    ) from e
  from jax.experimental import jax2tf

  low = 1 if about['preprocessing']['inside'] else _MIN_SIZE
  convert = jax2tf.convert(
    _function(model, about),
    polymorphic_shapes=['(batch, height, width, 3)'],
    polymorphic_constraints=[f'height >= {low}', f'width >= {low}'],
    native_serialization_platforms=PLATFORMS,
    with_gradient=False,
  )
  spec = tf.TensorSpec((None, None, None, 3), about['input']['dtype'], name='image')
  module = tf.Module()
  module.__call__ = tf.function(convert, input_signature=[spec], autograph=False)
  logits = tf.function(
    lambda image: {'logits': module.__call__(image)}, input_signature=[spec]
  )
  tf.saved_model.save(module, str(path), signatures=logits)


def write_safetensors(
  path: pathlib.Path, model: classifier.Classifier, about: dict[str, Any]
):
  """Writes model.safetensors, with the metadata in its header.

  Names and layouts are timm's, which reads them as 'tf_efficientnet_b0' or 'resnet50',
  if it can compute the network. Else they are ours,
  'params/blocks_0/expand_conv/kernel', in Flax's layout; without norms
  'blocks_0/expand_conv/kernel' and '.../bias'. Chosen for being what weights are shared
  in.
  """
  if about['norms']['folded']:
    params, biases = fold.fold_norms(
      model.variables, bn_epsilon=model.config.model.bn_epsilon
    )
    tensors = {'/'.join(x): y for x, y in traverse_util.flatten_dict(params).items()}
    for layer, bias in biases.items():
      tensors['/'.join(layer).replace('bn', 'conv') + '/bias'] = bias
  elif about['names'] == 'advprop_jax':
    values = traverse_util.flatten_dict(model.variables)
    tensors = {'/'.join(x): y for x, y in values.items()}
  else:
    naming = namings.TIMM[type(model.module)]
    found = names.source_names(model.module, model.variables, naming)
    values = traverse_util.flatten_dict(model.variables)
    tensors = {
      name: names.to_source(np.asarray(values[x]), x, naming)
      for x, name in found.items()
    }
  tensors = {name: np.asarray(x, order='C') for name, x in tensors.items()}
  file = path / 'model.safetensors'
  safetensors.numpy.save_file(tensors, file, {'advprop_jax': json.dumps(about)})
  file.chmod(directory.usual_mode(0o666))  # It is written for its owner alone.


# Name of --format -> function (directory, model, metadata) that writes into it.
FORMATS: dict[
  str, Callable[[pathlib.Path, classifier.Classifier, dict[str, Any]], None]
] = {
  'stablehlo': write_stablehlo,
  'savedmodel': write_savedmodel,
  'safetensors': write_safetensors,
}
