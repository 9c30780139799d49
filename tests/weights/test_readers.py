"""Tests that whatever is damaged is one line, and that what a file states is used."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from advprop_jax import errors
from advprop_jax.weights import readers

FOLDER = pathlib.Path(__file__).parent


def write(kind, path):
  arrays = {'a.weight': np.arange(12, dtype=np.float32), 'b': np.ones(3, np.float32)}
  if kind == 'pth':
    path.write_bytes((FOLDER / 'torch_archive.pth').read_bytes())
  elif kind == 'safetensors':
    safetensors.numpy.save_file(arrays, path)
  else:
    save = np.savez_compressed if kind == 'compressed npz' else np.savez
    with path.open('wb') as file:
      save(file, **arrays)


@pytest.mark.parametrize('kind', ['pth', 'safetensors', 'npz', 'compressed npz'])
def test_whatever_is_damaged_is_one_line(kind, tmp_path):
  """Every fifth byte changed; what is read nevertheless has arrays."""
  path = tmp_path / 'weights'
  write(kind, path)
  data = path.read_bytes()
  found = 0
  for i in range(0, len(data), 5):
    path.write_bytes(data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :])
    try:
      assert isinstance(readers.read(str(path)).arrays, dict)
    except errors.UserError as e:
      assert str(e).isprintable()
      found += 1
  assert found > 10


def test_bfloat16_is_read_with_its_shape(tmp_path):
  x = np.ones((2, 3), ml_dtypes.bfloat16)
  safetensors.numpy.save_file({'x': x}, tmp_path / 'x.safetensors')
  found = readers.read(str(tmp_path / 'x.safetensors')).arrays['x']
  assert (found.shape, str(found.dtype)) == ((2, 3), 'bfloat16')


def test_what_timm_states_lies_beside_the_file(tmp_path):
  write('safetensors', tmp_path / 'model.safetensors')
  text = json.dumps({'architecture': 'a', 'pretrained_cfg': {'crop_pct': 0.9}})
  (tmp_path / 'config.json').write_text(text)
  for source in (tmp_path, tmp_path / 'model.safetensors'):
    assert readers.read(str(source)).facts['crop_pct'] == 0.9


def test_numbered_arrays_need_a_name_each(tmp_path):
  one = np.ones(1, np.float32)
  np.savez(
    tmp_path / 'x.npz', names=['a', 'a'], types=['t', 't'], **{'0': one, '1': one}
  )
  with pytest.raises(errors.UserError, match='2 names of 2 arrays'):
    readers.read(str(tmp_path / 'x.npz'))
