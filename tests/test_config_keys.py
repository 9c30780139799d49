"""Tests that every key of a config is heard: another value, another run.

For each key stands what it must change: the compiled step, the schedule, the first
batches, the evaluation, or when the loop acts.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image
from tiny_model import create_tiny_model

from advprop_jax import (
  branches,
  errors,
  evaluations,
  experiment,
  images,
  methods,
  model_config,
  parallel,
  phases,
  robust_run,
  schema,
  train,
)
from advprop_jax.evaluation import robustness, runner, suites
from advprop_jax.workdir import results
from configs import default

# Kinds of sections whose keys are not all in `default.get_config()`.
AUTOAUGMENT = {'data.augmentation': default.AUTOAUGMENT}
RANDAUGMENT = {'data.augmentation': default.RANDAUGMENT}
SGD = {'optim.optimizer': default.SGD}
FOLDER = {
  'data.name': 'folder',
  'data.train_split': 'train',
  'data.eval_split': 'test',
  'data.batch_size': 64,
  'data.max_bad_share': 0.1,
}
UPRIGHT = {**FOLDER, 'data.exif_orientation': 'none'}  # Twice as fast to open.
COSINE = {'optim.schedule': default.COSINE}
MILESTONES = {
  'optim.schedule': dict(default.MILESTONES, milestones_epochs=(2.0, 4.0)),
}
COLOR_JITTER = {'data.augmentation': default.COLOR_JITTER}
RESNET = {'model': dict(default.RESNET, name='resnet_tiny')}
FAST = {'method': default.FAST_ADVPROP}
GD = {'attack': default.GD}
PGD_L2 = {'attack': default.PGD_L2}

PERIODS = ('num_epochs', 'eval.every_epochs', 'checkpoint.every_epochs')


@dataclasses.dataclass(frozen=True)
class Change:
  """Another value of a key, and what differs then."""

  value: Any
  what: str  # A function of this file.
  base: dict = dataclasses.field(default_factory=dict)  # Changed in both configs.


STREAM = {
  'name': Change('first', 'step_metrics'),
  'image_key': Change('other_image', 'streams'),
  'label_key': Change('other_label', 'streams'),
  'attack': Change({'epsilon': 0.25}, 'step'),
  'branch': Change('adv_2', 'parameters', {'streams': default.ADVPROP}),
  'weight': Change(0.5, 'step'),
}
CHANGES = {
  'seed': [Change(1, x) for x in ('parameters', 'batches', 'evaluation')],
  'init_from': Change('no_such_workdir', 'loop'),  # Must have a checkpoint.
  'num_epochs': Change(2.0, 'loop'),
  'log_every_steps': Change(2, 'loop', dict.fromkeys(PERIODS, 3.0)),
  'on_nonfinite': Change('skip', 'step'),
  'profile_steps': Change(1, 'loop', dict.fromkeys(PERIODS, 3.0)),
  'data.name': Change('folder', 'dataset'),
  'data.data_dir': Change('elsewhere', 'dataset'),
  'data.class_names': Change(tuple('9876543210'), 'dataset'),
  'data.holdout_share': Change(0.5, 'dataset', FOLDER),
  'data.train_split': Change('train[80:240]', 'batches'),
  'data.eval_split': Change('test[8:16]', 'evaluation'),
  'data.image_size': [Change(48, x) for x in ('batches', 'evaluation')],
  'data.batch_size': [Change(32, x) for x in ('batches', 'schedule')],
  'data.eval_batch_size': Change(4, 'eval_batches'),
  'data.shuffle_window': Change(8, 'batches'),
  'data.crop_area': Change((0.5, 1.0), 'batches'),
  'data.flip': Change(False, 'batches'),
  'data.augmentation.name': Change('none', 'augmented', AUTOAUGMENT),
  'data.augmentation.num_layers': Change(3, 'augmented', RANDAUGMENT),
  'data.augmentation.magnitude': Change(5, 'augmented', RANDAUGMENT),
  'data.augmentation.brightness': Change(0.0, 'augmented', COLOR_JITTER),
  'data.augmentation.contrast': Change(0.0, 'augmented', COLOR_JITTER),
  'data.augmentation.saturation': Change(0.0, 'augmented', COLOR_JITTER),
  'data.augmentation.lighting': Change(0.0, 'augmented', COLOR_JITTER),
  'data.crop_padding': Change(8, 'eval_batches'),
  'data.resize_method': [Change('bilinear', x) for x in ('batches', 'eval_batches')],
  'data.max_bad_share': Change(0.0005, 'num_bad', UPRIGHT),
  'data.max_megapixels': Change(1e-5, 'eval_batches'),
  'data.exif_orientation': Change('none', 'eval_batches', FOLDER),
  'model.name': Change('efficientnet_b0', 'parameters'),
  'model.drop_connect_rate': Change(0.5, 'network'),
  'model.activation': Change('relu', 'network'),
  'model.even_pool_padding': Change(True, 'network', RESNET),
  'model.smooth_backward': Change('both', 'streams'),  # Of ReLU alone.
  'model.mean': Change((0.4, 0.5, 0.5), 'network'),
  'model.std': Change((0.4, 0.5, 0.5), 'network'),
  'model.dtype': Change('float32', 'network'),
  'model.remat_blocks': Change(True, 'network'),
  'model.cpu_kernels': Change(False, 'network'),
  'model.bn_momentum': Change(0.5, 'network'),
  'model.bn_epsilon': Change(0.5, 'network'),
  'model.bn_scope': Change('all', 'network'),
  'method.name': Change('none', 'streams'),  # Must be one of the table.
  'method.adversarial_share': Change(0.5, 'step', FAST),
  'method.epsilon': Change(0.25, 'step', FAST),
  'method.step_size': Change(0.25, 'step', FAST),
  'method.statistics': Change('running', 'step', FAST),
  'method.reuse_gradient': Change(
    False, 'step', {'method': dict(default.FAST_ADVPROP, noise_weight=0.0)}
  ),
  'method.shuffle_over_devices': Change(False, 'step', FAST),
  'method.noise_weight': Change(0.25, 'step', FAST),
  'method.adversarial_weight': Change(0.25, 'step', FAST),
  'method.own_counts': Change(False, 'step', FAST),
  **{f'streams.{key}': change for key, change in STREAM.items()},
  'phases': Change(({'num_epochs': 2.0},), 'runs'),
  'attack.name': Change('none', 'streams'),  # Must be one of the table.
  'attack.epsilon': Change(0.25, 'step'),
  'attack.step_size': Change(0.25, 'step'),
  'attack.num_steps': Change(3, 'step'),
  'attack.targeted': Change(False, 'step'),
  'attack.prob_start_from_clean': Change(0.5, 'step'),
  'attack.step_size_floor': Change(False, 'step', {'attack.epsilon': 0.25}),
  'attack.learning_rate': Change(0.25, 'step', GD),
  'attack.epsilon_l2': Change(0.25, 'step', PGD_L2),
  'attack.step_size_l2': Change(0.125, 'step', PGD_L2),
  'attack.statistics': Change('batch', 'step'),
  'optim.optimizer.name': Change('adam', 'optimizer'),  # Must be one of the table.
  'optim.optimizer.momentum': [Change(0.5, 'step'), Change(0.5, 'step', SGD)],
  'optim.optimizer.decay': Change(0.5, 'step'),
  'optim.optimizer.epsilon': Change(0.5, 'step'),
  'optim.optimizer.weight_decay': [Change(0.5, 'step'), Change(0.5, 'step', SGD)],
  'optim.optimizer.decay_biases': Change(False, 'step', SGD),
  'optim.optimizer.nesterov': Change(False, 'step', SGD),
  'optim.freeze': Change(('conv/*',), 'step'),
  'optim.layer_decay': Change(0.5, 'step'),
  'optim.accumulate_steps': Change(2, 'step'),
  'optim.schedule.name': Change('linear', 'schedule'),  # Must be one of the table.
  'optim.schedule.learning_rate': [
    Change(0.5, 'schedule'),
    Change(0.5, 'step'),
    Change(0.5, 'schedule', COSINE),
  ],
  'optim.schedule.warmup_epochs': [
    Change(1.0, 'schedule'),
    Change(1.0, 'schedule', COSINE),
  ],
  'optim.schedule.decay_epochs': Change(1.0, 'schedule'),
  'optim.schedule.decay_rate': [
    Change(0.5, 'schedule'),
    Change(0.5, 'schedule', MILESTONES),
  ],
  'optim.schedule.warmup_learning_rate': Change(1e-4, 'schedule', MILESTONES),
  'optim.schedule.milestones_epochs': Change((1.0,), 'schedule', MILESTONES),
  'optim.label_smoothing': Change(0.3, 'step'),
  'optim.ema_decay': [Change(0.5, 'step'), Change(0.0, 'parameters')],
  'eval.every_epochs': Change(0.5, 'loop'),
  'eval.suites': Change((), 'evaluation'),
  'eval.attack.name': Change('none', 'evaluation'),  # Must be one of the table.
  'eval.attack.epsilon': Change(0.25, 'evaluation'),
  'eval.attack.step_size': Change(0.25, 'evaluation'),
  'eval.attack.num_steps': Change(3, 'evaluation'),
  'eval.attack.targeted': Change(True, 'evaluation'),
  'eval.attack.prob_start_from_clean': Change(1.0, 'evaluation'),
  'eval.attack.step_size_floor': Change(
    True, 'evaluation', {'eval.attack.epsilon': 0.25}
  ),
  'eval.robustness.version': Change('plus', 'worst_case'),
  'eval.robustness.norm': Change('l2', 'worst_case'),
  'eval.robustness.epsilon': Change(0.25, 'worst_case'),
  'eval.robustness.epsilons': Change((0.25,), 'worst_case'),
  'eval.robustness.num_restarts': Change(2, 'worst_case'),
  'eval.robustness.num_examples': Change(3, 'worst_case'),
  'eval.robustness.subset_seed': Change(
    1, 'worst_case', {'eval.robustness.num_examples': 3}
  ),
  'eval.robustness.branch': Change('adv', 'worst_case'),
  'eval.robustness.attack_branch': Change('adv', 'worst_case'),
  'checkpoint.every_epochs': Change(0.5, 'loop', {'eval.every_epochs': 1.0}),
  'checkpoint.keep_last': Change(1, 'loop'),
}


def keys_of(section, place=''):
  """Yields the keys of all values of a config, those of its streams once."""
  for name, value in section.items():
    if name == 'streams':
      yield from keys_of(default.ADV, 'streams.')
    elif hasattr(value, 'items') and name != 'attack' or place + name == 'attack':
      yield from keys_of(value, f'{place}{name}.')
    elif place + name == 'eval.attack':
      yield from keys_of(value, 'eval.attack.')
    else:
      yield place + name


def all_keys():
  """Returns every key, whichever kind the sections are of."""
  config = default.get_config()
  keys = set(keys_of(config))
  kinds = (RANDAUGMENT, COLOR_JITTER, SGD, COSINE, MILESTONES, FAST, GD, PGD_L2, RESNET)
  for place, section in (item for kind in kinds for item in kind.items()):
    keys |= set(keys_of(section, f'{place}.'))
  return keys


def test_every_key_has_a_change_here():
  assert all_keys() == CHANGES.keys()


@pytest.fixture(scope='module')
def folders(tmp_path_factory, digits_dir):
  """Returns {'digits': data_dir, 'elsewhere': another, 'folder': a data set's name}."""
  tmp_path = tmp_path_factory.mktemp('folders')
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for i in range(64):
      file = tmp_path / 'images' / split / f'class{i % 2}' / f'{i}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      tags = Image.Exif()
      tags[0x0112] = 6  # Lies on its side.
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, exif=tags)
  (tmp_path / 'images' / 'train' / 'class0' / 'bad.png').write_bytes(b'no image')
  return {
    'digits': str(digits_dir),
    'elsewhere': str(tmp_path / 'data'),
    'folder': f'folder:{tmp_path}/images',
  }


