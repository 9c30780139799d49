"""The errors on corrupted images in the papers' terms: CE, mCE, relative mCE.

All are in percent, relative to AlexNet's. Source: Hendrycks and Dietterich, 2019;
google-research/augmix, `imagenet.py`; google-research/robustness_metrics.
"""

from collections.abc import Mapping

SEVERITIES = (1, 2, 3, 4, 5)
# Mean error of AlexNet over the severities. Source: google-research/augmix.
ALEXNET = {
  'gaussian_noise': 0.886428,
  'shot_noise': 0.894468,
  'impulse_noise': 0.922640,
  'defocus_blur': 0.819880,
  'glass_blur': 0.826268,
  'motion_blur': 0.785948,
  'zoom_blur': 0.798360,
  'snow': 0.866816,
  'frost': 0.826572,
  'fog': 0.819324,
  'brightness': 0.564592,
  'contrast': 0.853204,
  'elastic_transform': 0.646056,
  'pixelate': 0.717840,
  'jpeg_compression': 0.606500,
}
# Of AlexNet on clean images. Source: robustness_metrics, `imagenet_variants.py`.
ALEXNET_CLEAN = 0.4348
# Published beside the others, and never in a mean.
EXTRA = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')


def cell_name(corruption: str, severity: int) -> str:
  """Returns the name of a cell: 'fog_3'."""
  return f'{corruption}_{severity}'


def mean_top1(top1: Mapping[str, float], names) -> dict[str, float]:
  """Returns the accuracy on each corruption, over the severities.

  Args:
    top1: by cell, 0 to 1.
    names: of the corruptions; those that lack a severity are left out.
  """
  result = {}
  for name in names:
    cells = [cell_name(name, severity) for severity in SEVERITIES]
    if all(cell in top1 for cell in cells):
      result[name] = sum(top1[cell] for cell in cells) / len(cells)
  return result


def corruption_errors(by_corruption: Mapping[str, float]) -> dict[str, float]:
  """Returns the CE of each of the 15 corruptions, in percent of AlexNet's error.

  Args:
    by_corruption: accuracy, 0 to 1, see `mean_top1`.
  """
  return {
    name: 100 * (1 - by_corruption[name]) / error
    for name, error in ALEXNET.items()
    if name in by_corruption
  }


def relative_errors(
  by_corruption: Mapping[str, float], clean_top1: float
) -> dict[str, float]:
  """Returns the relative CE: by how much a corruption raises the error, likewise.

  Args:
    by_corruption: as above.
    clean_top1: of the network on clean images of the same size.
  """
  return {
    name: 100 * (clean_top1 - by_corruption[name]) / (error - ALEXNET_CLEAN)
    for name, error in ALEXNET.items()
    if name in by_corruption
  }


def mean_of_all(errors: Mapping[str, float]) -> float | None:
  """Returns the mean over the 15 corruptions; None if one is missing."""
  if errors.keys() != ALEXNET.keys():
    return None
  return sum(errors.values()) / len(errors)
