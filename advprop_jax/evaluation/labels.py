"""What a label means: the classes of a data set among those of a network."""

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
      f'its {len(data_classes)} classes: {_list(unknown)}; allowed: some or all of '
      f'{len(model_classes)}: {_list(model_classes)}'
    )
  return np.array([place[name] for name in data_classes], np.int32)


def _list(names) -> str:
  rest = ', ...' if len(names) > NUM_LISTED else ''
  return ', '.join(map(repr, names[:NUM_LISTED])) + rest
