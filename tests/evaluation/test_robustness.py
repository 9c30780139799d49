"""Tests the suites of the worst case: on devices, with files, resumed, one by one."""

import functools
import json
import shutil

import compilation
import jax
import numpy as np
import optax
import pytest
from absl import logging as absl_logging
from PIL import Image
from tiny_model import create_tiny_model

from advprop_jax import (
  errors,
  evaluate,
  hosts,
  model_config,
  parallel,
  robust_config,
  robust_run,
  schema,
  train,
)
from advprop_jax.attacks import ensembles, worst_case
from advprop_jax.evaluation import robustness
from configs import digits_advprop, saved

CLASSES = ('cat', 'dog', 'flower', 'house')
SHORT = {'num_steps': 5, 'num_queries': 20}


@pytest.fixture(autouse=True)
def short(monkeypatch, fast_compilation):
  """Replaces the network and shortens the attacks."""
  monkeypatch.setattr(model_config, 'create_model', create_tiny_model)
  members = {}
  for name in ('apgd-ce', 'apgd-t', 'square'):
    member = ensembles.VERSIONS['standard'][name]
    section = {k: SHORT.get(k, x) for k, x in member.section.items()}
    members[name] = member._replace(section=section)
  monkeypatch.setitem(ensembles.VERSIONS, 'standard', members)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns the folder of a run that tells the brighter quarter of an image."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for j, name in enumerate(CLASSES):
      for i in range(10):
        pixels = rng.integers(60, 120, (16, 16, 3), np.uint8)
        pixels[..., j % 3] += 40
        pixels[..., 0] += 30 * (j == 3)
        path = root / split / name / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
  config = digits_advprop.get_config('smoke')
  config.data.update(
    name=f'folder:{root}', batch_size=8, eval_batch_size=16, image_size=16
  )
  config.data.flip, config.data.exif_orientation = False, 'none'
  config.attack.epsilon, config.optim.schedule.learning_rate = 0.01, 10.0
  config.num_epochs, config.optim.ema_decay = 20.0, 0.5
  config.eval.every_epochs = config.checkpoint.every_epochs = 20.0
  config.eval.robustness.epsilon = 0.03
  workdir = tmp_path_factory.mktemp('runs') / 'trial'
  with pytest.MonkeyPatch.context() as patch, compilation.without_optimizations():
    patch.setattr(model_config, 'create_model', create_tiny_model)
    train.train_and_evaluate(config, str(workdir))
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'trial')


def load(workdir, **changes):
  config = saved.get_config((workdir / 'config.json').read_text())
  with config.unlocked():
    config.eval.robustness.update(changes)
  return config


def run(workdir, suite, **changes):
  """Returns the record of the cell of a suite, evaluated."""
  config = load(workdir, **changes)
  evaluate.evaluate_checkpoint(config, str(workdir), suite_names=(suite,))
  return json.loads((workdir / 'eval' / f'{suite}.json').read_text())


def test_autoattack_of_a_checkpoint(workdir, caplog):
  absl_logging.set_verbosity(absl_logging.INFO)
  with caplog.at_level('INFO'):
    content = run(workdir, 'autoattack', epsilons=(0.01, 0.03, 0.06), num_restarts=2)
  (cell,) = content['cells'].values()
  (branch,) = cell['branches']
  found = cell['branches'][branch]
  assert branch == 'clean' and content['branch_names'] == ['clean']
  assert content['attack']['epsilon'] == 0.03 and cell['num_examples'] == 40
  assert list(found['by_attack']) == ['apgd-ce', 'apgd-t', 'square']
  # 4 classes have 3 targets, one stage each.
  names = [x['name'] for x in found['stages']]
  assert names == ['apgd-ce', *(f'apgd-t, target {i}' for i in (1, 2, 3)), 'square']
  lines = [found['clean_top1'], *found['by_attack'].values()]
  assert lines == sorted(lines, reverse=True) and lines[-1] == found['top1']
  assert content['summary']['clean']['top1'] == found['top1'] < found['clean_top1']
  curve = found['by_epsilon']
  assert curve['epsilon'] == [0.0, 0.01, 0.03, 0.06]
  assert curve['top1'][0] == found['clean_top1']
  assert curve['top1'] == sorted(curve['top1'], reverse=True)
  assert found['loss_by_step']['step'] == [0, 1, 2, 5]
  assert found['loss_by_step']['loss'][0] < found['loss_by_step']['loss'][-1]
  assert {x['name'] for x in found['checks']} >= {'leaks', 'epsilon 0', 'square'}
  text = caplog.text
  assert 'suite autoattack, before any attack: ' in text
  assert 'suite autoattack, apgd-t, target 3: ' in text and 'of 40 images' in text
  assert 'suite autoattack, epsilon 15.3/255, apgd-ce: ' in text
  assert 'config.eval.robustness.num_restarts is changed, and has no effect' in text
  assert 'autoattack: clean; attack AutoAttack standard, epsilon 7.65/255' in text
  shares = set()
  for path in (workdir / 'eval').glob('autoattack.examples.*.npz'):
    with np.load(path) as file:
      shares.add((file['fallen_at'] == worst_case.ROBUST).mean())
      assert sorted(file['position']) == list(range(40))
  assert shares == {found['top1'], curve['top1'][-1]}
  assert 'suite autoattack: 8 of 8 checks passed' in text


