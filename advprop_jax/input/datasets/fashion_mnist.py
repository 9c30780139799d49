"""Fashion-MNIST: from files that lie on this machine, or else downloaded.

Debian's package `dataset-fashion-mnist` installs the four files of the data set, 60,000
and 10,000 real images; their contents are checked. Everything else, the download
included, is tensorflow-datasets' own `fashion_mnist`.
"""

import gzip
import hashlib
import os
import pathlib
import shutil
import socket
import urllib.parse
import urllib.request

import tensorflow_datasets as tfds

from advprop_jax import errors

NAME = 'fashion_mnist'
PACKAGE = 'dataset-fashion-mnist'
FOLDER = '/usr/share/datasets/fashion-mnist'
# SHA-256 of the contents. Source: the package 0.0~git20200523.55506a9-1, which Debian
# made of zalandoresearch/fashion-mnist at that commit.
CHECKSUMS = {
  'train-images-idx3-ubyte.gz': (
    'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888'
  ),
  'train-labels-idx1-ubyte.gz': (
    'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9'
  ),
  't10k-images-idx3-ubyte.gz': (
    '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b'
  ),
  't10k-labels-idx1-ubyte.gz': (
    '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34'
  ),
}


def prepare(builder: tfds.core.DatasetBuilder):
  """Writes the data set, unless it is there, or there is nothing to make it from.

  The local files come first. Without them it is downloaded, 30 MB, from the address
  that tensorflow-datasets has; if that cannot be reached, nothing is written.

  Args:
    builder: tensorflow-datasets' `fashion_mnist`, with a data_dir to write to.

  Raises:
    UserError: a file has other contents than in the package.
    OSError: the data_dir cannot be written.
  """
  if builder.is_prepared():
    return
  if not os.path.isdir(FOLDER):
    if _can_reach(builder.URL):
      builder.download_and_prepare()
    return
  contents = pathlib.Path(builder.data_dir_root) / f'{NAME}.local_{os.getpid()}'
  contents.mkdir(parents=True)
  try:
    files = _Files({name: _inflate(name, contents) for name in CHECKSUMS})
    split_generators = builder._split_generators  # noqa: SLF001 (what builders define)
    builder._split_generators = lambda _: split_generators(files)  # noqa: SLF001
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=offline)
  finally:
    shutil.rmtree(contents)


def _can_reach(address: str) -> bool:
  """Returns whether a download may work; tensorflow-datasets tries it for minutes."""
  if urllib.request.getproxies():
    return True  # The proxy's business.
  parts = urllib.parse.urlsplit(address)
  try:
    socket.create_connection((parts.hostname, parts.port or 80), timeout=5).close()
  except OSError:
    return False
  return True


class _Files:
  """Stands in for a manager of downloads: the files are there."""

  def __init__(self, paths: dict[str, str]):
    self._paths = paths

  def download_and_extract(self, addresses: dict[str, str]) -> dict[str, str]:
    """Returns {key: path of the contents of the file with this address}."""
    return {key: self._paths[x.rpartition('/')[2]] for key, x in addresses.items()}


def _inflate(name: str, target: pathlib.Path) -> str:
  """Writes the contents of a file, and returns the path; UserError if they differ."""
  path = os.path.join(FOLDER, name)
  try:
    with gzip.open(path) as f:
      contents = f.read()
  except (OSError, EOFError) as e:
    raise errors.UserError(
      f'cannot read {path}: {e}; allowed: the files of the package {PACKAGE}'
    ) from e
  if hashlib.sha256(contents).hexdigest() != CHECKSUMS[name]:
    raise errors.UserError(
      f'{path} has other contents than in the package; allowed: those of the package '
      f'{PACKAGE}, or none, and the data set prepared by tensorflow-datasets'
    )
  inflated = target / name.removesuffix('.gz')
  inflated.write_bytes(contents)
  return str(inflated)
