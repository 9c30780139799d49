"""Reads the tensors of PyTorch's `.pth` files without PyTorch, and without executing.

Such a file holds a pickle, a program that may call anything. Here its instructions are
followed only as far as a dict of tensors needs them; every other call is an error.

Both formats are read: the zip archive (PyTorch 1.6 and later) and the one before, a
sequence of pickles with the values behind them. Source: `torch/serialization.py`.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from advprop_jax import errors

# The first pickle of the old format, written with protocol 2.
LEGACY_START = b'\x80\x02\x8a\n\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.'
_DTYPES = {
  'FloatStorage': np.dtype('<f4'),
  'DoubleStorage': np.dtype('<f8'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('<i1'),
  'ByteStorage': np.dtype('<u1'),
  'BoolStorage': np.dtype('?'),
}
MAX_PICKLE_BYTES = 2**24  # B8's has 0.3 MB; each instruction takes time.
# Where a training's checkpoint has the network, and its averages.
_PLAIN, _AVERAGES = ('state_dict', 'model'), ('state_dict_ema', 'model_ema')


class _Storage(NamedTuple):
  """A run of values somewhere in the file."""

  key: str
  dtype: np.dtype
  num_values: int


class _Tensor(NamedTuple):
  """A view of a storage."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # In values.


class _Global(NamedTuple):
  """The name of a function or class, which is never looked up."""

  name: str


def _ordered_dict(pairs=()):
  return {_checked_key(key): value for key, value in pairs}


def _checked_key(key) -> str | int:
  """Returns the key of a dict; of anything else even the hash may not be computed."""
  if not isinstance(key, str | int):
    raise ValueError(f'a key that is a {type(key).__name__}')
  return key


def _rebuild_tensor(storage, offset, shape, strides, *_):
  return _Tensor(storage, offset, shape, strides)


# All that a pickle may call, by name -> what is done instead.
_CALLS: dict[str, Callable] = {
  'collections.OrderedDict': _ordered_dict,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
}


def read_pth(
  path, *, averaged: bool | None = None
) -> tuple[dict[str, np.ndarray], bool]:
  """Returns the tensors of a state dict by name, and whether they are averages.

  Of the checkpoint of a training those of its network. They keep their own types.

  Args:
    path: of a file that begins as a zip archive or with LEGACY_START.
    averaged: which to take where both are there; None: averages, as timm evaluates
      them. A file that has only the others is read all the same.

  Raises:
    UserError: the file is damaged, holds something else, or its pickle calls anything
      that a dict of tensors does not need.
  """
  first, then = (_PLAIN, _AVERAGES) if averaged is False else (_AVERAGES, _PLAIN)
  are_averages = False
  try:
    if zipfile.is_zipfile(path):
      content, load = _read_archive(path)
    else:
      content, load = _read_legacy(path)
    for key in (*first, *then):
      if isinstance(content, dict) and isinstance(content.get(key), dict):
        content, are_averages = content[key], are_averages or key in _AVERAGES
    if not isinstance(content, dict) or not any(
      isinstance(x, _Tensor) for x in content.values()
    ):
      raise errors.UserError(
        f'{path} holds no dict of tensors; found: {_describe(content)}; allowed: a '
        'state dict as torch.save writes it'
      )
    others = {k: x for k, x in content.items() if not isinstance(x, _Tensor)}
    if others:
      raise errors.UserError(
        f'{path} holds more than tensors; found: {_describe(others)}; allowed: a state '
        'dict as torch.save writes it, alone or as the value of '
        f'{", ".join((*_PLAIN, *_AVERAGES))}'
      )
    tensors = {str(name): _to_numpy(x, load) for name, x in content.items()}
    return tensors, are_averages
  except errors.UserError:
    raise
  except Exception as e:  # Damaged data can fail anywhere in the two parsers.
    reason = repr(str(e))[1:-1]  # One line, whatever the file has put into it.
    raise errors.UserError(
      f'{path} is damaged ({type(e).__name__}: {reason}); allowed: a whole file as '
      'torch.save writes it'
    ) from e