def create_config(folders, changes):
  """Returns the default config on 160 digits, and smaller; and with the changes."""
  config = default.get_config()
  config.data.update(
    name='digits',
    data_dir=folders['digits'],
    train_split='train[:160]',
    eval_split='test[:8]',
    image_size=32,
    batch_size=16,
    eval_batch_size=8,
    shuffle_window=64,
    augmentation=default.NO_AUGMENTATION,
  )
  config.model.name = 'efficientnet_tiny'
  config.num_epochs = 1.0
  config.eval.every_epochs = config.checkpoint.every_epochs = 0.2
  config.unlock()
  for key, value in changes.items():
    place, _, name = key.rpartition('.')
    if place == 'streams':  # Of the second.
      first, second = config.streams
      config.streams = (first, {**second, name: value})
    else:
      section = functools.reduce(getattr, place.split('.') if place else [], config)
      section[name] = folders[value] if value in ('elsewhere', 'folder') else value
  return config.lock()


def network(config):
  """Returns the program of the real network's gradients, as training has it."""
  model = model_config.create_model(config, num_classes=10)
  image = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jax.numpy.zeros(image.shape), train=False)
  )

  def loss(variables, image):
    rngs = {'dropout': jax.random.key(0)}
    logits, updated = model.apply(
      variables, image, train=True, rngs=rngs, mutable=['batch_stats']
    )
    return logits.sum(), updated

  gradients = jax.grad(loss, has_aux=True)
  step = jax.pmap(gradients, axis_name=parallel.AXIS, in_axes=(None, 0))
  batch = jax.ShapeDtypeStruct((4, *image.shape), image.dtype)
  return step.lower(variables, batch).as_text()


