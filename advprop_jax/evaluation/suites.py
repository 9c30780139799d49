"""The sets of images that a model is evaluated on, as a table."""

from typing import NamedTuple


class Suite(NamedTuple):
  """A set of images, and whether it is attacked as well."""

  data_name: str | None = None  # As `config.data.name`; None: that very data set.
  split: str | None = None  # None: `config.data.eval_split`.
  attacked: bool = False  # Whether `config.eval.attack` is evaluated on it, too.


# Name, as in 'val/clean_top1' and `config.eval.suites`, -> suite. Its classes are
# mapped to the model's by name, see `labels.py`.
SUITES = {'val': Suite(attacked=True)}
