"""Streams: what a training method is made of."""

import functools
from typing import NamedTuple

import jax

from advprop_jax import attacks, pixels


class Stream(NamedTuple):
  """One kind of image to learn from."""

  name: str  # The metrics are named after it.
  image_key: str  # The batch has the images under this key.
  label_key: str  # The batch has their labels under this key.
  attack: attacks.Attack | None  # It changes the images first; None: nothing does.
  attack_statistics: str  # The attack goes through these of the norm: running, batch.
  branch: str  # The images are attacked and trained through its norm.
  weight: float  # The sum of losses has the stream's mean loss this many times.
  attack_gradients: int = 0  # Of an image, that the attack takes.

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
