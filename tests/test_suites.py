"""Tests every suite on a small directory of its data: the answer is counted by hand.

The network reads its prediction off the colour of an image, so that the images decide
what is right: `paint(n)` is taken for class n, and `also` for the next likely one.
"""

import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from advprop_jax import errors, evaluate, model_config, schema
from advprop_jax.evaluation import label_spaces, labels, suites
from advprop_jax.workdir import checkpoint
from configs import default

pytestmark = pytest.mark.usefixtures('fast_compilation')

SYNSETS = labels.imagenet_synsets()
A = label_spaces._class_lists()['imagenet_a']
R = label_spaces._class_lists()['imagenet_r']
OUTSIDE_A = 0  # A class of ImageNet, and none of ImageNet-A.
SIZE = 224


class Reader(nn.Module):
  """Takes an image for the class that its first two channels spell.

  The second likeliest is class 256 * blue, in units of 1 / 255; all others are alike.
  """

  num_classes: int

  @nn.compact
  def __call__(self, image, *, train, use_running_average=None):
    scale = self.param('scale', nn.initializers.ones, (1,))
    self.variable('norm', 'scale', jnp.ones, (1,))
    self.variable('batch_stats', 'mean', jnp.ones, (1,))
    red, green, blue = jnp.unstack(jnp.round(image.mean((1, 2)) * 255), axis=1)
    classes = jnp.arange(self.num_classes, dtype=jnp.float32)
    first = classes == (256 * red + green)[:, None]
    second = classes == (4 * blue)[:, None]
    return scale * jnp.where(first, 4.0, jnp.where(second, 2.0, 0.0))


def paint(n, *, second=0, size=SIZE):
  """Returns an image that is taken for class n, else for `second`, a multiple of 4."""
  image = np.zeros((*size, 3) if isinstance(size, tuple) else (size, size, 3), np.uint8)
  image[...] = n // 256, n % 256, second // 4
  return image


def save(root, folder, images):
  """Writes the images of a class."""
  path = root / folder
  path.mkdir(parents=True, exist_ok=True)
  for i, image in enumerate(images):
    Image.fromarray(image).save(path / f'{i}.png')


def prepare(name, data_dir, split, examples, monkeypatch):
  """Lets the official builder, with its features, write examples of ours."""
  builder = tfds.builder(name, data_dir=data_dir)
  monkeypatch.setattr(
    type(builder),
    '_split_generators',
    lambda self, *_: {split: ((i, x) for i, x in enumerate(examples))},
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
  )


def example(image, label, **more):
  return {'image': encode(image), 'label': label, 'file_name': 'x.JPEG', **more}


def encode(image):
  """Returns a PNG, which the builders keep as it is: JPEG would change the colour."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  buffer.seek(0)
  return buffer


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Returns the workdir of a network with ImageNet's classes."""
  config = default.get_config()
  config.data.update(
    name='imagenet2012',
    class_names=SYNSETS,
    image_size=SIZE,
    eval_batch_size=8,
    crop_padding=32,
  )
  config = schema.read(config)
  variables = Reader(1000).init(
    jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False
  )
  parts = {
    'params': variables['params'],
    'norms': {'clean': variables['norm']},
    'batch_stats': {'clean': variables['batch_stats']},
  }
  workdir = tmp_path_factory.mktemp('runs')
  with checkpoint.Checkpointer(workdir / 'checkpoints') as checkpointer:
    checkpointer.save(
      0, {'model': parts}, config=config, examples_seen=0, fingerprint={}
    )
  return workdir, config


@pytest.fixture
def run(saved, tmp_path, monkeypatch):
  """Returns a function that evaluates suites on what is in tmp_path / 'data'."""
  monkeypatch.setattr(
    model_config, 'create_model', lambda config, *, num_classes: Reader(num_classes)
  )
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'checkpoints').symlink_to(saved[0] / 'checkpoints')
  data = schema.Section(saved[1].data | {'data_dir': str(tmp_path / 'data')})
  config = schema.Section(saved[1] | {'data': data})

  def run(*names):
    evaluate.evaluate_checkpoint(config, str(workdir), suite_names=names)
    return [
      json.loads((workdir / 'eval' / f'{name}.json').read_text()) for name in names
    ]

  run.workdir, run.data = workdir, tmp_path / 'data'
  return run


def top1(found, key='top1'):
  return found['summary']['clean'][key]


