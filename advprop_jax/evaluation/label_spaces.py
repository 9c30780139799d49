"""How the labels of a suite of images are matched to the logits of a network: a table.

Source of the class lists: see class_lists.json.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from advprop_jax import errors
from advprop_jax.evaluation import labels

NUM_OBJECTNET_FOLDERS = 313  # Source: ObjectNet.


class LabelSpace(NamedTuple):
  """What the labels of a data set mean for a network."""

  class_names: tuple[str, ...]  # Of the labels that count, K of them.
  # Each class of the data's label, int64 [D]; -1: it does not count. None: as it is.
  new_labels: np.ndarray | None = None
  # The logit of each label, int32 [K]; the others are masked. None: all, in order.
  columns: np.ndarray | None = None
  # Where several classes are right: for each label their places among the logits that
  # count, int32 [K, L], padded with -1.
  sets: np.ndarray | None = None
  notes: tuple[str, ...] = ()  # What must be said beside the numbers.


def by_name(
  data_classes: tuple[str, ...], model_classes: tuple[str, ...], *, data_name: str
) -> LabelSpace:
  """Matches classes by their names; see `labels.columns`."""
  columns = labels.columns(data_classes, model_classes, data_name=data_name)
  return LabelSpace(data_classes, columns=columns)


def by_synset(
  data_classes: tuple[str, ...], model_classes: tuple[str, ...], *, data_name: str
) -> LabelSpace:
  """Matches ImageNet's classes by synset, or by number as ImageNetV2's folders do.

  All thousand classes count, also if there are images of some alone. The folders '0' to
  '999' sort as text, '10' before '2': they are read as numbers.
  """
  synsets = labels.imagenet_synsets()
  if any(x.isdecimal() for x in data_classes):
    new_labels = np.array([_class_number(x, data_name) for x in data_classes])
  else:
    found = labels.columns(data_classes, synsets, data_name=data_name)
    new_labels = np.arange(len(synsets)) if found is None else found
  columns = labels.columns(synsets, model_classes, data_name="ImageNet's data set")
  notes = _describe_missing(data_name, new_labels, len(synsets))
  return LabelSpace(synsets, new_labels, columns, notes=notes)


def _describe_missing(data_name: str, new_labels, num_classes: int) -> tuple[str, ...]:
  """Returns the line that says of how many classes there are no images, if any."""
  num_found = len(set(new_labels[new_labels >= 0].tolist()))
  if num_found == num_classes:
    return ()
  return (f'{data_name} has {num_found} of the {num_classes} classes',)


def _class_number(name: str, data_name: str) -> int:
  num_classes = len(labels.imagenet_synsets())
  if not name.isdecimal() or int(name) >= num_classes:
    raise errors.UserError(
      f'{data_name} has a class {name!r} among numbers; allowed: 0 to {num_classes - 1}'
    )
  return int(name)


def of_subset(
  list_name: str,
  data_classes: tuple[str, ...],
  model_classes: tuple[str, ...],
  *,
  data_name: str,
) -> LabelSpace:
  """Matches some of ImageNet's classes by synset, and masks the logits of the others.

  Images of the other classes do not count, so that the clean images of the same classes
  can be evaluated likewise.

  Args:
    list_name: key of class_lists.json.
    data_classes: names of the data set's labels, all synsets of ImageNet.
    model_classes: names of the network's logits.
    data_name: of the data set, for messages.
  """
  synsets = labels.imagenet_synsets()
  subset = tuple(synsets[i] for i in _class_lists()[list_name])
  labels.columns(
    data_classes, synsets, data_name=data_name
  )  # Unknown ones are reported.
  columns = labels.columns(subset, model_classes, data_name=data_name)
  place = {name: i for i, name in enumerate(subset)}
  new_labels = np.array([place.get(name, -1) for name in data_classes])
  if not (new_labels >= 0).any():
    raise errors.UserError(
      f'{data_name} has none of the {len(subset)} classes; allowed: a folder for each, '
      f'{subset[0]} and so on'
    )
  notes = _describe_missing(data_name, new_labels, len(subset))
  return LabelSpace(subset, new_labels, columns, notes=notes)


def by_several_labels(
  data_classes: tuple[str, ...], model_classes: tuple[str, ...], *, data_name: str
) -> LabelSpace:
  """Matches examples with several labels each: any of them is right."""
  synsets = labels.imagenet_synsets()
  new_labels = labels.columns(data_classes, synsets, data_name=data_name)
  columns = labels.columns(synsets, model_classes, data_name="ImageNet's data set")
  return LabelSpace(synsets, new_labels, columns)


def of_objectnet(
  data_classes: tuple[str, ...], model_classes: tuple[str, ...], *, data_name: str
) -> LabelSpace:
  """Matches ObjectNet's folders, of which 113 are one to three classes of ImageNet.

  A prediction is right if it is one of them; images of the other folders do not count.
  """
  if len(data_classes) != NUM_OBJECTNET_FOLDERS:
    raise errors.UserError(
      f"{data_name} has {len(data_classes)} folders with images; allowed: ObjectNet's "
      f'{NUM_OBJECTNET_FOLDERS}, whose place in the order of their names is their class'
    )
  synsets = labels.imagenet_synsets()
  columns = labels.columns(synsets, model_classes, data_name="ImageNet's data set")
  found: dict[int, list[int]] = {}
  for index, folder in _class_lists()['objectnet'].items():
    found.setdefault(folder, []).append(int(index))
  folders = sorted(found)
  sets = np.full((len(folders), max(map(len, found.values()))), -1, np.int32)
  new_labels = np.full(len(data_classes), -1)
  for label, folder in enumerate(folders):
    new_labels[folder] = label
    sets[label, : len(found[folder])] = found[folder]
  names = tuple(data_classes[folder] for folder in folders)
  return LabelSpace(names, new_labels, columns, sets=sets)


# Name, as a suite has it -> function of the data set's classes and the network's, both
# in the order of their numbers, and of the data set's name, for messages.
LABEL_SPACES: dict[str, Callable[..., LabelSpace]] = {
  'names': by_name,
  'imagenet': by_synset,
  'imagenet_a': functools.partial(of_subset, 'imagenet_a'),
  'imagenet_r': functools.partial(of_subset, 'imagenet_r'),
  'several': by_several_labels,
  'objectnet': of_objectnet,
}


def check_network(name: str, model_classes: tuple[str, ...]):
  """Raises UserError if a network lacks classes of a label space, whatever the data.

  Args:
    name: key of LABEL_SPACES.
    model_classes: names of the network's logits.
  """
  if name == 'names':  # The data say which classes they have.
    return
  needed = labels.imagenet_synsets()
  if name in ('imagenet_a', 'imagenet_r'):
    needed = tuple(needed[i] for i in _class_lists()[name])
  known = set(model_classes)
  if missing := [x for x in needed if x not in known]:
    raise errors.UserError(
      f'the network lacks {len(missing)} of the {len(needed)} classes of ImageNet '
      f'that are needed; its own {len(model_classes)} are '
      f'{labels.list_names(model_classes)}; allowed: a network with the '
      f'synsets {labels.list_names(needed)}'
    )


@functools.cache
def _class_lists():
  file = pathlib.Path(__file__).with_name('class_lists.json')
  return json.loads(file.read_text('utf-8'))