def test_an_interrupted_evaluation_goes_on(workdir, monkeypatch):
  calls, attack = [], worst_case.WorstCase.attack
  target_1, target_2 = (1, 'apgd-t, target 1'), (2, 'apgd-t, target 2')
  first_radius, second_radius = (5, 'apgd-ce'), (6, 'apgd-ce')  # Of the curve.

  def count(self, stage, *args, number_of_stage):
    calls.append((number_of_stage, str(stage)))
    if calls[-1] == last:
      raise KeyboardInterrupt
    return attack(self, stage, *args, number_of_stage=number_of_stage)

  monkeypatch.setattr(worst_case.WorstCase, 'attack', count)
  attack_all = functools.partial(run, workdir, 'autoattack', epsilons=(0.01, 0.06))
  for end, made, not_made in (
    (target_2, {target_1}, set()),
    # The checks look at one batch again; of the attacks, those are not made again.
    (second_radius, {target_2, first_radius}, {target_1}),
  ):
    last = end
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
      attack_all()
    assert not (workdir / 'eval' / 'autoattack.json').exists()
    assert made <= set(calls) and not not_made & set(calls)
  last = None
  calls.clear()
  resumed = attack_all()
  assert second_radius in calls and not {target_2, first_radius} & set(calls)
  shutil.rmtree(workdir / 'eval')
  calls.clear()
  whole = attack_all()
  assert {target_1, target_2, first_radius, second_radius} <= set(calls)

  def flags(content):
    (cell,) = content['cells'].values()
    found = cell['branches']['clean']
    return found['by_attack'], found['by_epsilon'], cell['num_examples']

  assert flags(resumed) == flags(whole)
  # Attacks of earlier starts count.
  (cell,) = resumed['cells'].values()
  stages = cell['branches']['clean']['stages']
  assert cell['seconds'] > sum(x['seconds'] for x in stages)
  calls.clear()
  assert flags(attack_all()) == flags(whole) and not calls
  # Another curve changes nothing of the attacks whose worst case counts.
  run(workdir, 'autoattack', epsilons=(0.06,))
  assert first_radius in calls and not {target_1, target_2} & set(calls)


def test_devices_change_nothing(workdir):
  # Four devices of a pmap, against one that jit runs on.
  assert jax.device_count() == 4
  config = schema.read(load(workdir))
  config = model_config.with_class_names(config, CLASSES)
  model = create_tiny_model(config, num_classes=4)
  image = np.random.default_rng(2).uniform(size=(22, 16, 16, 3)).astype(np.float32)
  variables = model.init(jax.random.key(3), image[:1], train=False)

  def logits_of(variables, image):
    return 30 * model.apply(variables, image, train=False)

  label = np.asarray(logits_of(variables, image)).argmax(-1).astype(np.int32)
  examples = worst_case.Examples(image, label, np.arange(22, dtype=np.int32))
  stages = ensembles.stages(
    ensembles.VERSIONS['standard'], epsilon=0.1, norm='linf', num_classes=4
  )
  found, climbs = [], []
  for devices, placed in (
    (robustness.on_all_devices(), parallel.replicate(variables)),
    (worst_case.Devices(), variables),
  ):
    attacks = worst_case.WorstCase(
      logits_of,
      placed,
      num_classes=4,
      norm='linf',
      batch_size=8,
      rng=jax.random.key(0),
      devices=devices,
    )
    begin = attacks.begin(examples)
    found.append(attacks.run(stages, examples, begin))
    climbs.append(robustness.loss_by_step(attacks, examples, begin, stages[0]))
  assert found[0].fallen_at.tolist() == found[1].fallen_at.tolist()
  assert found[0].robust == found[1].robust and found[0].robust[-1] < 22
  # The images of the same attack with two steps, and their losses by optax.
  section = tuple({**dict(stages[0].section), 'num_steps': 2}.items())
  stage, first = stages[0]._replace(section=section), np.arange(8)
  attacked, _ = attacks.attack(stage, examples, first, number_of_stage=0)
  expected = optax.softmax_cross_entropy_with_integer_labels(
    logits_of(variables, attacked), label[first]
  )
  for climb in climbs:
    assert climb['step'] == [0, 1, 2, 5]
    assert climb['loss'][2] == pytest.approx(float(expected.mean()), abs=1e-4)


