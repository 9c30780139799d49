"""Folders of the user's own image files: <root>/<split>/<class>/*.jpg."""

import collections
import hashlib
import os
import random

import tensorflow as tf
import tensorflow_datasets as tfds

from advprop_jax import errors
from advprop_jax.input import suffixes
from advprop_jax.input.datasets import dataset

PREFIX = 'folder:'  # The path follows.
CLASSES_PREFIX = 'classes:'
# What ImageMagick turns into one of them.
CONVERTIBLE = ('.gif', '.tif', '.tiff', '.heic', '.heif', '.avif', '.jp2', '.ppm')
TRAIN, HOLDOUT = HOLDOUT_SPLITS = 'train', 'holdout'
IMAGES = 'images'  # The split of a folder without splits; 'all' means it, too.


def open_folder(
  name: str, data_dir: str | None, holdout_share: float, label_key: str
) -> dataset.Dataset:
  """Returns the handle of a folder of image files, read by tfds.ImageFolder's rules.

  Args:
    name: 'folder:<path>', of the folder of the splits.
    data_dir: for other kinds of data sets; not used.
    holdout_share: of the images of the split 'train' that are the split 'holdout'.
    label_key: as `data_dir`.

  Raises:
    UserError: it cannot be read, has no images, or none to hold out.
  """
  # A shell's completion leaves a slash at the end.
  name = name.rstrip('/') if name != f'{PREFIX}/' else name
  root = os.path.expanduser(name.removeprefix(PREFIX))
  expected = f'expected {root}/<split>/<class>/*.jpg, *.png or the like'
  try:
    info = tfds.ImageFolder(root).info
    # ImageFolder takes every folder for a class, also `annotations/xml`: a class here
    # is one that has images. And it can read a split only as a whole, so that the
    # files are listed here, to be shared and skipped by name.
    folders = [x for x in info.features['label'].names if not suffixes.is_hidden(x)]
    splits = [x for x in info.splits if not suffixes.is_hidden(x)]
    files = {split: _list_files(f'{root}/{split}', folders) for split in splits}
  except UnicodeDecodeError as e:
    raise errors.UserError(
      f'a name in folder {root!r} is not UTF-8: {e.object!r}; allowed: names that are'
    ) from e
  except (OSError, tf.errors.OpError) as e:
    raise errors.UserError(f'cannot read folder {root!r}: {expected}') from e
  others = [p for paths in files.values() for p in paths if not suffixes.is_image(p)]
  files = {s: [p for p in paths if suffixes.is_image(p)] for s, paths in files.items()}
  if holdout_share:
    files |= _hold_out(name, files, holdout_share)
  lack = 'images in its class folders' if folders else 'class folders'
  return _create(name, root, files, others, lack=f'{lack}: {expected}')


def open_classes(
  name: str, data_dir: str | None, holdout_share: float, label_key: str
) -> dataset.Dataset:
  """Returns the handle of a folder with a folder of images for each class.

  Args:
    name: 'classes:<path>'; the only split is 'images', or 'all'.
    data_dir: for other kinds of data sets; not used.
    holdout_share: likewise.
    label_key: likewise.

  Raises:
    UserError: it cannot be read, or has no images.
  """
  root = os.path.expanduser(name.removeprefix(CLASSES_PREFIX)).rstrip('/')
  expected = f'expected {root}/<class>/*.jpg, *.png or the like'
  try:
    folders = sorted(x.rstrip('/') for x in tf.io.gfile.listdir(root))
    paths = _list_files(root, [x for x in folders if not suffixes.is_hidden(x)])
  except (OSError, tf.errors.OpError, UnicodeDecodeError) as e:
    raise errors.UserError(f'cannot read folder {root!r}: {expected}') from e
  others = [path for path in paths if not suffixes.is_image(path)]
  files = {IMAGES: [path for path in paths if suffixes.is_image(path)]}
  return _create(name, root, files, others, lack=f'images: {expected}')


