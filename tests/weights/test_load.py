"""Tests loaded networks against the evaluation's TensorFlow pipeline and Flax."""

import functools
import os
import shutil
import subprocess
import sys

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_run
import tensorflow as tf
from PIL import Image, ImageOps

import advprop_jax
from advprop_jax import attacks, branches, errors
from advprop_jax.input import decode, preprocess
from configs import default

SIZES = [(40, 61), (33, 20), (32, 32), (300, 280), (57, 90)]  # Height and width.
# May not be imported; foolbox and others are of the tests alone.
BLOCKED = ('tensorflow', 'tensorflow_datasets', 'clu', 'ml_collections', 'sklearn')


@pytest.fixture(scope='module', autouse=True)
def fast_compilation():
  """As that of conftest.py, for all tests together: they share programs."""
  with compilation.without_optimizations():
    yield


@pytest.fixture(scope='module')
def workdir(saved_run_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'tiny'
  shutil.copytree(saved_run_dir, path)
  # Neither the optimizer's arrays nor anything else that only training needs is read.
  shutil.rmtree(path / 'checkpoints' / str(saved_run.STEP) / 'training')
  return path


@pytest.fixture(scope='module')
def model(workdir):
  return advprop_jax.load(workdir)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of PNGs of several sizes, in a folder."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  (root / 'cats').mkdir()
  for i, size in enumerate(SIZES):
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    image = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
    entry = Image.Exif()
    entry[0x0112] = i + 1  # Stored as cameras do, turned or mirrored.
    image.save(root / 'cats' / f'{i}.png', exif=entry)
  (root / 'cats' / 'notes.txt').write_text('no image')
  return root


def paths_in(folder):
  return sorted((folder / 'cats').glob('*.png'))


def read(path):
  """Returns an image as it is seen."""
  return np.asarray(ImageOps.exif_transpose(Image.open(path)))


@jax.jit
def expected_logits(image):
  """Returns the network's logits of images in [0, 1], by Flax."""
  variables = branches.variables(**saved_run.draw_variables(0), branch='clean')
  return saved_run.create_module().apply(variables, image, train=False)


def check_weights(model, seed, branch):
  expected = branches.variables(**saved_run.draw_variables(seed), branch=branch)
  assert jax.tree.all(jax.tree.map(np.array_equal, model.variables, expected))
  assert model.branch == branch


def evaluated(path):
  """Returns an image as the evaluation reads it, by TensorFlow: uint8 [32, 32, 3]."""
  crop, _ = decode.decode_crop(
    tf.io.read_file(str(path)),
    lambda shape: preprocess.center_crop_box(shape, 32, 8),
    max_megapixels=1.0,
    exif_orientation=True,
    guard=False,
  )
  return preprocess.to_dtype(preprocess.resize(crop, 32, 'bicubic_tf1'), 'uint8')


def test_files_and_arrays_have_the_logits_of_the_evaluation(model, folder):
  images = np.concatenate([model.preprocess(read(p)[None]) for p in paths_in(folder)])
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(images, [evaluated(p) for p in paths_in(folder)])
  expected = np.asarray(expected_logits(images / np.float32(255)))
  results = list(model.predict_files([folder], top=7, batch_size=5))
  assert [x.path for x in results] == [str(x) for x in paths_in(folder)]
  for path, result, logits in zip(paths_in(folder), results, expected, strict=True):
    found = model(read(path)[None].repeat(5, 0))
    assert found.dtype == jnp.float32 and found.shape == (5, 7)
    np.testing.assert_allclose(found[3], logits, atol=1e-5)
    best = np.argsort(-logits)
    assert [x.index for x in result.predictions] == list(best)
    assert [x.name for x in result.predictions] == [saved_run.CLASSES[i] for i in best]
    np.testing.assert_allclose(
      [x.probability for x in result.predictions], jax.nn.softmax(logits)[best], 1e-4
    )


def test_floats_go_to_the_network_as_they_are(model):
  image = np.random.default_rng(0).uniform(size=(5, 40, 37, 3)).astype(np.float32)
  np.testing.assert_allclose(model(image), expected_logits(image), atol=1e-5)
  np.testing.assert_array_equal(model(image), model(image.astype(np.float64)))


def test_one_image_is_a_list_and_several_are_a_list_of_lists(model, folder):
  paths = paths_in(folder)
  several = model.predict(paths, top=2, batch_size=2)  # The last is filled up.
  assert [len(x) for x in several] == [2] * len(paths)
  assert model.predict(str(folder), top=2, batch_size=2) == several
  first = model.predict(paths[0])
  assert len(first) == 5
  for x, y in zip(first[:2], several[0], strict=True):
    assert x.index == y.index and x.probability == pytest.approx(y.probability, 1e-5)
  image = read(paths[0])
  assert model.predict(image) == model.predict(Image.open(paths[0])) == first
  assert len(model.predict(image, top=100)) == len(model.class_names) == 7
  assert model.predict(np.stack([image] * 3), batch_size=1) == [first] * 3
  assert model.predict([]) == []


def test_the_newest_averages_of_the_clean_branch_are_loaded(model):
  check_weights(model, 0, 'clean')
  assert (model.step, model.averaged) == (saved_run.STEP, True)
  assert model.branch_names == saved_run.BRANCHES
  assert model.config.data.class_names == model.class_names == saved_run.CLASSES


def test_other_weights_are_loaded_onto_any_device(workdir):
  device = jax.devices('cpu')[-1]
  model = advprop_jax.load(
    workdir, branch='adv', averaged=False, device=device, dtype='bfloat16'
  )
  check_weights(model, saved_run.STEP, 'adv')
  assert not model.averaged and model.module.dtype == 'bfloat16'
  assert jax.tree.leaves(model.variables)[0].devices() == {device}
  assert model.preprocess(np.zeros([1, 9, 9, 3], np.uint8)).devices() == {device}
  model = advprop_jax.load(workdir, step=3)
  check_weights(model, saved_run.OLD_STEP, 'clean')
  assert (model.step, model.averaged) == (saved_run.OLD_STEP, False)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'branch': 'advv'}, "unknown branch 'advv'; did you mean 'adv'.* adv, clean"),
    ({'step': 4}, "no checkpoint '4' in .*; allowed: newest, 3, 12"),
    ({'step': 3, 'averaged': True}, 'checkpoints/3 has no averaged weights'),
    ({'dtype': 'float16'}, "unknown model.dtype 'float16'; .*bfloat16, float32"),
    ({'workdir': 'no/such/run'}, 'there is no no/such/run; allowed: a directory that'),
  ],
)
def test_what_cannot_be_loaded_is_one_line(workdir, options, message):
  with pytest.raises(errors.UserError, match=message) as e:
    advprop_jax.load(**{'workdir': workdir, **options})
  assert '\n' not in str(e.value)


