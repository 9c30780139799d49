"""Streams: what a training method is made of."""

import functools
from typing import NamedTuple

import jax

from advprop_jax import attacks, pixels


class Stream(NamedTuple):
  """One kind of image to learn from."""

  name: str  # In the names of metrics.
  image_key: str  # The batch's key that holds the images, ...
  label_key: str  # ... and that of their labels; streams may differ in number.
  attack: attacks.Attack | None  # What is done to the images first, ...
  attack_statistics: str  # ... through 'running' or 'batch' statistics of ...
  branch: str  # ... the branch that they are attacked and trained through.
  weight: float  # Of their mean loss in the sum.

  def make_images(self, model, variables, batch, rng: jax.Array) -> jax.Array:
    """Returns the images to learn from, float32 [B, H, W, 3] in [0, 1].

    Args:
      model: what is attacked, if anything is; none of its variables change.
      variables: of the stream's branch, see `branches.variables`.
      batch: holds the stream's images, as in `pixels.py`, and labels, int32 [B].
      rng: of the attack.
    """
    image = pixels.to_unit(batch[self.image_key])
    if self.attack is None:
      return image
    logits_fn = functools.partial(
      model.apply,
      variables,
      train=False,
      use_running_average=self.attack_statistics == 'running',
    )
    return self.attack(logits_fn, image, batch[self.label_key], rng)
