"""Data that tensorflow-datasets has prepared; nothing is downloaded here."""

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from advprop_jax import errors
from advprop_jax.input import cores
from advprop_jax.input.datasets import dataset, digits, fashion_mnist, photographs

# Large pieces suit network storage; a record of ImageNet is about 0.1 MB.
READ_BYTES = 8 << 20
# Files that are read at a time, which changes no order; more than there are cores are
# slower. The later ones are kept in memory until it is their turn, so that larger files
# are read one by one. ImageNet's 1,024 have 0.14 GB each.
FILES_AT_A_TIME, MAX_FILE_BYTES = min(8, cores.count()), 256 << 20
# Of an image that has several. ImageNet-ReaL's have nine at most.
MAX_LABELS = 10
# What must be fetched by hand, after registration at image-net.org.
MANUAL_ARCHIVES = {
  'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
  'imagenet2012_real': ('ILSVRC2012_img_val.tar',),
  'imagenet2012_corrupted': ('ILSVRC2012_img_val.tar',),
}


def default_data_dir() -> str:
  """Returns where tensorflow-datasets keeps prepared data if nothing is said."""
  return os.path.expanduser(tfds.core.constants.DATA_DIR)


@contextlib.contextmanager
def _known_features():
  """Refuses features of other packages than tensorflow-datasets.

  It would import the module that a features.json names: a data_dir, which a config.json
  may name, could hold a program.
  """
  connector = tfds.features.FeatureConnector
  look_up = connector.__dict__['cls_from_name']

  def look_up_known(cls, name):
    is_imported = name in cls._registered_features  # noqa: SLF001
    if not is_imported and not name.startswith('tensorflow_datasets.'):
      raise ValueError(f'its features.json names {name!r}, which is no known feature')
    return look_up.__get__(None, cls)(name)

  connector.cls_from_name = classmethod(look_up_known)
  try:
    yield
  finally:
    connector.cls_from_name = look_up


@_known_features()
def open_prepared(
  name: str, data_dir: str | None, holdout_share: float, label_key: str
) -> dataset.Dataset:
  """Opens what a tensorflow-datasets builder has prepared; see `open_dataset`."""
  if holdout_share:
    raise errors.UserError(
      f'data.holdout_share is {holdout_share} and data set {name!r} is no folder; '
      "allowed: 0, and parts of its splits, 'train[:90%]' and 'train[90%:]'"
    )
  try:
    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    if data_dir is not None and tf.io.gfile.exists(data_dir):
      tf.io.gfile.listdir(data_dir)
  except tf.errors.OpError as e:
    raise errors.UserError(f'data_dir {data_dir!r} is not a readable folder') from e
  with _quiet():
    builder = _find_builder(name, data_dir)
    if isinstance(builder, (digits.Digits, photographs.Photographs)):
      # Without this tensorflow-datasets may ask Google Cloud for a prepared copy.
      offline = tfds.download.DownloadConfig(try_download_gcs=False)
      _prepare(builder, lambda: builder.download_and_prepare(download_config=offline))
    elif builder.name == fashion_mnist.NAME:
      _prepare(builder, lambda: fashion_mnist.prepare(builder))
  if not builder.info.splits:
    raise _not_prepared(name, builder)
  return _open_builder(name, builder, label_key)


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
    if os.path.isdir(os.path.expanduser(name)):
      nearest = [f'folder:{name}']
    raise errors.UserError(
      f'unknown data set {name!r}; nearest names: {", ".join(nearest) or "none"}; '
      f"allowed: 'folder:<path>' or a tensorflow-datasets name"
    ) from e
  except (ValueError, TypeError) as e:  # A malformed name, an unknown configuration.
    # Of a malformed name, without ten lines of grammar.
    reason = ' '.join(str(e).split())[:600].partition(' The builder name string')[0]
    raise errors.UserError(
      f'cannot open data set {name!r}: {reason.rstrip(".")}; allowed: '
      "'folder:<path>' or a tensorflow-datasets name"
    ) from e


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
  if builder.name == fashion_mnist.NAME:
    archives = f"install Debian's package {fashion_mnist.PACKAGE}, or "
  call = f'tfds.builder({name!r}, data_dir={str(root)!r}).download_and_prepare()'
  return errors.UserError(
    f'data set {name!r} is not prepared in {root}; {archives}prepare it with: '
    f'{sys.executable} -c "import tensorflow_datasets as tfds; {call}" (or, where '
    f'apache-beam and mlcroissant are installed, tfds build {name} --data_dir={root})'
  )


