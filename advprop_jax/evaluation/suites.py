"""The sets of images that a network is evaluated on, as a table.

Names of data sets are those of `config.data.name`; '{data_dir}' in them is
`config.data.data_dir`, or ~/tensorflow_datasets, and 'classes:' a folder with a folder
of images for each class. Where two are given, the first that is there is read.

Sources: the suites' papers and repositories; how AdvProp's networks were evaluated by
timm, google-research/robustness_metrics and easyrobust.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from advprop_jax.evaluation import corruption_error


class Cell(NamedTuple):
  """A set of images, and how they are cut."""

  # (name of the data set, split) ...; none: `config.data.name` and `.eval_split`.
  sources: tuple[tuple[str, str], ...] = ()
  labels: str = 'names'  # A key of `label_spaces.LABEL_SPACES`.
  label_key: str = 'label'  # The feature of a tensorflow-datasets builder.
  image_size: int | None = None  # S in pixels; None: `config.data.image_size`.
  crop_padding: int | None = None  # None: `config.data.crop_padding`.
  border: int = 0  # Pixels that are cut off on each side first.
  resize: bool = True  # False: the files are S x S; another size is a bad image.
  corruption: tuple[str, int] | None = None  # One of CORRUPTIONS, and its severity.
  # Where images come from that tensorflow-datasets does not prepare: a command, or who
  # has them.
  origin: str = ''


# Of a branch, {'top1': ..., ...}; None: the cell's images are missing.
Scores = Mapping[str, Any] | None
MAIN = ('top1', 'top5', 'loss', 'brier', 'ece')


def of_first_cell(cells: Mapping[str, Scores]) -> dict[str, Any]:
  """Returns the scores of the first cell, and the accuracy on each of the others."""
  (_, first), *others = cells.items()
  found = {key: first[key] for key in MAIN if key in first} if first else {}
  return found | {f'{name}_top1': x['top1'] for name, x in others if x}


def of_corruptions(cells: Mapping[str, Scores]) -> dict[str, Any]:
  """Returns the accuracy by corruption, its mean over the 15, and over the extra ones.

  The means are there once every cell of theirs is.
  """
  top1 = {name: x['top1'] for name, x in cells.items() if x}
  by_corruption = corruption_error.mean_top1(top1, corruption_error.ALEXNET)
  extra = corruption_error.mean_top1(top1, corruption_error.EXTRA)
  found: dict[str, Any] = {'by_corruption': by_corruption | extra}
  if len(by_corruption) == len(corruption_error.ALEXNET):
    found['top1'] = sum(by_corruption.values()) / len(by_corruption)
  if len(extra) == len(corruption_error.EXTRA):
    found['extra_top1'] = sum(extra.values()) / len(extra)
  return found


def of_imagenet_c(cells: Mapping[str, Scores]) -> dict[str, Any]:
  """Returns the same, and CE, mCE and relative mCE in percent."""
  found = of_corruptions(cells)
  ce = corruption_error.corruption_errors(found['by_corruption'])
  found |= {'ce': ce, 'mce': corruption_error.mean_of_all(ce)}
  if clean := cells['clean']:
    found['clean_top1'] = clean['top1']
    relative = corruption_error.relative_errors(
      found['by_corruption'], found['clean_top1']
    )
    found['relative_mce'] = corruption_error.mean_of_all(relative)
  return found


class Suite(NamedTuple):
  """What is reported under one name."""

  title: str  # As papers call it.
  cells: Mapping[str, Cell] = {'all': Cell()}
  # By `config.eval.attack` or `config.eval.robustness`; else the images are clean.
  attacked: bool = False
  # {cell: scores} of a branch -> what stands in tables; 'top1' is the suite's number.
  summarize: Callable[[Mapping[str, Scores]], dict[str, Any]] = of_first_cell
  notes: tuple[str, ...] = ()  # What must be said beside the number.


_VALIDATION = ('imagenet2012', 'validation')
# Of ImageNet-C, Stylized-ImageNet and ObjectNet, in pixels. Sources: RobustBench,
# easyrobust.
_SIZE = 224


def _folder(path: str) -> tuple[str, str]:
  return f'classes:{{data_dir}}/{path}', 'images'


def _subset(builder: str, folder: str) -> dict[str, Cell]:
  """Returns images of 200 classes, and ImageNet's own images of the same classes."""
  return {
    'all': Cell(((builder, 'test'), _folder(folder)), builder),
    'clean': Cell((_VALIDATION,), builder),
  }


def _v2(variant: str, folder: str) -> Cell:
  sources = (
    (f'imagenet_v2/{variant}', 'test'),
    _folder(f'imagenetv2-{folder}-format-val'),
  )
  return Cell(sources, 'imagenet')