def _read_archive(path):
  """Returns the content of a zip archive and the function that reads its storages."""
  archive = zipfile.ZipFile(path)
  pickles = [x for x in archive.namelist() if x.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise errors.UserError(
      f'{path} is no state dict: a zip archive with {len(pickles)} files data.pkl; '
      'allowed: a file as torch.save writes it'
    )
  root = pickles[0].removesuffix('data.pkl')
  if f'{root}byteorder' in archive.namelist():
    order = archive.read(f'{root}byteorder')
    if order != b'little':
      raise errors.UserError(f'{path} has byte order {order!r}; allowed: little')
  for entry in archive.infolist():
    # As torch.save writes them; a small file could hold any amount of others.
    if entry.compress_type != zipfile.ZIP_STORED:
      raise errors.UserError(
        f'{path} has compressed entries; allowed: a file as torch.save writes it'
      )
  if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
    raise errors.UserError(
      f'{path} has a pickle of more than {MAX_PICKLE_BYTES} bytes; allowed: a state '
      'dict as torch.save writes it'
    )
  with archive.open(pickles[0]) as file:
    content = _interpret(file, path)
  # Reading checks the CRC-32 that the archive has of every file.
  return content, lambda storage: archive.read(f'{root}data/{storage.key}')


def _read_legacy(path):
  """Returns the content of a file of the old format, and the function as above."""
  storages: dict[str, _Storage] = {}
  with open(path, 'rb') as file:
    for _ in range(3):  # A magic number, the version, sizes of C's types.
      _interpret(file, path)
    content = _interpret(file, path, storages)
    data = {}
    for key in _interpret(file, path):
      (num_values,) = struct.unpack('<q', file.read(8))
      if num_values != storages[key].num_values:
        raise ValueError(f'{num_values} values, not {storages[key].num_values}')
      data[key] = file.read(num_values * storages[key].dtype.itemsize)
  return content, lambda storage: data[storage.key]


def _to_numpy(tensor: _Tensor, load) -> np.ndarray:
  storage, offset, shape, strides = tensor
  values = np.frombuffer(load(storage), storage.dtype)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if len(values) != storage.num_values or not all(
    isinstance(x, int) and x >= 0 for x in (offset, *shape, *strides)
  ):
    raise ValueError(f'a storage of {len(values)} values, not {storage.num_values}')
  if math.prod(shape) > len(values):  # The same values again and again.
    raise ValueError(f'a tensor of {math.prod(shape)} values, {len(values)} stored')
  if math.prod(shape) == 0:
    return np.zeros(shape, storage.dtype)
  if last >= len(values):  # Beyond it `as_strided` would read foreign memory.
    raise ValueError(f'a tensor that ends at {last} in a storage of {len(values)}')
  view = np.lib.stride_tricks.as_strided(
    values[offset:], shape, [s * values.itemsize for s in strides]
  )
  return view.copy()


def _interpret(
  file: IO[bytes], path, storages: dict[str, _Storage] | None = None
) -> Any:
  """Returns what the next pickle of a file builds, of dicts, lists, tuples and tensors.

  Args:
    file: at the beginning of the pickle; afterwards at its end.
    path: of the file, for messages.
    storages: receives those that the pickle refers to, by their keys.

  Raises:
    UserError: it calls something, or has an instruction that tensors do not need.
  """
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}

  def pop_mark() -> list[Any]:
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items

  arg: Any
  for opcode, arg, _ in pickletools.genops(file):
    match opcode.name:
      case 'PROTO' | 'FRAME':
        pass
      case 'MARK':
        marks.append(len(stack))
      case 'STOP':
        return stack.pop()
      case (
        'INT' | 'BININT' | 'BININT1' | 'BININT2' | 'LONG' | 'LONG1' | 'BINFLOAT'
        | 'UNICODE' | 'BINUNICODE' | 'SHORT_BINUNICODE' | 'BINSTRING'
        | 'SHORT_BINSTRING'
      ):  # fmt: skip
        stack.append(arg)
      case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
        stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[opcode.name])
      case 'EMPTY_TUPLE':
        stack.append(())
      case 'TUPLE':
        stack.append(tuple(pop_mark()))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        count = int(opcode.name[-1])
        stack[-count:] = [tuple(stack[-count:])]
      case 'EMPTY_LIST':
        stack.append([])
      case 'APPEND':
        item = stack.pop()
        stack[-1].append(item)
      case 'APPENDS':
        items = pop_mark()
        stack[-1].extend(items)
      case 'EMPTY_DICT':
        stack.append({})
      case 'SETITEM':
        value, key = stack.pop(), stack.pop()
        stack[-1][_checked_key(key)] = value
      case 'SETITEMS':
        items = pop_mark()
        keys = map(_checked_key, items[::2])
        stack[-1].update(zip(keys, items[1::2], strict=True))
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        memo[arg] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        stack.append(memo[arg])
      case 'GLOBAL':
        stack.append(_Global(arg.replace(' ', '.')))
      case 'STACK_GLOBAL':
        name, module = stack.pop(), stack.pop()
        stack.append(_Global(f'{module}.{name}'))
      case 'BINPERSID':
        storage = _storage(stack.pop())
        if storages is not None:
          storages[storage.key] = storage
        stack.append(storage)
      case 'REDUCE':
        args, function = stack.pop(), stack.pop()
        name = function.name if isinstance(function, _Global) else None
        if name not in _CALLS:
          what = f'{name!r}' if name else f'a {type(function).__name__}'
          raise errors.UserError(
            f'{path} calls {what}; allowed: a pickle that builds tensors and nothing '
            'else. Nothing of it was executed'
          )
        stack.append(_CALLS[name](*args))
      case 'BUILD' if isinstance(stack[-2], dict):
        stack.pop()  # Attributes of an OrderedDict: versions of modules.
      case _:
        raise errors.UserError(
          f'{path} has the pickle instruction {opcode.name}, which builds objects; '
          'allowed: a dict of tensors as torch.save writes it. Nothing of it was '
          'executed'
        )
  raise ValueError('a pickle that does not end')


def _storage(reference) -> _Storage:
  """Returns the storage of a reference: ('storage', type, key, where, size)."""
  _, kind, key, _, num_values, *_ = reference
  name = kind.name.removeprefix('torch.')
  return _Storage(str(key), _DTYPES[name], num_values)


def _describe(content) -> str:
  if isinstance(content, Mapping):
    return f'a dict with {", ".join(f"{x!r:.60}" for x in list(content)[:5])}'
  return f'a {type(content).__name__}'
