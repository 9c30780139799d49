"""Convolutions as dots and sums, for XLA's CPU backend.

That backend runs a grouped convolution channel by channel and computes its weight
gradient as a dense one, ten times the arithmetic: EfficientNet is an order of magnitude
slower than it need be. Here the same sums are written as what it is fast at, loops over
contiguous channels that LLVM vectorises, and dots:

  depthwise  k x k, one filter per channel, any stride
  pointwise  1 x 1, stride 1
  patches    k x k, of few input channels (the stem), also called im2col

Each kind is three functions of x [B, H, W, C_in] and kernel [k, k, C_in / groups,
C_out], with TensorFlow's 'SAME' padding and sums in float32:

  *_forward(x, kernel, stride)         y, [B, ceil(H / stride), ceil(W / stride), C_out]
  *_image_grad(kernel, g, x, stride)   the gradient to x, from g, that to y
  *_kernel_grad(x, g, kernel, stride)  the gradient to the kernel

Of the array that is differentiated only the shape and the type are read. Measurements:
benchmarks/README.md.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from advprop_jax.models.cpu.no_inline import no_inline

# Products that one weight-gradient loop sums in registers: rows x taps. LLVM unrolls,
# and so vectorises, the loop up to about a hundred. Measured, like the two below.
MAX_ROWS = 8
MIN_ROWS = 5
MAX_TAPS = 13


# Geometry, of one spatial dimension.


def _out_size(size: int, stride: int) -> int:
  return -(-size // stride)


def _out_shape(x, stride: int) -> tuple[int, int]:
  return _out_size(x.shape[1], stride), _out_size(x.shape[2], stride)


def _pad_before(size: int, kernel_size: int, stride: int) -> int:
  """Returns what 'SAME' puts before: half of what is missing, rounded down."""
  missing = (_out_size(size, stride) - 1) * stride + kernel_size - size
  return max(missing, 0) // 2


def _pad(x, kernel_size, stride, out_rows=None):
  """Returns x with zeros around, as far as the windows of the output reach.

  Args:
    x: [B, H, W, C].
    kernel_size: of the convolution.
    stride: of the convolution.
    out_rows: rows of the output, where they are more than ceil(H / stride).
  """
  pads = [(0, 0)]
  for size, out in zip(x.shape[1:3], (out_rows, None), strict=True):
    before = _pad_before(size, kernel_size, stride)
    end = ((out or _out_size(size, stride)) - 1) * stride + kernel_size
    pads.append((before, max(end - before - size, 0)))
  return jnp.pad(x, [*pads, (0, 0)])


def _tap(padded, i, j, out_shape, stride):
  """Returns what kernel element (i, j) meets, one pixel per output: [B, *out, C]."""
  rows, columns = out_shape
  return lax.slice(
    padded,
    (0, i, j, 0),
    (
      padded.shape[0],
      i + (rows - 1) * stride + 1,
      j + (columns - 1) * stride + 1,
      padded.shape[3],
    ),
    (1, stride, stride, 1),
  )


# Depthwise: per channel, so every product is of whole images with a vector.


def _row_runs(rows: int) -> tuple[int, int]:
  """Returns (runs, rows of a run) that cover the rows with the fewest to spare."""
  if rows <= MAX_ROWS:
    return 1, rows
  length = min(
    range(MIN_ROWS, MAX_ROWS + 1), key=lambda n: (_out_size(rows, n) * n, -n)
  )
  return _out_size(rows, length), length


@functools.partial(no_inline, static_argnames=('stride',))
def depthwise_forward(x, kernel, stride):
  """Sums shifted images, each times one kernel element: one loop, no copies."""
  kernel_size = kernel.shape[0]
  out_shape = _out_shape(x, stride)
  padded = _pad(x, kernel_size, stride).astype(jnp.float32)
  kernel = kernel.astype(jnp.float32)
  y = 0.0
  for i in range(kernel_size):
    for j in range(kernel_size):
      y += _tap(padded, i, j, out_shape, stride) * kernel[i, j, 0]
  return jnp.asarray(y, x.dtype)


def depthwise_image_grad(kernel, g, x, stride):
  """Computes the stride x stride phases of the gradient apart, then interleaves them.

  Pixels of one phase meet the same kernel elements, so a phase is a sum of shifted
  gradients, and no dilated gradient, three quarters of it zeros, is ever made.
  """
  kernel_size = kernel.shape[0]
  batch, height, width, channels = x.shape
  before = [_pad_before(size, kernel_size, stride) for size in (height, width)]
  # Rows and columns of a phase; they begin at the padding's first pixel.
  rows, columns = (
    _out_size(size + pad, stride)
    for size, pad in zip((height, width), before, strict=True)
  )
  reach = (kernel_size - 1) // stride
  padded = jnp.pad(
    g,
    (
      (0, 0),
      (reach, max(0, rows - g.shape[1])),
      (reach, max(0, columns - g.shape[2])),
      (0, 0),
    ),
  ).astype(jnp.float32)
  kernel = kernel.astype(jnp.float32)

  def phase(row, column):
    y = 0.0
    for i in range(row, kernel_size, stride):
      for j in range(column, kernel_size, stride):
        top, left = reach - i // stride, reach - j // stride
        y += padded[:, top : top + rows, left : left + columns] * kernel[i, j, 0]
    return jnp.broadcast_to(y, (batch, rows, columns, channels)).astype(x.dtype)

  phases = [
    jnp.stack([phase(row, column) for column in range(stride)], axis=3)
    for row in range(stride)
  ]
  y = jnp.stack(phases, axis=2).reshape(
    batch, rows * stride, columns * stride, channels
  )
  return y[:, before[0] : before[0] + height, before[1] : before[1] + width]


def _add_each(a, b):
  return [x + y for x, y in zip(a, b, strict=True)]


def depthwise_kernel_grad(x, g, kernel, stride):
  """Sums a few rows at a time for several taps in one loop, then sums the sums.

  One sum per tap passes over memory k * k times; one loop over everything is not
  vectorised. So 5 to 8 rows and up to 13 taps are one loop, which LLVM unrolls over the
  rows and vectorises over the channels. Measured: benchmarks/README.md.
  """
  kernel_size = kernel.shape[0]
  batch, _, columns, channels = g.shape
  runs, length = _row_runs(g.shape[1])
  padded = _pad(x, kernel_size, stride, out_rows=runs * length).astype(jnp.float32)
  g = jnp.pad(g, ((0, 0), (0, runs * length - g.shape[1]), (0, 0), (0, 0)))
  g = g.astype(jnp.float32)
  shape = (batch, runs, length, columns, channels)

  taps = [(i, j) for i in range(kernel_size) for j in range(kernel_size)]
  sums = []
  for first in range(0, len(taps), MAX_TAPS):
    products = [
      (_tap(padded, i, j, g.shape[1:3], stride) * g).reshape(shape)
      for i, j in taps[first : first + MAX_TAPS]
    ]
    sums += lax.reduce(
      products,
      [jnp.float32(0)] * len(products),
      _add_each,
      dimensions=(2,),
    )
  grad = jnp.stack([x.sum(axis=(0, 1, 2)) for x in sums])
  return grad.reshape(kernel.shape).astype(kernel.dtype)


# Pointwise: a dot over all pixels.


def pointwise_forward(x, kernel, stride):
  del stride
  y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


def pointwise_image_grad(kernel, g, x, stride):
  del stride
  return (g.reshape(-1, g.shape[-1]) @ kernel[0, 0].T).reshape(x.shape)


def pointwise_kernel_grad(x, g, kernel, stride):
  del stride
  grad = x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])
  return grad.reshape(kernel.shape)


# Patches: of few channels, k * k of them side by side are one short row of a dot.


def _patches(x, kernel, stride):
  """Returns [B * H' * W', k * k * C_in], in the order of the kernel's elements."""
  kernel_size = kernel.shape[0]
  out_shape = _out_shape(x, stride)
  padded = _pad(x, kernel_size, stride)
  taps = [
    _tap(padded, i, j, out_shape, stride)
    for i in range(kernel_size)
    for j in range(kernel_size)
  ]
  return jnp.concatenate(taps, axis=-1).reshape(-1, kernel[..., 0].size)


def patches_forward(x, kernel, stride):
  y = _patches(x, kernel, stride) @ kernel.reshape(-1, kernel.shape[-1])
  out_shape = _out_shape(x, stride)
  return y.reshape(x.shape[0], *out_shape, kernel.shape[-1])


def patches_image_grad(kernel, g, x, stride):
  """Makes all patches' gradients by a dot and adds each where its pixels came from."""
  patches = jnp.matmul(
    g.reshape(-1, g.shape[-1]),
    kernel.reshape(-1, kernel.shape[-1]).T,
    preferred_element_type=jnp.float32,
  )
  image = jax.ShapeDtypeStruct(x.shape, jnp.float32)
  transpose = jax.linear_transpose(lambda x: _patches(x, kernel, stride), image)
  return transpose(patches)[0].astype(x.dtype)


def patches_kernel_grad(x, g, kernel, stride):
  grad = _patches(x, kernel, stride).T @ g.reshape(-1, g.shape[-1])
  return grad.reshape(kernel.shape)
