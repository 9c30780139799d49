"""Data sets by name: where the records lie and how one becomes an image and a label.

The beginning of a name says of which kind a data set is; KINDS has them all:

  folder:<path>    the user's own <path>/<split>/<class>/*.jpg, *.png and the like
  classes:<path>   the same of a folder without splits, <path>/<class>/*.jpg, as suites
                   of evaluation are distributed; its only split is 'images'
  anything else    a tensorflow-datasets builder with `image` and `label` features,
                   prepared beforehand: nothing is downloaded here. 'digits', embedded
                   in scikit-learn, and 'photographs', in foolbox, are prepared on
                   first use

A split is a list of `Span`s, runs of records in one file, so that `batches.py` can
share them among hosts, shuffle them and skip them without reading a byte.
"""

from collections.abc import Mapping
from typing import Any

from advprop_jax.input.datasets import folder, prepared
from advprop_jax.input.datasets.dataset import (
  Dataset,
  Span,
  describe_change,
  split_names,
)
from advprop_jax.input.datasets.folder import HOLDOUT, HOLDOUT_SPLITS
from advprop_jax.input.datasets.prepared import default_data_dir

__all__ = [
  'HOLDOUT',
  'HOLDOUT_SPLITS',
  'Dataset',
  'Span',
  'default_data_dir',
  'describe_change',
  'holds_out_seen_images',
  'is_folder',
  'is_same',
  'open_dataset',
  'split_names',
]

# The beginning of a name -> fn(name, data_dir, holdout_share, label_key) -> Dataset.
# The first one that fits counts.
KINDS = {
  folder.PREFIX: folder.open_folder,
  folder.CLASSES_PREFIX: folder.open_classes,
  '': prepared.open_prepared,
}


def is_folder(name: str) -> bool:
  """Returns whether a data set is a folder of the user's own files."""
  return name.startswith(folder.PREFIX)


def is_same(name: str, other: str) -> bool:
  """Returns whether two names are of one data set, however its folder is spelt."""
  if is_folder(name) and is_folder(other):
    return folder.real_path(name) == folder.real_path(other)
  return name == other


def holds_out_seen_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
  """Returns whether a config holds out images that an earlier one trained on.

  Args:
    before: the section `data` of the earlier config.
    now: the one of now.
  """
  is_more = now['holdout_share'] > before.get('holdout_share', 0.0)
  return is_more and is_same(before['name'], now['name'])


def open_dataset(
  name: str,
  *,
  data_dir: str | None = None,
  holdout_share: float = 0.0,
  label_key: str = 'label',
) -> Dataset:
  """Opens a data set by name.

  Args:
    name: 'digits', 'photographs', 'folder:<path>', 'classes:<path>' or the name of a
      tensorflow-datasets builder, with configuration and version if wanted
      ('imagenet2012', 'cifar10_1/v6:1.1.0').
    data_dir: where tensorflow-datasets keeps prepared data; None is its own default,
      ~/tensorflow_datasets. A folder ignores it.
    holdout_share: of a folder, the share of its split 'train' that becomes the split
      'holdout'.
    label_key: feature of a builder that has the label, or a sequence of labels of which
      each is right. A folder ignores it.

  Returns:
    The opened data set.

  Raises:
    UserError: the name is unknown, the data are missing or unreadable, or they hold
      something else than images with one label each.
  """
  return next(fn for start, fn in KINDS.items() if name.startswith(start))(
    name, data_dir, holdout_share, label_key
  )
