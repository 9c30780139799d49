"""A small imagenet2012 for tests, prepared by the real builder; and awkward images.

The builder finds here what a user gives it: one archive of training images, which holds
an archive for each class, and one of validation images. Their labels are no part of the
archives: the builder gives the n-th label of its own list to the n-th name.
"""

import functools
import io
import os
import pathlib
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# The first class, the last one, and six that the builder's list of labels names early.
WNIDS = (
  'n01440764',  # Label 0.
  'n01669191',  # 37
  'n01795545',  # 80
  'n02123394',  # 283
  'n02408429',  # 346
  'n04086273',  # 763
  'n09428293',  # 978
  'n15075141',  # 999
)
TRAIN_IMAGES_PER_CLASS = 36
NUM_SHARDS = 4  # Of each split.
_LISTED = 3500  # So many labels of the list name one of the eight classes 63 times.


def prepare(data_dir: str | os.PathLike, manual_dir: str | os.PathLike) -> None:
  """Writes the two archives to `manual_dir` and prepares imagenet2012 in `data_dir`."""
  write_archives(manual_dir)
  tfds.builder('imagenet2012', data_dir=data_dir).download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir, try_download_gcs=False, num_shards=NUM_SHARDS
    )
  )


def write_archives(manual_dir: str | os.PathLike) -> None:
  """Writes the two archives that the builder wants."""
  rng = np.random.default_rng(0)
  manual_dir = pathlib.Path(manual_dir)
  manual_dir.mkdir(parents=True, exist_ok=True)
  with tarfile.open(manual_dir / 'ILSVRC2012_img_train.tar', 'w') as archive:
    for wnid in WNIDS:
      buffer = io.BytesIO()
      with tarfile.open(fileobj=buffer, mode='w') as images:
        for n in range(TRAIN_IMAGES_PER_CLASS):
          _add(images, f'{wnid}_{10000 + n}.JPEG', _example(rng, wnid, n))
      _add(archive, f'{wnid}.tar', buffer.getvalue())

  labels = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
  with tarfile.open(manual_dir / 'ILSVRC2012_img_val.tar', 'w') as archive:
    for n, wnid in enumerate(labels.read_text().split()[:_LISTED], start=1):
      name = f'ILSVRC2012_val_{n:08}.JPEG'
      # A folder takes the place of an image of another class: it uses up the label, and
      # the builder passes over it.
      _add(archive, name, _example(rng, wnid, n) if wnid in WNIDS else None)


def jpeg(height: int, width: int, mode: str = 'RGB', seed: int = 0) -> bytes:
  """Returns a valid image of mode 'RGB', 'L' or 'CMYK'."""
  rng = np.random.default_rng(seed)
  return _encode(_picture(rng, height, width, seed), mode=mode)


def truncated_jpeg() -> bytes:
  """Returns the first half of a file."""
  data = jpeg(120, 160)
  return data[: len(data) // 2]


def corrupt_jpeg() -> bytes:
  """Returns a file with a sound header, the size included, that no decoder can read."""
  # The quantization tables, marked as comments, are missing.
  return jpeg(120, 160).replace(b'\xff\xdb', b'\xff\xfe')


def png() -> bytes:
  """Returns a valid PNG."""
  return _encode(_picture(np.random.default_rng(0), 120, 160, 0), 'PNG')


def gif() -> bytes:
  """Returns a valid GIF of one frame."""
  return _encode(_picture(np.random.default_rng(0), 120, 160, 0), 'GIF')


@functools.cache
def huge_jpeg() -> bytes:
  """Returns a grey image of 10,000 x 10,000 pixels: 0.4 MB, decoded 300 MB as RGB."""
  buffer = io.BytesIO()
  Image.new('L', (10_000, 10_000), 128).save(buffer, 'JPEG', optimize=True)
  return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes | None) -> None:
  """Adds a file, or without data an empty folder."""
  member = tarfile.TarInfo(name)
  if data is None:
    member.type = tarfile.DIRTYPE
  else:
    member.size = len(data)
  archive.addfile(member, io.BytesIO(data or b''))


def _example(rng: np.random.Generator, wnid: str, n: int) -> bytes:
  """Returns an image of the class: 60 to 400 pixels, 1:3 to 3:1, some not RGB."""
  size, aspect = rng.uniform(104, 230), 3 ** rng.uniform(-1, 1)
  height, width = round(size * aspect**0.5), round(size / aspect**0.5)
  mode = {5: 'L', 9: 'CMYK'}.get(n % 12, 'RGB')
  return _encode(_picture(rng, height, width, WNIDS.index(wnid)), mode=mode)


def _picture(rng: np.random.Generator, height: int, width: int, k: int) -> np.ndarray:
  """Returns uint8[height, width, 3] of class k % 8: stripes and noise.

  The class is in the stripes' direction (k % 2) and colours (k // 2 % 4). They go from
  a colour to its complement at a random phase, so that a single pixel tells little.
  """
  tint = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])[k // 2 % 4]
  position = np.arange(width) if k % 2 else np.arange(height)[:, None]
  wave = np.sin(2 * np.pi * (position / rng.uniform(14, 22) + rng.random()))
  wave = np.broadcast_to(wave, (height, width))[..., None]
  noise = rng.normal(0, 0.12, (height, width, 3)) + rng.normal(0, 0.1, 3)
  picture = 0.5 + rng.uniform(0.15, 0.3) * tint * (wave + 0.25) + noise
  return (255 * picture.clip(0, 1)).astype(np.uint8)


def _encode(
  picture: np.ndarray, image_format: str = 'JPEG', mode: str = 'RGB'
) -> bytes:
  """Returns the picture as a file."""
  buffer = io.BytesIO()
  Image.fromarray(picture).convert(mode).save(buffer, image_format)
  return buffer.getvalue()