def test_what_an_interrupted_run_left_is_of_the_same_examples(monkeypatch):
  counts = {'num_examples': 3, 'robust': [3, 2, 1], 'seconds': [1.0, 2.0]}
  counts |= dict.fromkeys(('rejected', 'not_finite', 'unsteady'), [0, 0])
  counts['fallen_at'] = None

  class File:
    def read(self):
      arrays = {'position': np.arange(3), 'fallen_at': np.int32([2, 1, -1])}
      return arrays, json.dumps(counts)

  found = robust_run._read(File(), np.arange(3))
  assert found.robust == (3, 2, 1)
  assert robust_run._read(File(), np.arange(1, 4)) is None
  # Another host has run one stage alone.
  monkeypatch.setattr(hosts, 'max_over_hosts', lambda n: max(n, -1))
  state = robustness._as_far_as_all_hosts(found)
  assert state.num_done == 1 and state.fallen_at.tolist() == [-1, 1, -1]
  assert robustness._as_far_as_all_hosts(None) is None
  del counts['unsteady']
  assert robust_run._read(File(), np.arange(3)) is None


def test_batches_are_even_and_fit():
  assert jax.local_device_count() == 4
  for eval_batch_size, num_examples, expected in (
    (1024, 360, 180),  # Two batches, of 256 at most.
    (1024, 256, 256),
    (1024, 3, 4),  # A multiple of the devices.
    (40, 360, 40),
    (40, 41, 24),
  ):
    assert robustness.batch_size(eval_batch_size, num_examples) == expected


def test_pgd_with_restarts_and_radii(workdir):
  plain = run(workdir, 'pgd')
  assert {'loss', 'confusion'} <= plain['cells']['all']['branches']['clean'].keys()
  content = run(workdir, 'pgd', num_restarts=3, epsilons=(0.02, 0.3))
  found = content['cells']['all']['branches']['clean']
  # The run's own epsilon, and three restarts at it.
  assert [x['name'] for x in found['stages']] == [
    'pgd',
    'pgd, restart 1',
    'pgd, restart 2',
  ]
  assert found['top1'] <= plain['cells']['all']['branches']['clean']['top1']
  assert found['by_epsilon']['epsilon'] == [0.0, 0.02, 0.3]
  assert found['by_epsilon']['top1'][-1] < found['clean_top1']
  assert content['attack']['num_restarts'] == 3


def test_suites_have_numbers_of_their_own(workdir):
  config = load(workdir, num_examples=6)
  with config.unlocked():  # A batch of less than the pictures; an attack without steps.
    config.data.eval_batch_size = 4
    config.eval.attack = {'name': 'fgsm', 'epsilon': 0.03, 'targeted': False}
  values = evaluate.evaluate_checkpoint(
    config, str(workdir), suite_names=('pgd', 'autoattack')
  )
  names = {key.rpartition('/')[2] for key in values}
  assert {'clean_pgd_top1', 'clean_autoattack_top1'} <= names
  assert len(list((workdir / 'pictures').glob('*autoattack*'))) <= 1


def test_a_part_is_drawn_by_the_seed(workdir):
  cell = run(workdir, 'pgd', num_examples=12)['cells']['all']
  assert cell['num_examples'] == 12
  batches = [
    {
      'image': np.full((8, 2, 2, 3), i, np.uint8),
      'label': np.where((np.arange(8) == 3) & (i > 0), -1, np.arange(8)),
      'mask': np.arange(8) != 3,
      'position': np.arange(8 * i, 8 * i + 8, dtype=np.int32),
    }
    for i in range(3)
  ]
  draw = functools.partial(robustness.collect, batches, num_total=24)
  drawn = [draw(num_examples=10, seed=x)[0].position.tolist() for x in (0, 0, 1)]
  assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) <= 10
  whole, num_unlabelled = draw(num_examples=0, seed=0)
  assert num_unlabelled == 2  # Of three that do not count, one cannot be decoded.
  assert len(whole.position) == 21 and whole.image[-1, 0, 0, 0] == 2
  assert set(drawn[0]) <= set(whole.position.tolist())


