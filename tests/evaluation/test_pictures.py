"""Tests that pictures name their classes, whatever the names are."""

import numpy as np
import pytest

from advprop_jax.evaluation import pictures


@pytest.mark.parametrize(
  'name, expected',
  [
    ('great white shark, white shark, man-eater', 'great white'),
    ('n01440764', 'n01440764'),
    ('Käfer', 'Kafer'),
    ('Ka\u0308fer', 'Kafer'),  # As macOS writes names of folders.
    ('école', 'ecole'),
    ('line\nbreak', 'line break'),
    ('猫', 'class 7'),
    ('ネコ', 'class 7'),
    ('cat \U0001f408', 'class 7'),
    ('', 'class 7'),
    (' , x', 'class 7'),
    ('\x00\x07', 'class 7'),
    ('\u202eright to left', 'class 7'),
  ],
)
def test_a_name_is_written_or_its_number(name, expected):
  assert pictures.short_name(name, 7) == expected


def test_what_cannot_be_written_would_be_boxes():
  """Two characters that a font lacks look the same; two letters do not."""
  font = pictures._font()
  boxes = [bytes(font.getmask(x)) for x in ('猫', '犬', '\U0001f408')]
  assert boxes[0] == boxes[1] == boxes[2] != bytes(font.getmask('a'))


def test_a_grid_with_such_names_is_that_of_their_numbers():
  image = np.zeros((1, 4, 4, 3), np.float32)
  label, logits = np.array([1]), np.array([[0.0, 9.0]], np.float32)
  grids = [
    pictures.adversarial_grid(image, image, label, logits, logits, class_names=names)
    for names in (('a', '猫'), ('a', 'class 1'), ('a', 'other'))
  ]
  np.testing.assert_array_equal(grids[0], grids[1])
  assert (grids[0] != grids[2]).any()


def test_labelled_images_stand_in_rows_of_eight():
  """Every image is found at its place, those of a stream below each other."""
  image = np.arange(11 * 2 * 2 * 3).reshape(11, 2, 2, 3).astype(np.uint8)
  rows = {'image': image, 'plain_image': 255 - image}
  names = [str(i) for i in range(11)]
  grid = pictures.labelled_grid(rows, np.arange(11), class_names=names)
  step_x, step_y = 136, 156  # A picture of 128 pixels, a caption, a margin.
  assert grid.shape == (4 * step_y + 8, 8 * step_x + 8, 3)
  for i in range(11):
    for row, images in enumerate(rows.values()):
      x, y = 8 + i % 8 * step_x, 8 + (i // 8 * 2 + row) * step_y
      np.testing.assert_array_equal(grid[y : y + 128 : 64, x : x + 128 : 64], images[i])