def test_imagenet_and_sketch(run, monkeypatch):
  images = [(paint(7), 7), (paint(999), 999), (paint(8), 9), (paint(300), 44)]
  prepare(
    'imagenet2012',
    run.data,
    'validation',
    [example(x, y) for x, y in images],
    monkeypatch,
  )
  save(run.data / 'sketch', SYNSETS[5], [paint(5), paint(6)])
  save(run.data / 'sketch', SYNSETS[900], [paint(900, size=(300, 260))])
  imagenet, sketch = run('imagenet', 'sketch')
  assert top1(imagenet) == 0.5 and top1(sketch) == pytest.approx(2 / 3)
  (cell,) = imagenet['cells'].values()
  assert cell['num_examples'] == 4 and cell['input']['image_size'] == SIZE
  assert (cell['input']['crop_padding'], cell['input']['border']) == (32, 0)
  assert top1(imagenet, 'brier') > 0 and top1(imagenet, 'ece') >= 0
  assert 'confusion' not in cell['branches']['clean']  # A thousand classes.
  per_class = cell['branches']['clean']['class_top1']
  assert (per_class[7], per_class[9], per_class[0]) == (1, 0, None)


@pytest.mark.parametrize('name, indices', [('a', A), ('r', R)])
@pytest.mark.parametrize('is_folder', [False, True])
def test_of_200_classes_the_others_are_masked(
  name, indices, is_folder, run, monkeypatch
):
  first, last = indices[0], indices[-1]
  outside = next(i for i in range(4, 1000, 4) if i not in indices)
  inside = next(i for i in indices if i % 4 == 0)
  images = [
    (paint(first), first),
    (paint(outside, second=inside), inside),  # Right, since the first is masked.
    (paint(last), first),
  ]
  if is_folder:
    for image, label in images:
      save(run.data / f'imagenet-{name}', SYNSETS[label], [image] * 2)
    images = [images[2], images[2], images[1], images[1]]  # Files of a class replaced.
    expected, notes = 0.5, 1
  else:
    prepare(
      f'imagenet_{name}',
      run.data,
      'test',
      [example(x, y) for x, y in images],
      monkeypatch,
    )
    expected, notes = 2 / 3, 0
  # Clean images: two of the classes, of which one is right, and one of none of them.
  clean = [(paint(first), first), (paint(first), last), (paint(outside), outside)]
  prepare(
    'imagenet2012',
    run.data,
    'validation',
    [example(x, y) for x, y in clean],
    monkeypatch,
  )
  (found,) = run(name)
  assert top1(found) == pytest.approx(expected)
  assert top1(found, 'clean_top1') == 0.5
  assert found['cells']['clean']['num_unlabelled'] == 1
  assert len(found['class_names']) == 200
  assert len(found['notes']) == 1 + notes
  probability = np.exp(4) / (np.exp(4) + 199)  # Of 200 classes, not of 1000.
  sure = found['cells']['all']['branches']['clean']['reliability']['confidence']
  assert any(x == pytest.approx(probability, rel=1e-4) for x in sure if x is not None)


def test_v2_reads_folders_as_numbers(run):
  for folder in ('matched-frequency', 'threshold0.7', 'top-images'):
    root = run.data / f'imagenetv2-{folder}-format-val'
    save(root, '2', [paint(2)])
    save(root, '10', [paint(10), paint(11)])
    save(root, '999', [paint(999 if folder == 'top-images' else 0)])
  (found,) = run('v2')
  assert top1(found) == 0.5 and top1(found, 'top_images_top1') == 0.75


def test_real_takes_any_label_and_drops_images_without_one(run, monkeypatch):
  images = [
    (paint(3), [3]),
    (paint(4), [9, 4, 100]),
    (paint(5), []),
    (paint(6), [7, 8]),
    (paint(1, second=8), [8]),
  ]
  examples = [
    {'image': encode(x), 'original_label': 0, 'real_label': y, 'file_name': 'x.JPEG'}
    for x, y in images
  ]
  prepare('imagenet2012_real', run.data, 'validation', examples, monkeypatch)
  (found,) = run('real')
  assert top1(found) == 0.5 and top1(found, 'top5') >= 0.75
  cell = found['cells']['all']
  assert (cell['num_examples'], cell['num_unlabelled']) == (4, 1)
  assert cell['branches']['clean'].keys() == {'top1', 'top5'}


def test_stylized_is_not_resized_to_something_else(run):
  save(run.data / 'stylized-imagenet' / 'val', SYNSETS[1], [paint(1), paint(2)])
  (found,) = run('stylized')
  assert top1(found) == 0.5
  assert found['cells']['all']['input']['crop_padding'] == 0