def test_the_other_branch_is_attacked_through(workdir, monkeypatch):
  seen, attack = [], robustness.evaluate

  def spy(logits_of, *variables, **kwargs):
    seen.append(variables)
    return attack(logits_of, *variables, **kwargs)

  monkeypatch.setattr(robustness, 'evaluate', spy)
  own = run(workdir, 'pgd', num_examples=40)
  other = run(workdir, 'pgd', num_examples=40, branch='adv', attack_branch='clean')
  assert own['branch_names'] == ['clean'] and other['branch_names'] == ['adv']
  assert other['attack']['attack_branch'] == 'clean'
  (clean, nothing), (adv, attacked) = seen
  assert nothing is None

  def are_equal(x, y):
    return jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), x, y))

  assert are_equal(attacked, clean) and not are_equal(adv, clean)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'epsilon': 0.0}, 'eval.robustness.epsilon is 0.0; allowed: a number above 0'),
    (
      {'epsilons': (0.1, -0.1)},
      'eval.robustness.epsilons is -0.1; allowed: a number above 0',
    ),
    ({'version': 'rand'}, "unknown eval.robustness.version 'rand'; allowed: plus, st"),
    ({'norm': 'l1'}, "unknown eval.robustness.norm 'l1'; allowed: l2, linf"),
    ({'branch': 'best'}, "unknown eval.robustness.branch 'best'; allowed: adv, clean"),
    ({'attack_branch': 'x'}, "eval.robustness.attack_branch 'x'; allowed: adv, clean"),
    (
      {'norm': 'l2', 'epsilon': 28.0},
      'epsilon is 28.0; allowed: .* above 0, below 27.71',
    ),
    ({'num_examples': 41}, 'num_examples is 41; allowed: 0, for all, to 40'),
  ],
)
def test_what_cannot_be_is_one_line(workdir, changes, message):
  with pytest.raises(errors.UserError, match=message) as found:
    run(workdir, 'autoattack', **changes)
  assert '\n' not in str(found.value)


def test_the_radius_of_a_suite_is_named():
  config = digits_advprop.get_config()
  config.eval.robustness.update(norm='l2', epsilon=8 / 255)

  def describe(suite):
    return robust_config.describe_radius(suite, schema.read(config))

  assert describe('val') == ''
  radius = 'suite pgd: epsilon 8/255, which is config.eval.attack.epsilon'
  assert describe('pgd') == radius
  text = describe('autoattack')
  assert text.startswith('suite autoattack: L2 0.0314, which is config.eval.robustness')
  # Half a grey level in all of 32 x 32 x 3 values.
  assert 'an L2 radius below 0.11 is less than rounding to bytes can' in text


@pytest.mark.parametrize(
  'names, changes, used',
  [
    (('val',), {}, set()),
    (('val', 'pgd'), {}, {'attack.step_size', 'robustness.num_restarts'}),
    (
      ('pgd',),
      {'num_restarts': 2},
      {'attack.step_size', 'robustness.num_restarts', 'robustness.epsilons'},
    ),
    (('autoattack',), {}, {'robustness.epsilon', 'robustness.epsilons'}),
  ],
)
def test_settings_that_no_suite_looks_at(names, changes, used):
  config = digits_advprop.get_config()
  config.eval.robustness.update(changes)
  found = robust_config.unused_keys(names, schema.read(config))
  keys = {'attack.step_size', 'robustness.num_restarts', 'robustness.epsilon'}
  keys = {f'eval.{x}' for x in keys | {'robustness.epsilons'}}
  assert found & keys == keys - {f'eval.{x}' for x in used}


def test_a_damaged_file_of_examples_is_not_used(workdir, caplog):
  first = run(workdir, 'pgd', num_examples=40)
  (path,) = (workdir / 'eval').glob('pgd.examples.*.npz')
  path.write_bytes(path.read_bytes()[:100])
  (workdir / 'eval' / 'pgd.json').unlink()
  with caplog.at_level('WARNING'):
    again = run(workdir, 'pgd', num_examples=40)
  assert f'{path.name} is damaged and is not used' in caplog.text
  assert again['summary'] == first['summary']


def test_it_is_not_part_of_training(workdir):
  config = load(workdir)
  with config.unlocked():
    config.eval.suites = ('val', 'autoattack')
  with pytest.raises(
    errors.UserError, match="'autoattack', which takes too long while"
  ):
    train.train_and_evaluate(config, str(workdir))
