"""A data set, opened but not read: where its records lie and how to parse one."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

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


def unknown_split(name: str, split: str, known) -> errors.UserError:
  """Returns the error that names the splits there are."""
  return errors.UserError(
    f'unknown split {split!r} of data set {name!r}; allowed: {", ".join(sorted(known))}'
  )
