"""A data set, opened but not read: where its records lie and how to parse one."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from advprop_jax import errors


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
    parse_fn: record -> encoded image (scalar string), label (int64; outside of [0, K):
      the example has none; int64 [L]: several) and name (scalar string, empty if it has
      none), as tf ops.
    sizes_fn: split -> {name of a file, or of all: its size in bytes}, for fingerprints.
    notes: what the user should know of the data, a line each.
    load_fn: what `parse_fn` returns as encoded image, if that is the path of a file ->
      the encoded image; None: it is that itself.
  """

  name: str
  class_names: tuple[str, ...]
  spans_fn: Callable[[str], list[Span]]
  read_fn: Callable[[tf.data.Dataset], tf.data.Dataset]
  parse_fn: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
  sizes_fn: Callable[[str], dict[str, int]] = lambda split: {}
  notes: tuple[str, ...] = ()
  load_fn: Callable[[tf.Tensor], tf.Tensor] | None = None

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

  def with_labels(
    self, new_labels: np.ndarray, class_names: tuple[str, ...]
  ) -> 'Dataset':
    """Returns the data set with other labels for its classes.

    Args:
      new_labels: int [D], for each of this data set's classes.
      class_names: one name per new label.
    """
    last = len(new_labels) - 1

    def parse_fn(record):
      encoded, label, name = self.parse_fn(record)
      is_label = (label >= 0) & (label <= last)
      mapped = tf.gather(new_labels, tf.clip_by_value(label, 0, last))
      return encoded, tf.where(is_label, tf.cast(mapped, tf.int64), -1), name

    return dataclasses.replace(self, class_names=class_names, parse_fn=parse_fn)

  def fingerprint(self, split: str) -> dict[str, int | str]:
    """Returns what tells whether a split is still the same; JSON values.

    It is made of the names of the files, their numbers of records and their sizes, not
    of their contents.
    """
    # Hosts and directories may have other names than before, and be spelt otherwise.
    spans = [(os.path.normpath(x.path), x.skip, x.take) for x in self.spans(split)]
    folder = os.path.commonpath([os.path.dirname(path) for path, *_ in spans])
    names = sorted((path.removeprefix(f'{folder}/'), *rest) for path, *rest in spans)
    sizes = sorted(self.sizes_fn(split).items())
    return {
      'num_files': len(spans),
      'num_examples': sum(take for *_, take in spans),
      'names': _digest(names),
      'sizes': _digest(sizes),
    }


def split_names(split: str) -> list[str]:
  """Returns ['train', 'test', ...] of 'train[:80%]+test': the splits, and numbers."""
  return re.split(r'\W+', split)


def describe_change(before: dict, now: dict) -> str | None:
  """Returns in a few words how two fingerprints differ; None if they do not."""
  for key, what in [('num_files', 'files'), ('num_examples', 'images')]:
    if before[key] != now[key]:
      return f'{before[key]} {what} then, {now[key]} now'
  if before['names'] != now['names']:
    return 'as many files and images, but other names'
  if before['sizes'] != now['sizes']:
    return 'the same names of files, but other sizes'
  return None


def _digest(values) -> str:
  return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def unknown_split(name: str, split: str, known) -> errors.UserError:
  """Returns the error that names the splits there are."""
  return errors.UserError(
    f'unknown split {split!r} of data set {name!r}; allowed: {", ".join(sorted(known))}'
  )