def test_objectnet_maps_classes_many_to_one_and_cuts_the_border(run):
  table = label_spaces._class_lists()['objectnet']
  folders = {}
  for index, folder in table.items():
    folders.setdefault(folder, []).append(int(index))
  double = next(k for k, x in folders.items() if len(x) > 1)
  single = next(k for k, x in folders.items() if len(x) == 1)
  foreign = next(k for k in range(313) if k not in folders)
  root = run.data / 'objectnet-1.0' / 'images'
  framed = paint(folders[single][0], size=228)
  framed[:2], framed[-2:], framed[:, :2], framed[:, -2:] = 255, 255, 255, 255
  images = {
    double: [paint(n) for n in folders[double]] + [paint(folders[single][0])],
    single: [framed],
    foreign: [paint(1)],
  }
  for k in range(313):  # Of the others an image each: right where they count.
    n = folders.get(k, [1])[0]
    save(root, f'thing_{k:03}', images.get(k, [paint(n, size=8)]))
  (found,) = run('objectnet')
  num = sum(len(images.get(k, [0])) for k in folders)
  assert found['cells']['all']['num_examples'] == num
  assert top1(found) == pytest.approx(1 - 1 / num)


def keep_cells(name, start, monkeypatch):
  """Leaves out most cells of a suite: each opens a reader."""
  suite = suites.SUITES[name]
  cells = {k: x for k, x in suite.cells.items() if k.startswith(start)}
  monkeypatch.setitem(suites.SUITES, name, suite._replace(cells=cells))


def test_imagenet_c_is_read_as_it_is_and_measured_by_alexnet(run, monkeypatch):
  keep_cells('c', ('fog', 'clean'), monkeypatch)
  keep_cells('c_extra', 'spatter_2', monkeypatch)
  for severity in range(1, 6):  # One to five of six are wrong; one file is too large.
    root = run.data / 'imagenet-c' / 'fog' / str(severity)
    images = [paint(3 if i < severity else 1) for i in range(6)]
    save(root, SYNSETS[1], [*images, paint(3, size=(224, 256))])
  save(run.data / 'imagenet-c' / 'spatter' / '2', SYNSETS[1], [paint(1)])
  clean = [example(paint(1), 1), example(paint(1), 2)]
  prepare('imagenet2012', run.data, 'validation', clean, monkeypatch)
  found, extra = run('c', 'c_extra')
  cell = found['cells']['fog_2']
  assert (cell['num_examples'], cell['num_bad']) == (6, 1)
  assert cell['input']['image_size'] == 224 and not cell['input']['resize']
  assert cell['branches']['clean']['top1'] == pytest.approx(4 / 6)
  assert top1(found, 'by_corruption') == {'fog': pytest.approx(0.5)}
  assert top1(found, 'ce')['fog'] == pytest.approx(100 * 0.5 / 0.819324)
  assert top1(found, 'mce') is None and top1(found, 'clean_top1') == 0.5
  assert extra['notes'][0] == 'never part of mCE'
  assert extra['cells']['spatter_2']['branches']['clean']['top1'] == 1


def test_corruptions_of_tensorflow_datasets_are_another_suite(run, monkeypatch):
  keep_cells('c_tfds', ('fog_3', 'clean'), monkeypatch)
  name = 'imagenet2012_corrupted/fog_3'
  images = [paint(1), paint(1), paint(2)]
  prepare(name, run.data, 'validation', [example(x, 1) for x in images], monkeypatch)
  with pytest.raises(
    errors.UserError, match='c_tfds, 1 of 2 sets cannot .*; clean: data'
  ):
    run('c_tfds')
  found = json.loads((run.workdir / 'eval' / 'c_tfds.json').read_text())
  assert not found['complete']
  assert found['cells']['fog_3']['branches']['clean']['top1'] == pytest.approx(2 / 3)
  assert 'may not stand beside published ones' in found['notes'][0]
  with pytest.raises(
    errors.UserError,
    match='cannot read folder .*imagenet-c.*; where they come from: mkdir -p',
  ):
    run('c')


def test_of_all_suites_a_network_has_those_that_fit(run, monkeypatch):
  """Nothing is there: every suite is missing, and the first is named."""
  with pytest.raises(errors.UserError, match='suite val, all: .*download_and_prepare'):
    run('all')
  with pytest.raises(
    errors.UserError,
    match='suite sketch, all: data set .* is not prepared in .*download_and_prepare.*'
    '; or: cannot read folder .*/sketch',
  ):
    run('sketch')
  names = evaluate._chosen(['all'], schema.to_sections({'data': {'class_names': ()}}))
  assert names == ['val', 'pgd', 'autoattack', 'corruptions']
  data = {
    'class_names': [SYNSETS[i] for i in label_spaces._class_lists()['imagenet_r']]
  }
  assert evaluate._chosen(['all'], schema.to_sections({'data': data})) == [*names, 'r']
