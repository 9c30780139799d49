"""Writes files as publishers do: PyTorch's archives and TensorFlow 1's checkpoints."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


class Tensor:
  """Stands for a tensor in a pickle."""

  def __init__(self, array):
    self.array = array


def write_pth(path, arrays, root='archive', inside=None):
  """Writes a state dict as torch.save does since PyTorch 1.6.

  Args:
    path: of the file.
    arrays: by name; a list is written as one.
    root: folder in the archive.
    inside: {key: names of arrays} of the dict that a training keeps; None: one state
      dict of them all, alone.
  """
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr(f'{root}/data.pkl', dump(arrays, inside))
    archive.writestr(f'{root}/byteorder', 'little')
    for i, x in enumerate(arrays.values()):
      archive.writestr(f'{root}/data/{i}', np.ascontiguousarray(x).tobytes())


def dump(arrays, inside=None) -> bytes:
  """Returns the pickle of a state dict, with PyTorch's names, of which none exists."""
  modules = {x: types.ModuleType(x) for x in ('torch', 'torch._utils')}

  def stub(module, name):
    function = types.new_class(name)
    function.__module__ = module
    setattr(modules[module], name, function)
    return function

  rebuild = stub('torch._utils', '_rebuild_tensor_v2')
  storages = {
    'float32': stub('torch', 'FloatStorage'),
    'float16': stub('torch', 'HalfStorage'),
    'int64': stub('torch', 'LongStorage'),
  }
  tensors = {
    name: x if isinstance(x, list) else Tensor(np.asarray(x))
    for name, x in arrays.items()
  }
  keys = {id(x): str(i) for i, x in enumerate(tensors.values())}

  class Pickler(pickle.Pickler):
    def reducer_override(self, obj):
      if not isinstance(obj, Tensor):
        return NotImplemented
      x = obj.array
      strides = tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides)
      strides = strides[: x.ndim]
      return rebuild, (('storage', obj), 0, x.shape, strides, False, {})

    def persistent_id(self, obj):
      if isinstance(obj, tuple) and len(obj) == 2 and obj[0] == 'storage':
        x = obj[1].array
        return 'storage', storages[str(x.dtype)], keys[id(obj[1])], 'cpu', x.size
      return None

  buffer = io.BytesIO()
  before = {name: sys.modules.get(name) for name in modules}
  sys.modules.update(modules)
  try:
    content = collections.OrderedDict(tensors)
    if inside is not None:
      parts = {k: {x: tensors[x] for x in names} for k, names in inside.items()}
      content = {'epoch': 3, **parts}
    Pickler(buffer, protocol=2).dump(content)
  finally:
    for name, module in before.items():
      if module is None:
        del sys.modules[name]
      else:
        sys.modules[name] = module
  return buffer.getvalue()


