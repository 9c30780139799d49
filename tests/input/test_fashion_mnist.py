"""Tests Fashion-MNIST from local files, small ones that the tests make."""

import gzip
import hashlib
import os
import socket
import struct

import image_recipe
import numpy as np
import pytest
import tensorflow_datasets as tfds

from advprop_jax import errors
from advprop_jax.input import batches, datasets, order
from advprop_jax.input.datasets import fashion_mnist

COUNTS = {'train': 60_000, 't10k': 10_000}


def idx(array):
  """Returns the bytes of a file of the data set: big-endian sizes, then values."""
  header = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
  return header + array.tobytes()


@pytest.fixture
def local_files(tmp_path, monkeypatch):
  """Writes files as large as the real ones, whose images are their numbers."""
  folder = tmp_path / 'package'
  folder.mkdir()
  written = {}
  for split, count in COUNTS.items():
    images = np.zeros((count, 28, 28), np.uint8)
    # Each is another one: its first pixels are its number.
    numbers = np.arange(count).astype('>u4')
    images.reshape(count, -1)[:, :4] = numbers.view(np.uint8).reshape(count, 4)
    labels = (7 * numbers % 10).astype(np.uint8)
    written[split] = images, labels
    for kind, array in [('images-idx3', images), ('labels-idx1', labels)]:
      contents = idx(array)
      name = f'{split}-{kind}-ubyte.gz'
      (folder / name).write_bytes(gzip.compress(contents, 1))
      checksum = hashlib.sha256(contents).hexdigest()
      monkeypatch.setitem(fashion_mnist.CHECKSUMS, name, checksum)
  monkeypatch.setattr(fashion_mnist, 'FOLDER', str(folder))
  return folder, written


def open_it(tmp_path):
  return datasets.open_dataset('fashion_mnist', data_dir=str(tmp_path / 'data'))


def test_without_the_files_it_is_said_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_mnist, 'FOLDER', str(tmp_path / 'nowhere'))
  with pytest.raises(errors.UserError) as e:
    open_it(tmp_path)
  assert "install Debian's package dataset-fashion-mnist, or prepare it" in str(e.value)


@pytest.mark.parametrize('port_is_open', [True, False])
def test_without_the_files_it_is_downloaded_where_that_may_work(
  tmp_path, monkeypatch, port_is_open
):
  monkeypatch.setattr(fashion_mnist, 'FOLDER', str(tmp_path / 'nowhere'))
  builder = tfds.builder('fashion_mnist', data_dir=str(tmp_path))
  calls = []
  monkeypatch.setattr(builder, 'download_and_prepare', lambda: calls.append('download'))
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    monkeypatch.setattr(type(builder), 'URL', f'http://127.0.0.1:{port}/')
    if not port_is_open:
      server.close()
    fashion_mnist.prepare(builder)
  assert calls == ['download'] * port_is_open


@pytest.mark.parametrize('damage', ['contents', 'compression', 'absence'])
def test_other_files_than_those_of_the_package_are_refused(
  tmp_path, local_files, damage
):
  file = local_files[0] / 't10k-labels-idx1-ubyte.gz'
  if damage == 'absence':
    file.unlink()
  else:
    other = gzip.compress(b'other') if damage == 'contents' else file.read_bytes()[:-9]
    file.write_bytes(other)
  with pytest.raises(errors.UserError, match='t10k-labels.* the package dataset-fash'):
    open_it(tmp_path)
  assert not list((tmp_path / 'data').glob('*.local_*'))


@pytest.mark.large
def test_images_and_labels_are_those_of_the_files(tmp_path, local_files):
  """All 70,000 are written: half a minute."""
  dataset = open_it(tmp_path)
  assert dataset.class_names[:2] == ('T-shirt/top', 'Trouser')
  for split, name in [('train', 'train'), ('t10k', 'test')]:
    images, labels = local_files[1][split]
    assert dataset.num_examples(name) == COUNTS[split]
    (batch,) = batches.eval_batches(
      dataset,
      split=f'{name}[:64]',
      batch_size=64,
      recipe=image_recipe.RECIPE._replace(image_size=28),
      max_bad_share=0.0,
      hosts=order.ONE_HOST,
    )
    # tensorflow-datasets shuffles what it writes.
    rows = {x.tobytes(): label for x, label in zip(images, labels, strict=True)}
    for image, label in zip(batch['image'][..., 0], batch['label'], strict=True):
      assert rows[image.tobytes()] == label


@pytest.mark.skipif(
  not os.path.isdir(fashion_mnist.FOLDER),
  reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_the_package_has_the_published_files():
  for name, checksum in fashion_mnist.CHECKSUMS.items():
    with gzip.open(os.path.join(fashion_mnist.FOLDER, name)) as f:
      assert hashlib.sha256(f.read()).hexdigest() == checksum
