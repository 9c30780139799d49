"""Tests the errors on corrupted images against published numbers."""

import numpy as np
import pytest

from advprop_jax.evaluation import corruption_error, suites

# Mean error of a ResNet-50 on each corruption, in the order of ALEXNET; its mCE is
# 76.4. Source: RobustBench, on 5,000 images.
RESNET_50 = (
  *(0.685, 0.709, 0.740, 0.611, 0.732, 0.619, 0.637, 0.679, 0.627, 0.545),
  *(0.322, 0.609, 0.550, 0.551, 0.462),
)


def cells_of(errors, *, spread=0.0, clean=None):
  """Returns the scores of all cells; the severities lie around the mean error."""
  cells = {
    f'{name}_{severity}': {'top1': 1 - error - spread * (severity - 3)}
    for name, error in zip(corruption_error.ALEXNET, errors, strict=True)
    for severity in corruption_error.SEVERITIES
  }
  return cells | {'clean': None if clean is None else {'top1': clean}}


def test_alexnet_is_a_hundred():
  errors = corruption_error.ALEXNET.values()
  clean = 1 - corruption_error.ALEXNET_CLEAN
  found = suites.of_imagenet_c(cells_of(errors, spread=0.01, clean=clean))
  assert found['mce'] == pytest.approx(100, abs=1e-9)
  assert found['relative_mce'] == pytest.approx(100, abs=1e-9)
  assert all(x == pytest.approx(100, abs=1e-9) for x in found['ce'].values())
  assert 1 - found['top1'] == pytest.approx(0.78899, abs=5e-6)  # Published.


def test_a_resnet_50_has_its_published_mce():
  found = suites.of_imagenet_c(cells_of(RESNET_50, spread=0.05))
  assert round(found['mce'], 1) == 76.4
  assert found['top1'] == pytest.approx(1 - 0.6052, abs=1e-4)
  assert 'relative_mce' not in found  # Without clean images.


def test_the_relative_error_is_that_beyond_the_clean_one():
  cells = cells_of([0.5] * 15, clean=0.75)
  found = suites.of_imagenet_c(cells)['relative_mce']
  expected = [25 / (x - 0.4348) for x in corruption_error.ALEXNET.values()]
  assert found == pytest.approx(np.mean(expected))


@pytest.mark.parametrize('missing', ['fog_3', 'gaussian_noise_1'])
def test_without_a_cell_there_is_no_mean(missing):
  cells = cells_of(RESNET_50) | {missing: None}
  found = suites.of_imagenet_c(cells)
  assert found['mce'] is None and 'top1' not in found
  assert len(found['ce']) == 14 and missing[:-2] not in found['by_corruption']


def test_extra_corruptions_are_in_no_mean():
  cells = cells_of(RESNET_50)
  extra = {
    f'{name}_{severity}': {'top1': 0.25}
    for name in corruption_error.EXTRA
    for severity in corruption_error.SEVERITIES
  }
  before, after = suites.of_corruptions(cells), suites.of_corruptions(cells | extra)
  assert after['top1'] == before['top1'] and after['extra_top1'] == 0.25
  assert 'mce' not in after
  assert len(after['by_corruption']) == 19


def test_the_suites_of_corruptions_have_their_cells():
  assert len(suites.SUITES['corruptions'].cells) == 95
  for name in ('c', 'c_tfds'):
    assert len(suites.SUITES[name].cells) == 76
  assert not set(suites.SUITES['c_extra'].cells) & set(suites.SUITES['c'].cells)
