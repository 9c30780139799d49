"""Draws what an attack does, for people who look before they read."""

import functools
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from advprop_jax.evaluation import labels

CELL = 128  # Pixels of a drawn image's side.
CAPTION = 20  # Pixels of a line of text.
MARGIN = 8
NUM_COLUMNS = 8  # Of a picture of labelled images.
NAME_LENGTH = 12  # Characters of a name, so that the probability has room.
RIGHT, WRONG, PLAIN = (0, 110, 0), (190, 0, 0), (60, 60, 60)


def adversarial_grid(
  image: np.ndarray,
  adversarial: np.ndarray,
  label: np.ndarray,
  logits: np.ndarray,
  adversarial_logits: np.ndarray,
  *,
  class_names: Sequence[str],
) -> np.ndarray:
  """Draws a column per example: clean image, perturbation, adversarial image.

  Under the two images stand the class predicted and its probability, green where it is
  the true class and red where it is not; the perturbation is amplified around grey,
  by a factor that it states.

  Args:
    image: float32 [N, H, W, 3] in [0, 1].
    adversarial: like `image`.
    label: int32 [N].
    logits: float32 [N, K], for `image`.
    adversarial_logits: float32 [N, K], for `adversarial`.
    class_names: K names, see `short_name`.

  Returns:
    uint8 [H', W', 3].
  """
  # An untrained model may have logits, and then gradients, that are not finite.
  adversarial = np.nan_to_num(adversarial)
  delta = adversarial - image

  def captions(logits):
    return [_prediction(x, y, class_names) for x, y in zip(logits, label, strict=True)]

  amplify = 0.5 / max(float(np.abs(delta).max()), 1 / 255)
  rows = [
    (image, captions(logits)),
    (0.5 + amplify * delta, [(f'difference x {amplify:.0f}', PLAIN)] * len(image)),
    (adversarial, captions(adversarial_logits)),
  ]
  step_x, step_y = CELL + MARGIN, CELL + CAPTION + MARGIN
  canvas = Image.new(
    'RGB', (len(image) * step_x + MARGIN, len(rows) * step_y + MARGIN), 'white'
  )
  draw = ImageDraw.Draw(canvas)
  font = _font()
  for row, (pictures, texts) in enumerate(rows):
    for column, (picture, (text, colour)) in enumerate(
      zip(pictures, texts, strict=True)
    ):
      x, y = MARGIN + column * step_x, MARGIN + row * step_y
      canvas.paste(_enlarge(picture), (x, y))
      draw.text((x, y + CELL + 2), text, fill=colour, font=font)
  return np.asarray(canvas)


def labelled_grid(
  rows: Mapping[str, np.ndarray], label: np.ndarray, *, class_names: Sequence[str]
) -> np.ndarray:
  """Draws a column per example, its class below; at most 8 side by side.

  Args:
    rows: {name: images}, each uint8 [N, H, W, 3], drawn below each other.
    label: int32 [N].
    class_names: K names, see `short_name`.

  Returns:
    uint8 [H', W', 3].
  """
  step_x, step_y = CELL + MARGIN, CELL + CAPTION + MARGIN
  num_columns = min(len(label), NUM_COLUMNS)
  num_rows = -(-len(label) // NUM_COLUMNS) * len(rows)
  canvas = Image.new(
    'RGB', (num_columns * step_x + MARGIN, num_rows * step_y + MARGIN), 'white'
  )
  draw = ImageDraw.Draw(canvas)
  for row, (name, images) in enumerate(rows.items()):
    for i, (image, index) in enumerate(zip(images, label, strict=True)):
      block, column = divmod(i, NUM_COLUMNS)
      x = MARGIN + column * step_x
      y = MARGIN + (block * len(rows) + row) * step_y
      canvas.paste(_enlarge(image / 255), (x, y))
      text = short_name(labels.display_name(class_names[index]), int(index))
      if len(rows) > 1 and not column:
        text = f'{name}: {text}'
      draw.text((x, y + CELL + 2), text, fill=PLAIN, font=_font())
  return np.asarray(canvas)


def save(path: pathlib.Path, picture: np.ndarray):
  """Writes uint8 [H, W, 3] as a PNG."""
  Image.fromarray(picture).save(path)


def _prediction(logits, label, class_names):
  """Returns (caption, colour) for one example's logits [K]."""
  logits = np.nan_to_num(logits.astype(np.float64), posinf=1e300, neginf=-1e300)
  probabilities = np.exp(logits - logits.max())
  probabilities /= probabilities.sum()
  predicted = int(probabilities.argmax())
  name = short_name(labels.display_name(class_names[predicted]), predicted)
  caption = f'{name}  {probabilities[predicted]:.0%}'
  return caption, RIGHT if predicted == label else WRONG


def short_name(name: str, index: int) -> str:
  """Returns how a class is called in a picture: by its number, if need be.

  Args:
    name: of the class: 'great white shark, white shark, man-eater'.
    index: of the class, from 0 on.
  """
  # Pillow's font has no accents: Käfer is written Kafer. Other fonts depend on the
  # machine, and those with every script have 20 MB.
  letters = [x for x in unicodedata.normalize('NFKD', name) if not _is_accent(x)]
  short = ' '.join(''.join(letters).split(',')[0].split())[:NAME_LENGTH].strip()
  if short and all(map(_can_be_drawn, short)):
    return short
  return f'class {index}'


def _is_accent(character: str) -> bool:
  return unicodedata.category(character) == 'Mn'


@functools.cache
def _font():
  return ImageFont.load_default(13)


@functools.cache
def _can_be_drawn(character: str) -> bool:
  """Returns whether the font has a character: the others all look the same."""
  if unicodedata.category(character)[0] == 'C':  # Control characters.
    return False
  missing = bytes(_font().getmask(chr(0xFFFF)))
  return character == ' ' or bytes(_font().getmask(character)) != missing


def _enlarge(picture: np.ndarray) -> Image.Image:
  """Returns [H, W, 3] in [0, 1] as a CELL x CELL picture, every pixel visible."""
  pixels = (np.clip(picture, 0.0, 1.0) * 255).round().astype(np.uint8)
  return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)
