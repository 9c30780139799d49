"""Tests that exported networks give our logits in processes without our code."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import golden_published
import jax
import numpy as np
import pytest
import safetensors.numpy
import sources
from flax import traverse_util
from jax import export as jax_export
from sources import write_pth

import advprop_jax
from advprop_jax.weights import card, convert, export, formats

CLASSES = tuple('abcdefghij')
GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden_published.json').read_text()
)['networks']['timm/efficientnet']
# Programs that are given a directory, the file of images and that of logits to write.
PROGRAMS = {
  'stablehlo': """
import sys, numpy as np
from jax import export
path, images, logits = sys.argv[1:]
with open(f'{path}/model.stablehlo', 'rb') as file:
  network = export.deserialize(bytearray(file.read()))
assert set(network.platforms) == {'cpu', 'cuda', 'tpu'}
np.save(logits, network.call(np.load(images)))
assert 'advprop_jax' not in sys.modules
""",
  'savedmodel': """
import sys, numpy as np, tensorflow as tf
path, images, logits = sys.argv[1:]
network = tf.saved_model.load(path)
found = network.signatures['serving_default'](image=np.load(images))
np.save(logits, found['logits'])
assert 'advprop_jax' not in sys.modules
""",
}

pytestmark = pytest.mark.usefixtures('fast_compilation')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Returns a workdir with timm's small network."""
  folder = tmp_path_factory.mktemp('export')
  write_pth(folder / 'x.pth', golden_published.arrays(GOLDEN['shapes']))
  convert.convert(
    str(folder / 'x.pth'), 'efficientnet_tiny', f'{folder}/run', class_names=CLASSES
  )
  return folder / 'run'


def run_elsewhere(program, path, images):
  """Returns the logits that a program finds, started outside of the repository."""
  folder = path.parent
  np.save(folder / 'images.npy', images)
  arguments = [str(x) for x in (path, folder / 'images.npy', folder / 'logits.npy')]
  subprocess.run(
    [sys.executable, '-I', '-c', program, *arguments], check=True, cwd=folder
  )
  return np.load(folder / 'logits.npy')


@pytest.mark.parametrize(
  'format_name, folded, inside',
  [('stablehlo', False, True), ('stablehlo', True, False), ('savedmodel', True, True)],
)
def test_a_function_gives_the_same_logits_elsewhere(
  format_name, folded, inside, workdir, tmp_path
):
  flags = ['--fold_norms'] * folded + ['--with_preprocessing'] * inside
  path = tmp_path / 'x'
  export.main(
    [f'--workdir={workdir}', f'--output={path}', f'--format={format_name}'] + flags
  )
  # Another number and size of images than any before.
  images = np.random.RandomState(0).randint(0, 256, (2, 40, 53, 3), np.uint8)
  if not inside:
    images = (images / 255).astype(np.float32)
  found = run_elsewhere(PROGRAMS[format_name], path, images)
  np.testing.assert_allclose(found, advprop_jax.load(workdir)(images), atol=1e-5)
  about = json.loads((path / export.METADATA).read_text())
  assert about['class_names'] == list(CLASSES)
  assert about['norms']['folded'] == folded
  assert about['preprocessing']['inside'] == inside
  assert about['source']['branch'] == 'clean'
  card = (path / 'README.md').read_text()
  assert ('nothing else is to be done' in card) == inside
  assert ('to be done before: crop and resize.' in card) != inside
  subprocess.run(['sha256sum', '--check', '--quiet', 'README.md'], cwd=path, check=True)


@pytest.mark.parametrize('folded', [False, True])
def test_products_are_float32_on_every_device(folded, workdir):
  """Left to their defaults, GPUs and TPUs multiply float32 in less."""
  model = advprop_jax.load(workdir)
  function = formats.create_function(model, fold_norms=folded, with_preprocessing=False)
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  with jax.default_matmul_precision(None):  # Whatever the conversion has set.
    text = jax_export.export(jax.jit(function), platforms=['tpu'])(image).mlir_module()
  products = re.findall(r'stablehlo\.(?:convolution|dot_general)\(.*', text)
  assert len(products) > 20
  assert all(x.count('HIGHEST') == 2 for x in products), products