BYTES = np.zeros([2, 33, 34, 3], np.uint8)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda m: m(BYTES[0]), r'images are uint8 \[33, 34, 3\]; allowed: \[B, H, W, 3\]'),
    (lambda m: m(BYTES[..., :1]), r'uint8 \[2, 33, 34, 1\]; allowed'),
    (lambda m: m(BYTES.astype(np.int32)), r'int32 \[2, .*allowed: .* as uint8 in'),
    (lambda m: m(BYTES[:, :0]), r'uint8 \[2, 0, 34, 3\]; allowed'),
    (lambda m: m(BYTES + np.float32(7)), 'in 7 to 7; allowed: 0 to 1'),
    (lambda m: m(BYTES + np.float32(np.nan)), 'in nan to nan; allowed: 0 to 1'),
    (lambda m: m([BYTES[0], BYTES[0, 1:]]), 'of different sizes make no array'),
    (lambda m: m.predict([BYTES[0], BYTES[0, 1:]]), 'of different sizes make no array'),
    (lambda m: m(jnp.zeros([1, 1, 1, 3])), 'image size 1x1 is too small'),
    (lambda m: m.preprocess(jnp.zeros([1, 32, 32, 3])), 'float32; allowed: uint8'),
    (lambda m: m.predict(BYTES, top=0), 'top is 0; allowed: a whole number from 1'),
    (lambda m: m.predict(['none.png', 'no']), 'image none.png: No such file'),
    (lambda m: m.predict('tests/weights'), 'folder tests/weights has no images; al'),
    (lambda m: m.attack(BYTES, epsilom=0.1), "'epsilom' in the attack.*mean 'epsilon'"),
    (lambda m: m.attack(BYTES, name='pdg'), "unknown attack 'pdg'; did you mean 'pgd'"),
    (lambda m: m.attack(BYTES, epsilon=4), 'epsilon is 4; allowed: 0 to 1'),
    (lambda m: m.attack(BYTES, epsilon='4/255'), "epsilon is '4/255'; allowed: 0 to 1"),
    (
      lambda m: m.attack(BYTES, epsilon=BYTES),
      r'epsilon is an array \[2, 33, 34, 3\]; allowed',
    ),
    (lambda m: m.attack(BYTES, num_steps=2.5), 'num_steps is 2.5; allowed: 0 or more'),
    (lambda m: m.attack(BYTES, name='fgsm', num_steps=2), "key 'num_steps' in the att"),
    (lambda m: m.attack(BYTES, name='gd'), "no value for 'learning_rate'; allowed"),
    (lambda m: m.attack(BYTES, [1, 2, 3]), r'label is \[1, 2, 3\]; allowed: .* of 2 i'),
    (lambda m: m.attack(BYTES, 7), 'label is 7; allowed: a whole number from 0 to 6'),
    (lambda m: m.attack(BYTES, 0.5), 'label is 0.5; allowed: a whole number'),
  ],
)
def test_what_cannot_be_computed_is_one_line(model, call, message):
  with pytest.raises(errors.UserError, match=message) as e:
    call(model)
  assert '\n' not in str(e.value)


