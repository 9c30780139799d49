"""scikit-learn's handwritten digits as a tensorflow-datasets builder.

1,797 real greyscale images of 8x8 pixels, shipped inside scikit-learn: a data set
that takes the same road through the code as ImageNet (`tfds.builder('digits')`) but
needs no network. Importing this module registers the builder under its name.

The images are 4-bit counts 0..16 (the number of ink pixels in a 4x4 cell of the
scan); they are stored as PNG, uint8[8, 8, 1], with 16 mapped to 255.
"""

import numpy as np
import tensorflow_datasets as tfds

# The test split holds one fifth of every class; the seed only has to stay the same.
TEST_FRACTION = 0.2
SPLIT_SEED = 0

# Source: the value range given by `sklearn.datasets.load_digits`.
MAX_COUNT = 16


def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads one of the two fixed, stratified splits from scikit-learn.

  Args:
    split: 'train' (1,437 images) or 'test' (360 images).

  Returns:
    Images, uint8[N, 8, 8, 1] in 0..255, and labels, int64[N] in 0..9.
  """
  # Imported here: only the preparation needs scikit-learn, and it is slow to load.
  from sklearn import datasets, model_selection

  digits = datasets.load_digits()
  train, test = model_selection.train_test_split(
    np.arange(len(digits.target)),
    test_size=TEST_FRACTION,
    random_state=SPLIT_SEED,
    stratify=digits.target,
  )
  indices = {'train': train, 'test': test}[split]
  images = np.round(digits.images[indices] * (255 / MAX_COUNT)).astype(np.uint8)
  return images[..., np.newaxis], digits.target[indices]


class Digits(tfds.core.GeneratorBasedBuilder):
  """Handwritten digits, 8x8 pixels (UCI 'Optical Recognition', test part)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {
    '1.0.0': f'Stratified split, test fraction {TEST_FRACTION}, seed {SPLIT_SEED}.',
  }

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='1,797 handwritten digits of 8x8 pixels, from scikit-learn.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(8, 8, 1), dtype=np.uint8, encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=[str(k) for k in range(10)]),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://archive.ics.uci.edu/dataset/80',
      citation="""@misc{alpaydin1998optical,
        author = {Alpaydin, E. and Kaynak, C.},
        title = {Optical Recognition of Handwritten Digits},
        year = {1998},
        howpublished = {UCI Machine Learning Repository},
        doi = {10.24432/C50P49}}""",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing to download.
    return {split: self._generate_examples(split) for split in ('train', 'test')}

  def _generate_examples(self, split):
    images, labels = load_split(split)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': image, 'label': int(label)}
