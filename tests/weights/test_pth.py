r"""Tests the reader of PyTorch's files on two that PyTorch 2.14.1 has written:

base = torch.arange(12.).reshape(3, 4)
state = collections.OrderedDict({
  'whole.weight': base,
  'turned.weight': base.T,
  'part.weight': base[1:, 2:],
  'steps': torch.tensor(7),
  'half': torch.tensor([0.5, -2.], dtype=torch.float16),
  'brain': torch.tensor([0.5, -2.], dtype=torch.bfloat16),
  'parameter': torch.nn.Parameter(torch.tensor([1., 2.])),
})
torch.save(state, 'torch_archive.pth')
torch.save(state, 'torch_legacy.pth', _use_new_zipfile_serialization=False)
"""

import pathlib
import zipfile

import numpy as np
import pytest
from sources import write_pth

from advprop_jax import errors
from advprop_jax.weights import pth

FOLDER = pathlib.Path(__file__).parent
BASE = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize('kind', ['archive', 'legacy'])
def test_tensors_are_those_that_torch_saved(kind):
  found, are_averages = pth.read_pth(FOLDER / f'torch_{kind}.pth')
  assert not are_averages
  expected = {
    'whole.weight': BASE,
    'turned.weight': BASE.T,
    'part.weight': BASE[1:, 2:],
    'steps': 7,
    'half': [0.5, -2],
    'brain': [0.5, -2],
    'parameter': [1, 2],
  }
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], x)
  types = [str(x.dtype) for x in found.values()]
  assert types == ['float32'] * 3 + ['int64', 'float16', 'bfloat16', 'float32']


@pytest.mark.parametrize('kind', ['archive', 'legacy'])
def test_whatever_is_damaged_is_one_line(kind, tmp_path):
  """Every byte once: another value, and the end of the file."""
  data = (FOLDER / f'torch_{kind}.pth').read_bytes()
  path = tmp_path / 'x.pth'
  num_errors = 0
  for i in range(0, len(data), 7):
    for damaged in (data[:i], data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :]):
      path.write_bytes(damaged)
      try:
        pth.read_pth(path)
      except errors.UserError as e:
        assert '\n' not in str(e)
        num_errors += 1
  assert num_errors > len(data) / 7


def test_no_tensor_reaches_beyond_its_storage(tmp_path):
  path = tmp_path / 'x.pth'
  write_pth(path, {'x': np.zeros((2, 3), np.float32)})
  data = path.read_bytes()
  # In the pickle the shape (2, 3) is written as K\x02K\x03.
  assert data.count(b'K\x02K\x03') == 1
  changed = data.replace(b'K\x02K\x03', b'K\x02K\x7f')
  path.write_bytes(changed)
  with pytest.raises(errors.UserError, match='damaged'):
    pth.read_pth(path)


def write_pickle(path, pickle_bytes, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickle_bytes)


@pytest.mark.parametrize(
  'pickle_bytes, message',
  [
    # A key of nested tuples, whose hash would overflow the stack.
    (b'}N' + b'\x85' * 300_000 + b'Ns.', 'a key that is a tuple'),
    # A key whose parts are shared: its hash would take 2 ** 60 steps.
    (b'}N' + b'2\x86' * 60 + b'Ns.', 'has the pickle instruction DUP'),
    (b'}Nq\x00' + b'h\x00\x86q\x00' * 60 + b'Ns.', 'a key that is a tuple'),
    # A call of something shared, whose text would be as long.
    (b'Nq\x00' + b'h\x00\x86q\x00' * 60 + b')R.', 'calls a tuple'),
    (b'cos\nsys\x1b[31mtem\n)R.', r"calls 'os.sys\\x1b\[31mtem'"),
    (b'.', 'damaged'),
    (b'N' * (pth.MAX_PICKLE_BYTES + 1), 'pickle of more than'),
  ],
  ids=['nested', 'dup', 'shared key', 'shared call', 'escape', 'nothing', 'long'],
)
def test_a_crafted_pickle_is_one_line(pickle_bytes, message, tmp_path):
  write_pickle(tmp_path / 'x.pth', pickle_bytes)
  with pytest.raises(errors.UserError, match=message) as e:
    pth.read_pth(tmp_path / 'x.pth')
  assert str(e.value).isprintable()


def test_nothing_is_inflated(tmp_path):
  write_pickle(tmp_path / 'x.pth', b'}.', zipfile.ZIP_DEFLATED)
  with pytest.raises(errors.UserError, match='has compressed entries'):
    pth.read_pth(tmp_path / 'x.pth')


def test_no_tensor_has_more_values_than_its_storage(tmp_path):
  """With strides of 0 one value would be any number of them."""
  path = tmp_path / 'x.pth'
  write_pth(path, {'x': np.zeros((2, 3), np.float32)})
  with zipfile.ZipFile(path) as archive:
    entries = {name: archive.read(name) for name in archive.namelist()}
  content = entries['archive/data.pkl']
  shape, strides = b'K\x02K\x03', b'K\x03K\x01'
  assert content.count(shape) == content.count(strides) == 1
  content = content.replace(strides, b'K\x00K\x00').replace(shape, b'K\xffK\xff')
  with zipfile.ZipFile(path, 'w') as archive:
    for name, x in (entries | {'archive/data.pkl': content}).items():
      archive.writestr(name, x)
  with pytest.raises(errors.UserError, match='a tensor of 65025 values, 6 stored'):
    pth.read_pth(path)


@pytest.mark.parametrize(
  'keys, averaged, expected',
  [
    (['state_dict'], None, 'state_dict'),
    (['model'], None, 'model'),
    (['state_dict', 'state_dict_ema'], None, 'state_dict_ema'),
    (['model', 'model_ema'], True, 'model_ema'),
    (['state_dict', 'state_dict_ema'], False, 'state_dict'),
    (['state_dict'], True, 'state_dict'),
    (['model_ema'], False, 'model_ema'),
  ],
)
def test_the_network_of_a_training_is_found(keys, averaged, expected, tmp_path):
  arrays = {key: BASE + i for i, key in enumerate(keys)}
  write_pth(tmp_path / 'x.pth', arrays, inside={key: [key] for key in keys})
  found, are_averages = pth.read_pth(tmp_path / 'x.pth', averaged=averaged)
  assert list(found) == [expected] and are_averages == expected.endswith('ema')
  np.testing.assert_array_equal(found[expected], arrays[expected])


def test_what_is_no_tensor_is_not_dropped(tmp_path):
  write_pth(tmp_path / 'x.pth', {'x.weight': BASE, 'x.bias': [0.5, 2]})
  with pytest.raises(errors.UserError, match="more than tensors; found: .*'x.bias'"):
    pth.read_pth(tmp_path / 'x.pth')