def test_an_attack_leaves_the_predicted_class_within_its_ball(model):
  images = np.random.default_rng(1).integers(0, 256, (2, 50, 40, 3), np.uint8)
  logits = model(images)
  label = logits.argmax(-1)

  def attack(images, label=None, **options):
    return np.asarray(
      model.attack(images, label, epsilon=2 / 255, num_steps=3, **options)
    )

  found = attack(images)
  clean = np.asarray(model.preprocess(images)) / np.float32(255)
  assert found.dtype == np.float32 and found.shape == (2, 32, 32, 3)
  assert found.min() >= 0 and found.max() <= 1
  # Three steps of a quarter of the radius, from noise, reach the border of it or not.
  distance = np.abs(found - clean)
  assert 1.9 / 255 < distance.max() <= 2 / 255 + 1e-6 and distance.mean() < 1.8 / 255
  chosen = jnp.arange(2), label
  probabilities = [jax.nn.softmax(x)[chosen] for x in (model(found), logits)]
  assert np.all(probabilities[0] < probabilities[1])
  np.testing.assert_array_equal(found, attack(images, np.asarray(label)))
  numpys = model.attack(images, epsilon=np.float64(2 / 255), num_steps=np.int32(3))
  np.testing.assert_array_equal(found, numpys)
  assert np.mean(np.abs(found - attack(clean, label, seed=1)) > 1e-6) > 0.1


def test_an_attack_is_by_default_that_of_the_evaluation(model, monkeypatch):
  given = {}

  @functools.wraps(attacks.ATTACKS['pgd'])
  def make(**arguments):
    given.update(arguments)
    return lambda logits_fn, image, label, rng: image

  monkeypatch.setitem(attacks.ATTACKS, 'pgd', make)
  model.attack(BYTES)
  assert given == {
    **{key: x for key, x in default.PGD_EVAL.items() if key in given},
    'num_classes': 7,
  }
  assert {'epsilon', 'step_size', 'num_steps', 'targeted'} < given.keys()


SCRIPT = """
import sys
for name in {blocked}:
  sys.modules[name] = None
import advprop_jax
assert not {{'jax', 'numpy', 'PIL'}} & set(sys.modules)
model = advprop_jax.load({workdir!r})
assert len(model.predict({folder!r}, batch_size=1)) == {num_images}
image = model.preprocess(__import__('numpy').zeros([1, 40, 50, 3], 'uint8'))
assert model.attack(image, num_steps=1).shape == image.shape
import advprop_jax.cli
"""


def test_nothing_that_only_training_needs_is_imported(workdir, folder):
  script = SCRIPT.format(
    blocked=BLOCKED, workdir=str(workdir), folder=str(folder), num_images=len(SIZES)
  )
  result = subprocess.run(
    [sys.executable, '-c', script],
    check=True,
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
  )
  assert not result.stdout and not result.stderr