def parameters(config):
  """Returns the initial state, from the real network."""
  state = experiment.create_experiment(config).create_state()
  return digest(jax.device_get(state.replace(rng=jax.random.key_data(state.rng))))


# All that follow see a tiny network. Of four devices, four images each:
BATCH = {
  'image': jax.ShapeDtypeStruct((4, 4, 32, 32, 3), np.uint8),
  'label': jax.ShapeDtypeStruct((4, 4), np.int32),
}


def step(config):
  """Returns the program of the step."""
  exp = experiment.create_experiment(config)
  return exp.train_step.lower(exp.abstract_state, BATCH).as_text()


def step_metrics(config):
  exp = experiment.create_experiment(config)
  _, metrics = jax.eval_shape(exp.train_step, exp.abstract_state, BATCH)
  return sorted(metrics)


def streams(config):
  return methods.create_method(config, num_classes=10).names


def runs(config):
  return phases.split(schema.read(config))


def optimizer(config):
  return experiment.create_optimizer(config, steps_per_epoch=10.0, total_steps=10)[1]


def schedule(config):
  exp = experiment.create_experiment(config)
  return [float(exp.schedule(i)) for i in (0, 3, 11, 40, 90)]


def dataset(config):
  found = experiment.create_experiment(config).dataset
  return found.class_names, found.spans(config.data.train_split)


