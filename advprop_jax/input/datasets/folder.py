"""Folders of the user's own image files: <root>/<split>/<class>/*.jpg."""

import os
import random

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from advprop_jax import errors
from advprop_jax.input.datasets import dataset

PREFIX = 'folder:'  # The path follows.
# What tfds.ImageFolder reads.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


def open_folder(name: str, data_dir: str | None) -> dataset.Dataset:
  """Returns the handle of a folder of image files, read by tfds.ImageFolder's rules.

  Args:
    name: 'folder:<path>', of the folder of the splits.
    data_dir: for other kinds of data sets; not used.

  Raises:
    UserError: it cannot be read, or has no images.
  """
  root = os.path.expanduser(name.removeprefix(PREFIX))
  expected = f'expected {root}/<split>/<class>/*.jpg, *.jpeg or *.png'
  try:
    info = tfds.ImageFolder(root).info
    # ImageFolder takes every folder for a class, also `annotations/xml`: a class here
    # is one that has images. And it can read a split only as a whole, so that the
    # files are listed here, to be shared and skipped by name.
    folders = info.features['label'].names
    files = {split: _list_files(root, split, folders) for split in info.splits}
  except UnicodeDecodeError as e:
    raise errors.UserError(
      f'a name in folder {root!r} is not UTF-8: {e.object!r}; allowed: names that are'
    ) from e
  except (OSError, tf.errors.OpError) as e:
    raise errors.UserError(f'cannot read folder {root!r}: {expected}') from e
  others = [p for paths in files.values() for p in paths if not _is_image(p)]
  files = {s: [p for p in paths if _is_image(p)] for s, paths in files.items()}
  files = {split: paths for split, paths in files.items() if paths}
  for split, paths in files.items():
    # Hosts share the list in contiguous runs: each gets every class.
    random.Random(split).shuffle(paths)
  if not files:
    lack = 'images in its class folders' if folders else 'class folders'
    raise errors.UserError(f'folder {root!r} has no {lack}: {expected}')
  classes = {s: {path.split('/')[-2] for path in p} for s, p in files.items()}
  class_names = sorted(set().union(*classes.values()))
  if others:
    logging.warning(
      'folder %s: passed over, since not named %s: %d files, for example %s',
      root,
      ', '.join(f'*{suffix}' for suffix in IMAGE_SUFFIXES),
      len(others),
      others[0],
    )
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
      raise dataset.unknown_split(name, split, files)
    return [dataset.Span(path, 0, 1) for path in files[split]]

  def read_fn(spans):
    return spans.map(lambda span: span.path)  # The record of a file: its path.

  def parse_fn(path):
    label = tf.argmax(tf.equal(class_names, tf.strings.split(path, '/')[-2]))
    return tf.io.read_file(path), label, path

  def sizes_fn(split):
    if '://' in root:  # A bucket would be asked for every single file.
      return {}
    return {os.path.relpath(path, root): _size(path) for path in files[split]}

  return dataset.Dataset(
    name, tuple(class_names), spans_fn, read_fn, parse_fn, sizes_fn
  )


def _size(path: str) -> int:
  """Returns the bytes of a file, -1 for one that cannot be read."""
  try:
    return os.stat(path).st_size
  except OSError:
    return -1


def _is_image(path: str) -> bool:
  return path.lower().endswith(IMAGE_SUFFIXES)


def _list_files(root: str, split: str, folders: list[str]) -> list[str]:
  """Lists the files of a split's class folders in a fixed order."""
  return [
    f'{root}/{split}/{folder}/{file}'
    for folder in folders
    if tf.io.gfile.isdir(f'{root}/{split}/{folder}')
    for file in sorted(tf.io.gfile.listdir(f'{root}/{split}/{folder}'))
  ]