def write_tensorflow(folder, image, *, scope='efficientnet-tiny', num_classes=10):
  """Trains a small EfficientNet for a step in TensorFlow 1, and saves all of it.

  The graph is written here, from the papers' description, with the names of the
  official code. Beside the weights the checkpoint has their averages, RMSProp's slots
  and the step.

  Args:
    folder: where `tf.compat.v1.train.Saver` writes.
    image: float32 [B, H, W, 3], normalised already.
    scope: that all variables are in.
    num_classes: of the logits.

  Returns:
    (logits with the averages, logits with the plain weights), float32 [B, K].
  """
  rng = np.random.RandomState(0)
  with tf.Graph().as_default(), v1.Session() as session:
    stats = []

    def variable(name, shape, scale, offset=0.0, trainable=True):
      first = offset + scale * rng.standard_normal(shape).astype(np.float32)
      if name.endswith('variance'):
        first = np.abs(first) + 0.5
      return v1.get_variable(name, initializer=first, trainable=trainable)

    def conv(x, features, size=1, stride=1, bias=False, name='conv2d'):
      with v1.variable_scope(name):
        inputs = x.shape[-1]
        scale = (size * size * inputs) ** -0.5
        kernel = variable('kernel', (size, size, inputs, features), scale)
        x = tf.nn.conv2d(x, kernel, stride, 'SAME')
        return x + variable('bias', (features,), 0.3) if bias else x

    def depthwise(x, size, stride):
      with v1.variable_scope('depthwise_conv2d'):
        kernel = variable('depthwise_kernel', (size, size, x.shape[-1], 1), 1 / size)
        return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], 'SAME')

    def norm(x, index=0):
      ending = f'_{index}' if index else ''
      with v1.variable_scope(f'tpu_batch_normalization{ending}'):
        shape = (x.shape[-1],)
        scale, bias = variable('gamma', shape, 0.2, 1.0), variable('beta', shape, 0.2)
        mean = variable('moving_mean', shape, 0.2, trainable=False)
        var = variable('moving_variance', shape, 0.3, 1.0, trainable=False)
        stats.extend([mean, var])
        return tf.nn.batch_normalization(x, mean, var, bias, scale, 1e-3)

    swish = tf.nn.silu
    with v1.variable_scope(scope):
      with v1.variable_scope('stem'):
        x = swish(norm(conv(image, 8, 3, 2)))
      # Features 16, 24, 24 and 80 times 0.25, rounded to multiples of 8.
      blocks = [(3, 1, 1, 8), (3, 2, 6, 8), (3, 1, 6, 8), (5, 2, 6, 24)]
      for i, (size, stride, expansion, features) in enumerate(blocks):
        with v1.variable_scope(f'blocks_{i}'):
          shortcut, inputs, n = x, int(x.shape[-1]), 0
          if expansion != 1:
            x = swish(norm(conv(x, inputs * expansion)))
            n = 1
          x = swish(norm(depthwise(x, size, stride), n))
          with v1.variable_scope('se'):
            gate = tf.reduce_mean(x, [1, 2], keepdims=True)
            gate = swish(conv(gate, inputs // 4, bias=True))
            x *= tf.sigmoid(conv(gate, int(x.shape[-1]), bias=True, name='conv2d_1'))
          x = norm(conv(x, features, name='conv2d_1' if n else 'conv2d'), n + 1)
          if stride == 1 and inputs == features:
            x += shortcut
      with v1.variable_scope('head'):
        x = tf.reduce_mean(swish(norm(conv(x, 320))), [1, 2])
        with v1.variable_scope('dense'):
          kernel = variable('kernel', (320, num_classes), 320**-0.5)
          logits = x @ kernel + variable('bias', (num_classes,), 0.3)
    step = v1.train.get_or_create_global_step()
    optimizer = v1.train.RMSPropOptimizer(1e-3, 0.9, 0.9, 1e-3)
    gradients = [(tf.ones_like(x), x) for x in v1.trainable_variables()]
    train = optimizer.apply_gradients(gradients, step)
    average = v1.train.ExponentialMovingAverage(0.5)
    with tf.control_dependencies([train]):
      update = average.apply(v1.trainable_variables() + stats)
    session.run(v1.global_variables_initializer())
    session.run(update)
    session.run([x.assign(1.3 * x) for x in v1.trainable_variables() + stats])
    session.run(update)
    saver = v1.train.Saver()
    saver.save(session, f'{folder}/model.ckpt', global_step=1)
    plain = session.run(logits)
    averaged = average.variables_to_restore(v1.trainable_variables() + stats)
    v1.train.Saver(averaged).restore(session, f'{folder}/model.ckpt-1')
    return session.run(logits), plain


def folded_logits(tensors, image):
  """Returns the logits of a small EfficientNet of convolutions and biases alone.

  Args:
    tensors: 'blocks_0/expand_conv/kernel' and the like, in Flax's layout.
    image: float32 [B, H, W, 3], normalised already.
  """

  def conv(x, name, stride=1):
    kernel = tensors[f'{name}/kernel']
    if name.endswith('depthwise_conv'):
      kernel = kernel.transpose(0, 1, 3, 2)
      x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], 'SAME')
    else:
      x = tf.nn.conv2d(x, kernel, stride, 'SAME')
    return x + tensors[f'{name}/bias']

  x = tf.nn.silu(conv(image, 'stem_conv', 2))
  for i, stride in enumerate((1, 2, 1, 2)):
    name, shortcut = f'blocks_{i}', x
    if f'{name}/expand_conv/kernel' in tensors:
      x = tf.nn.silu(conv(x, f'{name}/expand_conv'))
    x = tf.nn.silu(conv(x, f'{name}/depthwise_conv', stride))
    gate = tf.nn.silu(conv(tf.reduce_mean(x, [1, 2], True), f'{name}/se_reduce'))
    x = conv(x * tf.sigmoid(conv(gate, f'{name}/se_expand')), f'{name}/project_conv')
    x = x + shortcut if stride == 1 else x
  x = tf.reduce_mean(tf.nn.silu(conv(x, 'head_conv')), [1, 2])
  return x @ tensors['classifier/kernel'] + tensors['classifier/bias']