def batches(config):
  exp = experiment.create_experiment(config)
  stream = experiment.create_train_batches(config, exp, examples_seen=0)
  return [digest(next(stream)) for _ in range(2)]


def augmented(config):
  """Returns what the augmentation makes of an image, with a few seeds."""
  dataset = images.open_dataset(schema.read(config))
  augment_fn = images.create_recipe(schema.read(config), dataset).augment_fn
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  if augment_fn is None:
    return digest(image)
  return [digest(augment_fn(tf.constant(image), (i, 0)).numpy()) for i in range(8)]


def num_bad(config):
  """Returns how many bad images two batches of a folder with one have."""
  exp = experiment.create_experiment(config)
  stream = experiment.create_train_batches(config, exp, examples_seen=0)
  next(stream), next(stream)
  return stream.num_bad


def eval_batches(config):
  exp = experiment.create_experiment(config)
  return {k: [digest(b) for b in x.batches] for k, x in exp.evaluation.cells.items()}


def evaluation(config):
  exp = experiment.create_experiment(config)
  state = parallel.replicate(exp.create_state())
  return {k: x.metrics for k, x in exp.evaluation.run(state.eval_variables).items()}


class Recorded(Exception):
  """Nothing more has to run."""


def worst_case(config):
  """Returns which attacks run on which examples and branches; they do not run."""
  exp = experiment.create_experiment(config)
  state = parallel.replicate(exp.create_state())
  cell = evaluations.open_cell(exp.config, suites.Cell())
  found, asked = [], []

  def evaluate(*args, work, examples, **others):
    found.append((work, examples.position.tolist()))
    raise Recorded

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(robustness, 'evaluate', evaluate)
    patch.setattr(branches, 'variables', lambda branch, **_: asked.append(branch))
    for name in ('pgd', 'autoattack'):
      with pytest.raises(Recorded):
        robust_run.evaluate(
          name,
          cell,
          exp.config,
          exp.model,
          state.eval_variables,
          open_file=functools.partial(
            results.ExamplesFile, epath.Path('nowhere'), name
          ),
          progress=print,
        )
  return found, asked


