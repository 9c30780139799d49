"""Data sets by name: where the records lie and how one becomes an image and a label.

`open_dataset` knows three kinds of name:

  digits           embedded in scikit-learn; prepared on first use, no download
  folder:<path>    the user's own <path>/<split>/<class>/*.jpg, *.jpeg or *.png
  anything else    a tensorflow-datasets builder with `image` and `label` features,
                   prepared beforehand, see `_not_prepared`: nothing is downloaded here

A split is a list of `Span`s, runs of records in one file, so that `data.py` can share
them among hosts, shuffle them and skip them without reading a byte.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import random
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from advprop_jax import errors
from advprop_jax.datasets import digits  # Registers the builder.

FOLDER_PREFIX = 'folder:'
# Large pieces suit network storage; a record of ImageNet is about 0.1 MB.
READ_BYTES = 8 << 20
# What must be fetched by hand, after registration at image-net.org.
MANUAL_ARCHIVES = {
  'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
}
# What tfds.ImageFolder reads.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


class Span(NamedTuple):
  """A run of consecutive records in one file: records [skip, skip + take)."""

  path: str
  skip: int
  take: int


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled set of images, opened but not read.

  Attributes:
    name: the name it was opened by.
    class_names: one name per label, in label order.
    spans_fn: split -> its records, as a list of Span.
    read_fn: tf.data.Dataset of Span -> tf.data.Dataset of records, each a scalar
      string; the records of one span follow those of the span before.
    parse_fn: record -> encoded image (scalar string), label (int64) and name (scalar
      string, empty if it has none), as tf ops.
  """

  name: str
  class_names: tuple[str, ...]
  spans_fn: Callable[[str], list[Span]]
  read_fn: Callable[[tf.data.Dataset], tf.data.Dataset]
  parse_fn: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def num_examples(self, split: str) -> int:
    return sum(span.take for span in self.spans(split))

  def spans(self, split: str) -> list[Span]:
    """Returns the records of a split; raises UserError if it is unknown or empty."""
    spans = [span for span in self.spans_fn(split) if span.take > 0]
    if not spans:
      raise errors.UserError(f'split {split!r} of data set {self.name!r} is empty')
    return spans


def open_dataset(name: str, *, data_dir: str | None = None) -> Dataset:
  """Opens a data set by name.

  Args:
    name: 'digits', 'folder:<path>' or the name of a tensorflow-datasets builder, with
      configuration and version if wanted ('imagenet2012', 'cifar10_1/v6:1.1.0').
    data_dir: where tensorflow-datasets keeps prepared data; None is its own default,
      ~/tensorflow_datasets. A folder ignores it.

  Returns:
    The opened data set.

  Raises:
    UserError: the name is unknown, the data are missing or unreadable, or they hold
      something else than images with one label each.
  """
  if name.startswith(FOLDER_PREFIX):
    return _open_folder(name)
  try:
    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    if data_dir is not None and tf.io.gfile.exists(data_dir):
      tf.io.gfile.listdir(data_dir)
  except tf.errors.OpError as e:
    raise errors.UserError(f'data_dir {data_dir!r} is not a readable folder') from e
  with _quiet():
    builder = _find_builder(name, data_dir)
    if isinstance(builder, digits.Digits):
      _prepare(builder)
  if not builder.info.splits:
    raise _not_prepared(name, builder)
  return _open_tfds(name, builder)


def _find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  first, _, rest = name.partition(':')
  # 'huggingface:mnist' asks the network; 'mnist:3.0.1' is a version.
  has_name_space = rest[:1].isalpha()
  try:
    if has_name_space:
      raise tfds.core.DatasetNotFoundError(name)
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as e:
    known = tfds.list_builders(with_community_datasets=False)
    base = (rest if has_name_space else first).partition('/')[0]
    nearest = difflib.get_close_matches(base, known)
    raise errors.UserError(
      f'unknown data set {name!r}; nearest names: {", ".join(nearest) or "none"}; '
      f"allowed: 'folder:<path>' or a tensorflow-datasets name"
    ) from e
  except (ValueError, TypeError) as e:  # A malformed name, an unknown configuration.
    reason = ' '.join(str(e).split())[:600]
    raise errors.UserError(f'cannot open data set {name!r}: {reason}') from e


