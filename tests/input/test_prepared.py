"""Tests that a data_dir, which a config.json may name, cannot make us run a program."""

import json

import pytest
import tensorflow_datasets as tfds

from advprop_jax import errors
from advprop_jax.input import datasets

SPLIT = {
  'name': 'test',
  'shardLengths': ['1'],
  'numBytes': '10',
  'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
}


def write(data_dir, **more):
  """Writes the description of a data set 'mine' of images, with more features."""
  path = data_dir / 'mine/1.0.0'
  path.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(8, 8, 3)),
      'label': tfds.features.ClassLabel(names=['a', 'b']),
    }
  )
  features.save_config(path)
  file = path / 'features.json'
  content = json.loads(file.read_text())
  content['featuresDict']['features'] |= more
  file.write_text(json.dumps(content))
  info = {'name': 'mine', 'version': '1.0.0', 'fileFormat': 'tfrecord'}
  (path / 'dataset_info.json').write_text(json.dumps({**info, 'splits': [SPLIT]}))


def test_a_description_alone_is_enough(tmp_path):
  write(tmp_path)
  found = datasets.open_dataset('mine', data_dir=str(tmp_path))
  assert found.class_names == ('a', 'b') and found.num_examples('test') == 1


def test_a_description_cannot_name_a_program(tmp_path, monkeypatch):
  program = tmp_path / 'planted_program.py'
  program.write_text(
    f'import pathlib; pathlib.Path({str(tmp_path)!r}, "ran").mkdir()\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  feature = {'pythonClassName': 'planted_program.Feature', 'jsonFeature': {}}
  write(tmp_path / 'data', x=feature)
  with pytest.raises(errors.UserError, match="names 'planted_program.Feature', which "):
    datasets.open_dataset('mine', data_dir=str(tmp_path / 'data'))
  assert not (tmp_path / 'ran').exists()