def loop(config):
  """Returns at which steps a run reports, evaluates, saves; what it keeps, profiles.

  The steps only count.
  """
  create = experiment.create_experiment
  metrics = {'all_finite': np.bool_(True), 'nonfinite': np.int32(-1), 'loss': 0.0}
  with tempfile.TemporaryDirectory() as workdir, pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      experiment,
      'create_experiment',
      lambda config: create(config)._replace(
        train_step=lambda state, _: (state.replace(step=state.step + 1), metrics),
        evaluation=evaluations.Evaluation(
          {}, lambda _: {'val': runner.Result({'clean_top1': 0.0}, None, {})}
        ),
      ),
    )
    train.train_and_evaluate(config, workdir)
    lines = (pathlib.Path(workdir) / 'results.jsonl').read_text().splitlines()
    saved = pathlib.Path(workdir, 'checkpoints').iterdir()
    steps = [
      (x['step'], sorted({key[:5] for key in x})) for x in map(json.loads, lines)
    ]
    profiles = pathlib.Path(workdir).glob('tensorboard/plugins/profile/*')
    return steps, sorted(x.name for x in saved), len(list(profiles))


def digest(tree):
  sha = hashlib.sha256()
  for path, x in jax.tree.leaves_with_path(tree):
    sha.update(f'{jax.tree_util.keystr(path)} {x.shape} {x.dtype}'.encode())
    sha.update(np.asarray(x).tobytes())
  return sha.hexdigest()


@pytest.fixture
def tiny_model(request, monkeypatch):
  if request.node.callspec.params['change'].what not in ('network', 'parameters'):
    monkeypatch.setattr(model_config, 'create_model', create_tiny_model)


BEFORE: dict = {}  # {(what, base): outcome}; many keys have the same.


def cases():
  for key, changes in CHANGES.items():
    for change in changes if isinstance(changes, list) else [changes]:
      yield pytest.param(key, change, id=f'{key}-{change.what}')


@pytest.mark.parametrize('key, change', list(cases()))
def test_every_config_key_is_heard(key, change, folders, tiny_model, fast_compilation):
  what = globals()[change.what]
  same = change.what, repr(change.base)
  if same not in BEFORE:
    BEFORE[same] = what(create_config(folders, change.base))
  try:
    after = what(create_config(folders, {**change.base, key: change.value}))
  except errors.UserError as error:
    after = error  # Heard, too.
  assert after != BEFORE[same]
