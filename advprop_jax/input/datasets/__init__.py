"""Data sets by name: where the records lie and how one becomes an image and a label.

`open_dataset` knows three kinds of name:

  digits           embedded in scikit-learn; prepared on first use, no download
  folder:<path>    the user's own <path>/<split>/<class>/*.jpg, *.jpeg or *.png
  anything else    a tensorflow-datasets builder with `image` and `label` features,
                   prepared beforehand: nothing is downloaded here

A split is a list of `Span`s, runs of records in one file, so that `batches.py` can
share them among hosts, shuffle them and skip them without reading a byte.
"""

from advprop_jax.input.datasets import folder, prepared
from advprop_jax.input.datasets.dataset import Dataset, Span

__all__ = ['Dataset', 'Span', 'open_dataset']

FOLDER_PREFIX = 'folder:'


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
    return folder.open_folder(name, name.removeprefix(FOLDER_PREFIX))
  return prepared.open_prepared(name, data_dir)