def _prepare(builder: tfds.core.DatasetBuilder, prepare: Callable[[], Any]) -> None:
  """Writes a data set of this machine to its data_dir unless it is there."""
  try:
    prepare()
  except OSError as e:
    # Another process that starts at the same time may have been faster.
    if not builder.is_prepared():
      raise errors.UserError(
        f'cannot write data set {builder.name!r} to {builder.data_dir_root}: '
        f'{e.strerror or e}; data_dir must be a writable folder'
      ) from e
    builder.info.read_from_directory(builder.data_dir)


def _open_builder(
  name: str, builder: tfds.core.DatasetBuilder, label_key: str
) -> dataset.Dataset:
  """Returns the handle of a prepared tensorflow-datasets builder."""
  info = builder.info
  features = dict(info.features.items()) if hasattr(info.features, 'items') else {}
  image, label = features.get('image'), features.get(label_key)
  # Several labels of an image are a sequence, which only evaluation can take.
  has_several = False
  if label_key != 'label' and isinstance(label, tfds.features.Sequence):
    has_several, label = True, label.feature
  if (
    not isinstance(image, tfds.features.Image)
    or image.np_dtype != np.uint8
    or not isinstance(label, tfds.features.ClassLabel)
  ):
    raise errors.UserError(
      f'data set {name!r} needs the features image: Image(uint8) and {label_key}: '
      f'ClassLabel, but has {" ".join(str(features or info.features).split())}'
    )
  if info.file_format != tfds.core.FileFormat.TFRECORD:
    raise errors.UserError(
      f'data set {name!r} is stored as {info.file_format.value}; allowed: tfrecord, '
      'the default of tensorflow-datasets (prepare it again, in another data_dir)'
    )

  shards = [x for split in info.splits.values() for x in split.shard_lengths]
  longest = max(shards, default=1)  # In records.
  # In bytes, on average: those of a split are equally long, up to one record.
  largest = max(x.num_bytes / max(1, x.num_shards) for x in info.splits.values())

  # What ImageNet and its relatives call the name; other data have none.
  named = isinstance(features.get('file_name'), tfds.features.Text)
  notes: tuple[str, ...] = ()
  if 'file_name' in features and not named:
    kind = type(features['file_name']).__name__
    notes = (
      f'data set {name}: the feature file_name is a {kind}, not Text: images that '
      'cannot be decoded are counted, not named',
    )

  def spans_fn(split):
    try:
      files = info.splits[split].file_instructions
    # tensorflow-datasets raises a RuntimeError for a part of all splits, 'all[:5]'.
    except (ValueError, KeyError, RuntimeError) as e:
      raise dataset.unknown_split(name, split, info.splits) from e
    return [
      dataset.Span(
        f.filename, f.skip, f.examples_in_shard - f.skip if f.takes_all else f.take
      )
      for f in files
    ]

  def read_fn(spans):
    def read_span(span):
      records = tf.data.TFRecordDataset(span.path, buffer_size=READ_BYTES)
      return records.skip(span.skip).take(span.take)

    if largest > MAX_FILE_BYTES:
      return spans.flat_map(read_span)
    # Blocks as long as a file: the order is that of one file after the other.
    return spans.interleave(
      read_span,
      cycle_length=FILES_AT_A_TIME,
      block_length=longest,
      num_parallel_calls=FILES_AT_A_TIME,
      deterministic=True,
    )

  def parse_fn(record):
    undecoded = {'image': tfds.decode.SkipDecoding()}
    example = info.features.deserialize_example(record, decoders=undecoded)
    label = example[label_key]
    if has_several:
      label = label[:MAX_LABELS]
      label = tf.pad(label, [[0, MAX_LABELS - tf.size(label)]], constant_values=-1)
      label = tf.ensure_shape(label, [MAX_LABELS])
    return example['image'], label, example['file_name'] if named else ''

  def sizes_fn(split):
    # Of whole splits: asking a bucket for a thousand files takes a minute.
    words = dataset.split_names(split)
    return {x: int(s.num_bytes) for x, s in info.splits.items() if x in words}

  return dataset.Dataset(
    name, tuple(label.names), spans_fn, read_fn, parse_fn, sizes_fn, notes
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
