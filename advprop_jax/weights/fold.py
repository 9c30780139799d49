"""A network without norms: each is put into the convolution before it.

Inference alone: with running statistics a norm is a multiplication and an addition for
each channel, so that the kernel takes the one and a bias the other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from advprop_jax.models import norm


def fold_norms(
  variables: Mapping[str, Any], *, bn_epsilon: float
) -> tuple[dict[str, Any], dict[tuple[str, ...], np.ndarray]]:
  """Returns the params with other kernels, and the bias that each norm becomes.

  Args:
    variables: {'params', 'norm', 'batch_stats'} of one branch.
    bn_epsilon: what the norms add to the variance.

  Returns:
    Params like those given; and {path of a norm, ('blocks_0', 'expand_bn'): float32
    [C]}. Every norm follows the convolution of its name, 'expand_conv'.
  """
  params = traverse_util.flatten_dict(variables['params'])
  norms = traverse_util.flatten_dict(variables['norm'])
  stats = traverse_util.flatten_dict(variables['batch_stats'])
  biases = {}
  for path in {path[:-1] for path in norms}:
    # In double precision: rounded once, at the end.
    scale, bias, mean, var = (
      np.asarray(values[(*path, name)], np.float64)
      for values, name in (
        *((norms, name) for name in ('scale', 'bias')),
        *((stats, name) for name in ('mean', 'var')),
      )
    )
    multiplier = scale / np.sqrt(var + bn_epsilon)
    kernel = (*path[:-1], path[-1].replace('bn', 'conv'), 'kernel')
    params[kernel] = (np.asarray(params[kernel]) * multiplier).astype(np.float32)
    biases[path] = (bias - mean * multiplier).astype(np.float32)
  return traverse_util.unflatten_dict(params), biases


def apply_folded(
  module: nn.Module, params, biases: Mapping[tuple[str, ...], Any]
) -> Callable[[jax.Array], jax.Array]:
  """Returns the function of images that the module is with folded norms.

  Args:
    module: maps images to logits.
    params: with the kernels of `fold_norms`.
    biases: likewise.
  """

  def add_bias(call, args, kwargs, context):
    layer = context.module
    if not isinstance(layer, norm.BatchNorm) or context.method_name != '__call__':
      return call(*args, **kwargs)
    (x,) = args
    y = x.astype(jnp.float32) + biases[layer.path]
    return layer.activation.function(y, *layer.activation.parameters(layer)).astype(
      x.dtype
    )

  def apply(image):
    with nn.intercept_methods(add_bias):
      return module.apply({'params': params}, image, train=False)

  return apply
