"""foolbox's 20 photographs of ImageNet's classes as a tensorflow-datasets builder.

They are files of the package foolbox, data/imagenet_<number>_<label>.jpg, and are read
there once, when the data set is prepared: photographs with ImageNet's labels where
there is no ImageNet. Importing this module registers the builder under its name.
"""

import importlib.util
import pathlib
import re

import tensorflow_datasets as tfds

from advprop_jax import errors

# The number counts the images from 0 on; the label is the index of the class.
FILE_NAME = re.compile(r'imagenet_(\d+)_(\d+)\.jpg')
SPLITS = {'train': 0, 'test': 1}  # The number modulo 2. The split is ours.
# ImageNet's classes in the order of their labels; a file of tensorflow-datasets.
CLASSES = 'datasets/imagenet2012/labels.txt'


def find_files(split: str) -> list[tuple[pathlib.Path, int]]:
  """Finds the photographs of a split without importing foolbox.

  Args:
    split: 'train' (the ten with even numbers) or 'test' (the ten with odd ones).

  Returns:
    Each file and its label, 0 to 999, in the order of their numbers.

  Raises:
    UserError: foolbox is not installed, or without its photographs.
  """
  spec = importlib.util.find_spec('foolbox')
  folders = (spec and spec.submodule_search_locations) or ()
  files = [x for f in folders for x in sorted(pathlib.Path(f, 'data').glob('*.jpg'))]
  matches = [(file, FILE_NAME.fullmatch(file.name)) for file in files]
  found = [(file, int(m[1]), int(m[2])) for file, m in matches if m]
  if not found:
    raise errors.UserError(
      "data set 'photographs' is read from the package foolbox, which is not installed "
      "here with its images; allowed: pip install foolbox, or pip install '.[demo]'"
    )
  return [(file, label) for file, n, label in found if n % 2 == SPLITS[split]]


class Photographs(tfds.core.GeneratorBasedBuilder):
  """Photographs labelled with ImageNet's classes, 20 in all."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'The images of foolbox 3.3.4, even and odd numbers.'}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='20 photographs with labels of ImageNet, from foolbox.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'label': tfds.features.ClassLabel(names_file=tfds.core.tfds_path(CLASSES)),
          'file_name': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://github.com/bethgelab/foolbox',
      citation="""@article{rauber2020foolbox,
        author = {Rauber, Jonas and Zimmermann, Roland and Bethge, Matthias and
                  Brendel, Wieland},
        title = {Foolbox Native},
        journal = {Journal of Open Source Software},
        year = {2020},
        doi = {10.21105/joss.02607}}""",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing to download.
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split):
    for file, label in find_files(split):
      yield file.name, {'image': file, 'label': label, 'file_name': file.name}