def _create(
  name: str, root: str, files: dict[str, list[str]], others: list[str], *, lack: str
) -> dataset.Dataset:
  """Returns the handle of the image files of each split."""
  files = {split: paths for split, paths in files.items() if paths}
  for split, paths in files.items():
    # Hosts share the list in contiguous runs: each gets every class.
    random.Random(split).shuffle(paths)
  if not files:
    raise errors.UserError(f'folder {root!r} has no {lack}')
  classes = {s: {path.split('/')[-2] for path in p} for s, p in files.items()}
  class_names = sorted(set().union(*classes.values()))
  notes = _describe_others(root, others)
  for split, present in classes.items():
    if missing := [c for c in class_names if c not in present]:
      notes.append(
        f'folder {root}: split {split!r} has no image of {len(missing)} of the '
        f'{len(class_names)} classes: {", ".join(missing[:10])}'
      )

  def paths_of(split):
    try:
      parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(
        {
          x: tfds.core.SplitInfo(name=x, shard_lengths=[len(paths)], num_bytes=0)
          for x, paths in files.items()
        }
      )
    except (ValueError, AssertionError) as e:
      error = dataset.unknown_split(name, split, files)
      if HOLDOUT in dataset.split_names(split) and HOLDOUT not in files:
        error = errors.UserError(f'{error}; {HOLDOUT} with data.holdout_share=0.1')
      raise error from e
    return [path for x in parts for path in files[x.splitname][x.from_ : x.to]]

  def spans_fn(split):
    return [dataset.Span(path, 0, 1) for path in paths_of(split)]

  def read_fn(spans):
    return spans.map(lambda span: span.path)  # The record of a file: its path.

  def parse_fn(path):
    label = tf.argmax(tf.equal(class_names, tf.strings.split(path, '/')[-2]))
    return path, label, path

  def sizes_fn(split):
    if '://' in root:  # A bucket would be asked for every single file.
      return {}
    return {path.removeprefix(f'{root}/'): _size(path) for path in paths_of(split)}

  return dataset.Dataset(
    name,
    tuple(class_names),
    spans_fn,
    read_fn,
    parse_fn,
    sizes_fn,
    tuple(notes),
    load_fn=tf.io.read_file,
  )


def real_path(name: str) -> str:
  """Returns where a folder lies; of one in a bucket, the address."""
  path = os.path.expanduser(name.removeprefix(PREFIX)).rstrip('/')
  return path if '://' in path else os.path.realpath(path or '/')


def _hold_out(
  name: str, files: dict[str, list[str]], share: float
) -> dict[str, list[str]]:
  """Returns the two splits that 'train' is divided into.

  An image belongs to one of them by the hash of its class and its name, so that it
  stays there when others come or go.
  """
  if HOLDOUT in files or not files.get(TRAIN):
    raise errors.UserError(
      f'data.holdout_share is {share}, and data set {name!r} has the splits '
      f'{", ".join(sorted(files)) or "none"}; allowed: 0, or a folder with a split '
      f'{TRAIN!r} and none called {HOLDOUT!r}'
    )

  def is_held_out(path):
    words = '/'.join(path.split('/')[-2:])
    digest = hashlib.sha256(words.encode()).digest()
    return int.from_bytes(digest[:8], 'big') < share * 2**64

  result: dict[str, list[str]] = {TRAIN: [], HOLDOUT: []}
  for path in files[TRAIN]:
    result[HOLDOUT if is_held_out(path) else TRAIN].append(path)
  for split, paths in result.items():
    if not paths:
      raise errors.UserError(
        f'data.holdout_share is {share}, by which split {split!r} of data set '
        f'{name!r} has none of the {len(files[TRAIN])} images; allowed: a share that '
        'divides them'
      )
  return result


def _describe_others(root: str, paths: list[str]) -> list[str]:
  """Returns the line that says which files are passed over, if there are any."""
  if not paths:
    return []
  endings = collections.Counter(
    os.path.splitext(path)[1].lower() or 'no ending' for path in paths
  )
  counts = ', '.join(f'{count} {name}' for name, count in endings.most_common(10))
  convertible = [x for x, _ in endings.most_common() if x in CONVERTIBLE]
  hint = f': magick mogrify -format png *{convertible[0]}' if convertible else ''
  return [
    f'folder {root}: {len(paths)} files are passed over, by their names no images that '
    f'can be read ({counts}), for example {paths[0]}; read are '
    f'{", ".join(suffixes.IMAGE_SUFFIXES)}; other images must be converted, as by '
    f'ImageMagick{hint}'
  ]


def _size(path: str) -> int:
  """Returns the bytes of a file, -1 for one that cannot be read."""
  try:
    return os.stat(path).st_size
  except OSError:
    return -1


def _list_files(folder: str, classes: list[str]) -> list[str]:
  """Lists the files in the class folders of a folder, in a fixed order."""
  return [
    f'{folder}/{name}/{file}'
    for name in classes
    if tf.io.gfile.isdir(f'{folder}/{name}')
    for file in sorted(tf.io.gfile.listdir(f'{folder}/{name}'))
    if not suffixes.is_hidden(file)
  ]
