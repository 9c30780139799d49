"""The network efficientnet_tiny in PyTorch, for evaluation: a peer of ours.

Written as PyTorch's users write it, with its own layers, eager, channels_last; only the
padding is TensorFlow's. Its weights are those of tests/data/<config>.npz.
"""

import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# Kernel size and stride of the depthwise convolution of every block.
BLOCKS = ((3, 1), (3, 2), (3, 1), (5, 2))
BN_EPSILON = 1e-3  # Source: the official code of EfficientNet.


class SameConv(nn.Conv2d):
  """A convolution with TensorFlow's 'SAME' padding: an odd one has more at the end."""

  def forward(self, x):
    padding = []
    for size, k, stride in zip(
      reversed(x.shape[2:]), self.kernel_size, self.stride, strict=True
    ):
      total = max((-(-size // stride) - 1) * stride + k - size, 0)
      padding += [total // 2, total - total // 2]
    return super().forward(functional.pad(x, padding) if any(padding) else x)


class MBConv(nn.Module):
  """An inverted bottleneck with squeeze-excite; `weights` says what is in it."""

  def __init__(self, weights: dict, kernel_size: int, stride: int):
    super().__init__()
    self.stride = stride
    self.expand_conv = None
    if 'expand_conv/kernel' in weights:
      self.expand_conv = _conv(weights, 'expand_conv')
      self.expand_bn = _norm(weights, 'expand_bn')
    self.depthwise_conv = _conv(
      weights, 'depthwise_conv', kernel_size, stride, is_depthwise=True
    )
    self.depthwise_bn = _norm(weights, 'depthwise_bn')
    self.se_reduce = _conv(weights, 'se_reduce')
    self.se_expand = _conv(weights, 'se_expand')
    self.project_conv = _conv(weights, 'project_conv')
    self.project_bn = _norm(weights, 'project_bn')

  def forward(self, x):
    shortcut = x
    if self.expand_conv is not None:
      x = functional.silu(self.expand_bn(self.expand_conv(x)))
    x = functional.silu(self.depthwise_bn(self.depthwise_conv(x)))
    gate = functional.silu(self.se_reduce(x.mean((2, 3), keepdim=True)))
    x = x * torch.sigmoid(self.se_expand(gate))
    x = self.project_bn(self.project_conv(x))
    has_shortcut = self.stride == 1 and x.shape == shortcut.shape
    return x + shortcut if has_shortcut else x


class EfficientNetTiny(nn.Module):
  """Images in [0, 1], float32 [B, 3, H, W], to logits, float32 [B, K]."""

  def __init__(self, weights: dict):
    super().__init__()
    self.stem_conv = _conv(weights, 'stem_conv', 3, 2)
    self.stem_bn = _norm(weights, 'stem_bn')
    self.blocks = nn.Sequential(
      *(MBConv(_part(weights, f'blocks_{i}'), *x) for i, x in enumerate(BLOCKS))
    )
    self.head_conv = _conv(weights, 'head_conv')
    self.head_bn = _norm(weights, 'head_bn')
    kernel = weights['classifier/kernel']
    self.classifier = nn.Linear(*kernel.shape)
    _set(self.classifier.weight, kernel.T)
    _set(self.classifier.bias, weights['classifier/bias'])

  def forward(self, image):
    x = image.contiguous(memory_format=torch.channels_last)
    x = (x - 0.5) / 0.5
    x = functional.silu(self.stem_bn(self.stem_conv(x)))
    x = self.blocks(x)
    x = functional.silu(self.head_bn(self.head_conv(x)))
    return self.classifier(x.mean((2, 3)))


def load(path) -> EfficientNetTiny:
  """Returns a network to be evaluated and attacked, on all cores of the CPU.

  Args:
    path: of an archive of NumPy, {collection/layer/name: values}, with the collections
      'params', 'norm' and 'batch_stats' of efficientnet_tiny.
  """
  torch.set_num_threads(os.cpu_count() or 1)
  with np.load(path) as file:
    # Names of layers are the same in all collections, names of values are not.
    weights = {key.split('/', 1)[1]: file[key] for key in file.files}
  network = EfficientNetTiny(weights).eval().requires_grad_(False)
  return network.to(memory_format=torch.channels_last)


def _part(weights: dict, name: str) -> dict:
  """Returns the weights of a block, by their names in it."""
  prefix = f'{name}/'
  return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _conv(weights, name, kernel_size=1, stride=1, *, is_depthwise=False):
  kernel = weights[f'{name}/kernel']  # [k, k, in / groups, out]
  height, _, inputs, outputs = kernel.shape
  assert height == kernel_size, (name, kernel.shape)
  groups = outputs if is_depthwise else 1
  bias = weights.get(f'{name}/bias')
  conv = SameConv(
    inputs * groups, outputs, kernel_size, stride, groups=groups, bias=bias is not None
  )
  _set(conv.weight, kernel.transpose(3, 2, 0, 1))
  if bias is not None:
    _set(conv.bias, bias)
  return conv


def _norm(weights, name):
  mean = weights[f'{name}/mean']
  norm = nn.BatchNorm2d(len(mean), eps=BN_EPSILON)
  _set(norm.running_mean, mean)
  _set(norm.running_var, weights[f'{name}/var'])
  _set(norm.weight, weights[f'{name}/scale'])
  _set(norm.bias, weights[f'{name}/bias'])
  return norm


def _set(parameter, values: np.ndarray):
  """Fills a parameter; other shapes are an error."""
  assert parameter.shape == values.shape, (parameter.shape, values.shape)
  with torch.no_grad():
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