def _corrupted(
  corruptions: Iterable[str],
  source: Callable[[str, int], tuple[str, str]] | None,
  *,
  origin: str = '',
) -> dict[str, Cell]:
  """Returns a cell for every corruption and severity.

  Args:
    corruptions: their names.
    source: of a corruption and a severity, the images; None: the run's own, corrupted.
    origin: see `Cell`.
  """
  result = {}
  for name in corruptions:
    for severity in corruption_error.SEVERITIES:
      if source is None:
        cell = Cell(corruption=(name, severity))
      else:  # They are 224 x 224, and another resizing would make them easier.
        cell = Cell(
          (source(name, severity),),
          'imagenet',
          image_size=_SIZE,
          crop_padding=0,
          resize=False,
          origin=origin,
        )
      result[corruption_error.cell_name(name, severity)] = cell
  return result


def _official_c(name: str, severity: int) -> tuple[str, str]:
  return _folder(f'imagenet-c/{name}/{severity}')


def _tfds_c(name: str, severity: int) -> tuple[str, str]:
  return f'imagenet2012_corrupted/{name}_{severity}', 'validation'


# ImageNet's own images as ImageNet-C's were cut, for the relative error.
_CLEAN_C = {
  'clean': Cell((_VALIDATION,), 'imagenet', image_size=_SIZE, crop_padding=32)
}
_MASKED = 'the logits of the other 800 classes are masked'
# Source: the record of ImageNet-C on Zenodo, which its authors' repository links to.
_ZENODO = (
  'mkdir -p "{{data_dir}}/imagenet-c" && for x in {archives}; do curl -fL https://zenodo'
  '.org/records/2235448/files/$x.tar | tar -xf - -C "{{data_dir}}/imagenet-c"; done'
)
_C_ARCHIVES = _ZENODO.format(archives='blur digital noise weather')
_C_EXTRA_ARCHIVES = _ZENODO.format(archives='extra')
_STYLIZED = _folder('stylized-imagenet/val')
_OBJECTNET = _folder('objectnet-1.0/images')

# Name, as in `--suites`, `config.eval.suites` and eval/<name>.json -> suite.
SUITES = {
  'val': Suite('clean images'),
  'pgd': Suite('attacked images', attacked=True),
  'autoattack': Suite('AutoAttack', attacked=True),
  'corruptions': Suite(
    'corrupted images',
    _corrupted((*corruption_error.ALEXNET, *corruption_error.EXTRA), None),
    summarize=of_corruptions,
  ),
  'imagenet': Suite('ImageNet', {'all': Cell((_VALIDATION,), 'imagenet')}),
  'real': Suite(
    'ImageNet-ReaL',
    {
      'all': Cell((('imagenet2012_real', 'validation'),), 'several', 'real_label'),
    },
    notes=('any label of an image is right; images without one do not count',),
  ),
  'v2': Suite(
    'ImageNet-V2',
    {
      'matched_frequency': _v2('matched-frequency', 'matched-frequency'),
      'threshold': _v2('threshold-0.7', 'threshold0.7'),
      'top_images': _v2('topimages', 'top-images'),
    },
  ),
  'a': Suite('ImageNet-A', _subset('imagenet_a', 'imagenet-a'), notes=(_MASKED,)),
  'r': Suite('ImageNet-R', _subset('imagenet_r', 'imagenet-r'), notes=(_MASKED,)),
  'sketch': Suite(
    'ImageNet-Sketch',
    {'all': Cell((('imagenet_sketch', 'test'), _folder('sketch')), 'imagenet')},
  ),
  'c': Suite(
    'ImageNet-C',
    _corrupted(corruption_error.ALEXNET, _official_c, origin=_C_ARCHIVES) | _CLEAN_C,
    summarize=of_imagenet_c,
  ),
  'c_extra': Suite(
    'ImageNet-C, extra corruptions',
    _corrupted(corruption_error.EXTRA, _official_c, origin=_C_EXTRA_ARCHIVES),
    summarize=of_corruptions,
    notes=('never part of mCE',),
  ),
  'c_tfds': Suite(
    "tensorflow-datasets' imagenet2012_corrupted",
    _corrupted(corruption_error.ALEXNET, _tfds_c) | _CLEAN_C,
    summarize=of_imagenet_c,
    notes=(
      'other crops, random numbers and JPEG quality than the published ImageNet-C: its '
      'mCE may not stand beside published ones',
    ),
  ),
  'stylized': Suite(
    'Stylized-ImageNet',
    {
      'all': Cell(
        (_STYLIZED,),
        'imagenet',
        image_size=_SIZE,
        crop_padding=0,
        origin='made of ImageNet by the code in github.com/rgeirhos/Stylized-ImageNet',
      ),
    },
  ),
  'objectnet': Suite(
    'ObjectNet',
    {
      'all': Cell(
        (_OBJECTNET,),
        'objectnet',
        image_size=_SIZE,
        crop_padding=0,
        border=2,
        origin='objectnet.dev, for those who accept its terms',
      ),
    },
    notes=('113 of its classes are of ImageNet; the others do not count',),
  ),
}
# Those that any network has, whatever its classes are.
OWN = ('val', 'pgd', 'corruptions')
