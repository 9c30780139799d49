"""The AdvProp configs by size, for their controls and variants: `file.py:b7`."""

from configs import (
  arguments,
  effnet_b0_advprop,
  effnet_b1_advprop,
  effnet_b2_advprop,
  effnet_b3_advprop,
  effnet_b4_advprop,
  effnet_b5_advprop,
  effnet_b6_advprop,
  effnet_b7_advprop,
  effnet_b8_advprop,
)

SIZES = {
  'b0': effnet_b0_advprop,
  'b1': effnet_b1_advprop,
  'b2': effnet_b2_advprop,
  'b3': effnet_b3_advprop,
  'b4': effnet_b4_advprop,
  'b5': effnet_b5_advprop,
  'b6': effnet_b6_advprop,
  'b7': effnet_b7_advprop,
  'b8': effnet_b8_advprop,
}


def parse(argument: str | None, *, allowed) -> tuple[str, set[str]]:
  """Returns the size that an argument names, and its other words.

  Raises:
    ValueError: it names none or several, or a word is unknown.
  """
  words = arguments.parse(argument, allowed=(*SIZES, *allowed))
  size = arguments.choose(words, 'size', SIZES)
  return size, words - {size}


def strength(epsilon: int) -> dict:
  """Returns values of an attack, from the radius in 1/255. Source: AdvProp, section 5.

  There are epsilon + 1 steps of 1/255, with epsilon 1 one step.
  """
  return {'epsilon': epsilon / 255, 'num_steps': 1 if epsilon == 1 else epsilon + 1}


def get_config(size: str):
  """Returns AdvProp's config of a size."""
  return SIZES[size].get_config()