def test_safetensors_are_timms_own_tensors(workdir, tmp_path):
  export.main(
    [f'--workdir={workdir}', f'--output={tmp_path}/x', '--format=safetensors']
  )
  file = tmp_path / 'x' / 'model.safetensors'
  found = safetensors.numpy.load_file(file)
  expected = golden_published.arrays(GOLDEN['shapes'])
  expected = {k: v for k, v in expected.items() if 'num_batches_tracked' not in k}
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], x)
  with safetensors.safe_open(file, 'numpy') as content:
    about = json.loads(content.metadata()['advprop_jax'])
  assert about['class_names'] == list(CLASSES)
  assert not about['normalisation']['inside']
  card = (tmp_path / 'x' / 'README.md').read_text()
  assert 'To be done before: crop and resize, and (x - mean) / std' in card


def test_what_timm_cannot_compute_has_our_names(saved_run_dir, tmp_path):
  """SAT's ResNets pool with another padding than PyTorch's."""
  output = f'--output={tmp_path}/x'
  flags = [f'--workdir={saved_run_dir}', output, '--format=safetensors', '--branch=adv']
  export.main(flags)
  found = safetensors.numpy.load_file(tmp_path / 'x' / 'model.safetensors')
  variables = advprop_jax.load(saved_run_dir, branch='adv').variables
  expected = traverse_util.flatten_dict(variables, sep='/')
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], x)
  assert 'Names: of advprop_jax.' in (tmp_path / 'x' / 'README.md').read_text()


def test_a_card_shows_results_of_the_exported_weights_alone(workdir, tmp_path):
  lines = [
    {'step': 0, 'averaged': False, 'x:test/clean_top1': 0.111},
    {'step': 0, 'averaged': True, 'x:test/clean_top1': 0.222},
    {'step': 5, 'averaged': False, 'x:test/clean_top1': 0.333},
    {'step': 0, 'averaged': False, 'x:test/adv_top1': 0.444},
    {'step': 0, 'averaged': False, 'x:test/clean_pgd_top1': 0.555},
    {'step': 0, 'averaged': False, 'c/clean_mce': 66.2, 'c/adv_mce': 77.7},
  ]
  run = tmp_path / 'run'
  shutil.copytree(workdir, run)
  (run / 'results.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  source = {'step': 0, 'branch': 'clean', 'averaged': False}
  card.write_card(tmp_path, workdir=run, export='An export.', source=source)
  text = (tmp_path / 'README.md').read_text()
  shown = re.findall(r'(\d\d)\.\d\d %', text)
  assert shown == ['11', '55']
  assert '| 66.2 |' in text and '77.7' not in text


def test_folded_safetensors_are_convolutions_with_biases(workdir, tmp_path):
  """In TensorFlow, from the file alone."""
  export.main(
    [f'--workdir={workdir}', f'--output={tmp_path}/x', '--format=safetensors']
    + ['--fold_norms']
  )
  tensors = safetensors.numpy.load_file(tmp_path / 'x' / 'model.safetensors')
  image = golden_published.image()
  found = sources.folded_logits(tensors, (image - 0.5) / 0.5)
  np.testing.assert_allclose(found, np.array(GOLDEN['logits']), atol=1e-5)


@pytest.mark.parametrize(
  'flags, message',
  [
    (
      ['--format=onnx'],
      "unknown --format 'onnx'; .*allowed: safetensors, savedmodel, stablehlo",
    ),
    (['--format=safetensors', '--with_preprocessing'], 'hold weights alone'),
    (['--format=stablehlo', '--branch=adv'], "'adv'.*allowed: clean"),
    (['--format=stablehlo', '--step=7'], "no checkpoint '7'"),
    (['--format=stablehlo', '--averaged'], 'no averaged weights'),
    (['--format=stablehlo', '--workdir=gs://b/x'], '--workdir gs://b/x is no local'),
  ],
)
def test_a_wrong_flag_is_one_line_and_leaves_nothing(flags, message, workdir, tmp_path):
  with pytest.raises(SystemExit, match=message) as e:
    export.main([f'--workdir={workdir}', f'--output={tmp_path}/x', *flags])
  assert str(e.value).startswith('error: ') and '\n' not in str(e.value)
  assert not list(tmp_path.iterdir())
