"""What a label means: the classes of a data set among those of a network."""

import functools
import pathlib

import numpy as np

from advprop_jax import errors

NUM_LISTED = 10  # So many names stand in a message.


def columns(
  data_classes: tuple[str, ...], model_classes: tuple[str, ...], *, data_name: str
) -> np.ndarray | None:
  """Returns which logit of a network belongs to each label of a data set, by name.

  Args:
    data_classes: names of the data set's labels, in their order, D of them.
    model_classes: names of the network's logits, in their order.
    data_name: of the data set, for the message.

  Returns:
    int32 [D]; None if the names are the same in the same order.

  Raises:
    UserError: the data set has classes that the network does not know.
  """
  if data_classes == model_classes:
    return None
  place = {name: i for i, name in enumerate(model_classes)}
  if unknown := [name for name in data_classes if name not in place]:
    raise errors.UserError(
      f'{data_name} is another data set: the network does not know {len(unknown)} of '
      f'its {len(data_classes)} classes: {list_names(unknown)}; allowed: some or all '
      f'of {len(model_classes)}: {list_names(model_classes)}'
    )
  return np.array([place[name] for name in data_classes], np.int32)


def imagenet_synsets() -> tuple[str, ...]:
  """Returns ImageNet's 1,000 classes in the order of their labels.

  They are WordNet's synsets ('n01440764'), also the names of the classes in
  tensorflow-datasets' `imagenet2012` and of the folders in ImageNet's archives.
  """
  return tuple(_imagenet_names())


def display_name(class_name: str) -> str:
  """Returns what people call a class: 'tench' for 'n01440764'.

  Two synsets may have one name, as the bird and the machine 'crane' have, so that it
  is for display only.

  Args:
    class_name: of any data set; what is no class of ImageNet is returned as it is.
  """
  names = _imagenet_names().get(class_name)
  return names.partition(',')[0] if names else class_name


@functools.cache
def _imagenet_names() -> dict[str, str]:
  """Returns {synset: all its words, separated by commas}, in label order.

  Source: WordNet 3.0, see imagenet_LICENSE.txt.
  """
  table = pathlib.Path(__file__).with_name('imagenet.tsv').read_text('utf-8')
  return dict(line.split('\t') for line in table.splitlines())


def list_names(names: tuple[str, ...] | list[str]) -> str:
  """Returns the first names for a message."""
  rest = ', ...' if len(names) > NUM_LISTED else ''
  return ', '.join(map(repr, names[:NUM_LISTED])) + rest