def _not_prepared(name: str, builder: tfds.core.DatasetBuilder) -> errors.UserError:
  """Returns the error that says how to prepare a data set.

  The command is tensorflow-datasets' own as a line of Python: `tfds build` imports
  packages, apache-beam and mlcroissant, that cannot be installed beside ours.
  """
  root = builder.data_dir_root
  archives = ''
  if files := MANUAL_ARCHIVES.get(builder.name):
    archives = (
      f'put {" and ".join(files)} (image-net.org, after registration) into '
      f'{root}/downloads/manual and '
    )
  call = f'tfds.builder({name!r}, data_dir={str(root)!r}).download_and_prepare()'
  return errors.UserError(
    f'data set {name!r} is not prepared in {root}; {archives}prepare it with: '
    f'{sys.executable} -c "import tensorflow_datasets as tfds; {call}" (or, where '
    f'apache-beam and mlcroissant are installed, tfds build {name} --data_dir={root})'
  )


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes the embedded data set to its data_dir unless it is there."""
  try:
    # Without this tensorflow-datasets may ask Google Cloud for a prepared copy.
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=offline)
  except OSError as e:
    # Another process that starts at the same time may have been faster.
    if not builder.is_prepared():
      raise errors.UserError(
        f'cannot write data set {builder.name!r} to {builder.data_dir_root}: '
        f'{e.strerror or e}; data_dir must be a writable folder'
      ) from e
    builder.info.read_from_directory(builder.data_dir)


def _open_tfds(name: str, builder: tfds.core.DatasetBuilder) -> Dataset:
  """Returns the handle of a prepared tensorflow-datasets builder."""
  info = builder.info
  features = dict(info.features.items()) if hasattr(info.features, 'items') else {}
  image, label = features.get('image'), features.get('label')
  if (
    not isinstance(image, tfds.features.Image)
    or image.np_dtype != np.uint8
    or not isinstance(label, tfds.features.ClassLabel)
  ):
    raise errors.UserError(
      f'data set {name!r} needs the features image: Image(uint8) and label: '
      f'ClassLabel, but has {" ".join(str(features or info.features).split())}'
    )
  if info.file_format != tfds.core.FileFormat.TFRECORD:
    raise errors.UserError(
      f'data set {name!r} is stored as {info.file_format.value}; allowed: tfrecord, '
      'the default of tensorflow-datasets (prepare it again, in another data_dir)'
    )

  def spans_fn(split):
    try:
      files = info.splits[split].file_instructions
    except (ValueError, KeyError) as e:
      raise _unknown_split(name, split, info.splits) from e
    return [
      Span(f.filename, f.skip, f.examples_in_shard - f.skip if f.takes_all else f.take)
      for f in files
    ]

  def read_fn(spans):
    def read_span(span):
      records = tf.data.TFRecordDataset(span.path, buffer_size=READ_BYTES)
      return records.skip(span.skip).take(span.take)

    # One file at a time: `interleave` would keep whole files in memory to read the next
    # ones ahead in this order.
    return spans.flat_map(read_span)

  def parse_fn(record):
    undecoded = {'image': tfds.decode.SkipDecoding()}
    example = info.features.deserialize_example(record, decoders=undecoded)
    # What ImageNet and its relatives call the name; other data have none.
    return example['image'], example['label'], example.get('file_name', '')

  return Dataset(name, tuple(label.names), spans_fn, read_fn, parse_fn)


def _open_folder(name: str) -> Dataset:
  """Returns the handle of a folder of image files, read by tfds.ImageFolder's rules."""
  root = os.path.expanduser(name.removeprefix(FOLDER_PREFIX))
  expected = f'expected {root}/<split>/<class>/*.jpg, *.jpeg or *.png'
  try:
    info = tfds.ImageFolder(root).info
    # ImageFolder takes every folder for a class, also `annotations/xml`: a class here
    # is one that has images. And it can read a split only as a whole, so that the
    # files are listed here, to be shared and skipped by name.
    folders = info.features['label'].names
    files = {split: _list_images(root, split, folders) for split in info.splits}
  except (OSError, tf.errors.OpError) as e:
    raise errors.UserError(f'cannot read folder {root!r}: {expected}') from e
  files = {split: paths for split, paths in files.items() if paths}
  if not files:
    lack = 'images in its class folders' if folders else 'class folders'
    raise errors.UserError(f'folder {root!r} has no {lack}: {expected}')
  classes = {s: {path.split('/')[-2] for path in p} for s, p in files.items()}
  class_names = sorted(set().union(*classes.values()))
  for split, present in classes.items():
    if missing := [c for c in class_names if c not in present]:
      logging.warning(
        'folder %s: split %r has no image of %d of the %d classes: %s',
        root,
        split,
        len(missing),
        len(class_names),
        ', '.join(missing[:10]),
      )

  def spans_fn(split):
    if split not in files:
      raise _unknown_split(name, split, files)
    return [Span(path, 0, 1) for path in files[split]]

  def read_fn(spans):
    return spans.map(lambda span: span.path)  # The record of a file: its path.

  def parse_fn(path):
    label = tf.argmax(tf.equal(class_names, tf.strings.split(path, '/')[-2]))
    return tf.io.read_file(path), label, path

  return Dataset(name, tuple(class_names), spans_fn, read_fn, parse_fn)


def _list_images(root: str, split: str, folders: list[str]) -> list[str]:
  """Lists a split's image files in a fixed, shuffled order.

  Shuffled because hosts share the list in contiguous runs: each gets every class.
  """
  paths = [
    f'{root}/{split}/{folder}/{file}'
    for folder in folders
    if tf.io.gfile.isdir(f'{root}/{split}/{folder}')
    for file in sorted(tf.io.gfile.listdir(f'{root}/{split}/{folder}'))
    if file.lower().endswith(IMAGE_SUFFIXES)
  ]
  random.Random(split).shuffle(paths)
  return paths


def _unknown_split(name, split, known) -> errors.UserError:
  return errors.UserError(
    f'unknown split {split!r} of data set {name!r}; allowed: {", ".join(sorted(known))}'
  )


@contextlib.contextmanager
def _quiet():
  """Hides the progress bars and notes of tensorflow-datasets; errors still raise."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      with contextlib.redirect_stderr(io.StringIO()):
        yield
  finally:
    logging.set_verbosity(verbosity)
