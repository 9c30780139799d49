"""Tests evaluation on its own: what it needs, and that its numbers say what of."""

import functools
import json
import shutil

import compilation
import numpy as np
import pytest
from absl import logging as absl_logging
from PIL import Image
from tiny_model import create_tiny_model

from advprop_jax import (
  errors,
  evaluate,
  evaluations,
  images,
  model_config,
  schema,
  train,
)
from advprop_jax.evaluation import suites
from advprop_jax.input import corrupted_batches
from advprop_jax.workdir import checkpoint, directory, restore
from configs import default, digits_advprop, saved

CLASSES = ('cat', 'dog', 'flower')


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch, fast_compilation):
  monkeypatch.setattr(model_config, 'create_model', create_tiny_model)


def write_images(root, split, classes, seed):
  """Writes eight images of each class; the class is in their brightest channel."""
  rng = np.random.default_rng(seed)
  for name in classes:
    for i in range(8):
      pixels = rng.integers(0, 100, (32, 32, 3), np.uint8)
      pixels[..., CLASSES.index(name)] += 150
      path = root / split / name / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path)


def create_config(root):
  """Returns the config of a run that learns the three classes in some steps."""
  config = digits_advprop.get_config('smoke')
  config.data.update(
    name=f'folder:{root}', batch_size=8, eval_batch_size=8, image_size=32
  )
  # To look for an orientation makes the graph of the reader twice as large.
  config.data.flip, config.data.exif_orientation = False, 'none'
  config.attack.epsilon, config.optim.schedule.learning_rate = 0.01, 10.0
  config.num_epochs, config.optim.ema_decay = 20.0, 0.5
  config.eval.every_epochs = config.checkpoint.every_epochs = 10.0
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns the folder of a trained run, and that of its images."""
  root = tmp_path_factory.mktemp('images')
  write_images(root, 'train', CLASSES, seed=0)
  write_images(root, 'test', CLASSES, seed=1)
  workdir = tmp_path_factory.mktemp('runs') / 'trial'
  with pytest.MonkeyPatch.context() as patch, compilation.without_optimizations():
    patch.setattr(model_config, 'create_model', create_tiny_model)
    values = train.train_and_evaluate(create_config(root), str(workdir))
  assert values['val/clean_top1'] == 1.0
  return workdir, root


@pytest.fixture
def workdir(trained, tmp_path):
  """Returns a copy of the run, to write to."""
  return shutil.copytree(trained[0], tmp_path / 'trial')


def load(workdir):
  return saved.get_config((workdir / 'config.json').read_text())


def results(workdir):
  return [json.loads(x) for x in (workdir / 'results.jsonl').read_text().splitlines()]


def test_the_workdir_alone_says_what_to_evaluate(trained, workdir):
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  values = evaluate.evaluate_checkpoint(load(workdir), str(workdir))
  title = f'folder:{trained[1]}:test'
  assert values[f'{title}/clean_top1'] == 1.0 and values[f'{title}/num_examples'] == 24
  counts = {k: x for k, x in values.items() if '/num_' in k}
  for line, name, attack in (
    (results(workdir)[-2], 'val', None),
    (results(workdir)[-1], 'pgd', load(workdir).eval.attack.to_dict()),
  ):
    is_of_suite = lambda key: ('_pgd_' in key) == (name == 'pgd')  # noqa: B023, E731
    assert line == {
      'step': 60,
      'suite': name,
      'checkpoint': str(workdir / 'checkpoints' / '60'),
      'averaged': True,
      'attack': attack,
      'dataset': f'folder:{trained[1]}',
      'split': 'test',
      **counts,
      **{k: x for k, x in values.items() if is_of_suite(k) and k not in counts},
    }
  results_file = workdir / 'results.jsonl'
  assert results_file.read_bytes().startswith(before.pop(results_file))
  assert all(p.read_bytes() == x for p, x in before.items())


def test_the_class_names_are_written_down(workdir):
  assert load(workdir).data.class_names == CLASSES
  with restore.Reader(workdir / 'checkpoints') as saver:
    config, branch_names = saver.describe(60)
  assert config['data']['class_names'] == list(CLASSES)
  assert branch_names == ('clean', 'adv')


def test_neither_a_training_split_nor_its_recipe_is_needed(workdir, tmp_path, caplog):
  write_images(tmp_path / 'other', 'holiday', CLASSES, seed=2)
  config = load(workdir)
  config.data.update(
    name=f'folder:{tmp_path}/other', eval_split='holiday', batch_size=7
  )
  config.optim.optimizer, config.optim.ema_decay = default.RMSPROP, 0.0
  config.streams, config.init_from = default.VANILLA, 'runs/other'
  values = evaluate.evaluate_checkpoint(config, str(workdir))
  assert values[f'folder:{tmp_path}/other:holiday/adv_pgd_top1'] > 0.5
  assert len(values) == 2 + 2 * 2 * 5  # Counts; branches, clean and attacked, scores.
  assert 'config.init_from is changed, and has no effect here' in caplog.text


def test_other_data_need_not_have_what_was_held_out(workdir, tmp_path):
  write_images(tmp_path / 'other', 'test', CLASSES, seed=2)
  config = load(workdir)
  config.data.update(name=f'folder:{tmp_path}/other', holdout_share=0.25)
  values = evaluate.evaluate_checkpoint(config, str(workdir))
  assert values[f'folder:{tmp_path}/other:test/num_examples'] == 24
  config.data.eval_split = 'holdout'
  with pytest.raises(errors.UserError, match='0.25, and .* has the splits test; allow'):
    evaluate.evaluate_checkpoint(config, str(workdir))


def test_held_out_images_that_were_trained_on_are_told(trained, workdir, caplog):
  config = load(workdir)
  config.data.update(
    name=f'folder:{trained[1]}/', holdout_share=0.25, eval_split='holdout'
  )
  evaluate.evaluate_checkpoint(config, str(workdir))
  assert "some images of split 'holdout' were trained on" in caplog.text


def test_nothing_is_held_out_of_other_data(workdir, tmp_path):
  write_images(tmp_path / 'other', 'train', CLASSES, seed=2)
  config = load(workdir)
  config.data.update(name=f'folder:{tmp_path}/other', holdout_share=0.25)
  config.data.eval_split = 'train'
  values = evaluate.evaluate_checkpoint(config, str(workdir))
  assert values[f'folder:{tmp_path}/other:train/num_examples'] == 24
  config.data.eval_split = 'holdout'
  values = evaluate.evaluate_checkpoint(config, str(workdir))
  assert values[f'folder:{tmp_path}/other:holdout/num_examples'] < 24


def test_a_larger_share_on_resume_is_told(trained, workdir, caplog):
  config = load(workdir)
  config.data.holdout_share, config.num_epochs = 0.25, 21.0
  train.train_and_evaluate(config, str(workdir))
  assert 'that are held out now were trained on before' in caplog.text


def rename(root, new_root, names):
  for old, new in names.items():
    shutil.copytree(root / 'test' / old, new_root / 'test' / new)
  return f'folder:{new_root}'


@pytest.mark.parametrize('kept', [('cat', 'flower'), ('flower',), ('dog', 'cat')])
def test_some_of_the_classes_are_evaluated_by_name(
  kept, trained, workdir, tmp_path, caplog
):
  config = load(workdir)
  config.data.name = rename(trained[1], tmp_path / 'part', {x: x for x in kept})
  absl_logging.set_verbosity('info')
  values = evaluate.evaluate_checkpoint(config, str(workdir))
  assert values[f'{config.data.name}:test/clean_top1'] == 1.0
  assert values[f'{config.data.name}:test/num_examples'] == 8 * len(kept)
  assert f'has {len(kept)} of the 3 classes of the network' in caplog.text


def test_names_that_stand_for_others_are_counted_as_what_they_say(
  trained, workdir, tmp_path
):
  config = load(workdir)
  swapped = {'cat': 'dog', 'dog': 'cat', 'flower': 'flower'}
  config.data.name = rename(trained[1], tmp_path / 'swapped', swapped)
  values = evaluate.evaluate_checkpoint(config, str(workdir))
  assert values[f'{config.data.name}:test/clean_top1'] == pytest.approx(1 / 3)


def test_unknown_names_are_an_error_that_lists_them(trained, workdir, tmp_path):
  config = load(workdir)
  names = {'cat': 'cat', 'dog': 'digit', 'flower': 'flower'}
  config.data.name = rename(trained[1], tmp_path / 'renamed', names)
  before = results(workdir)
  with pytest.raises(
    errors.UserError, match="not know 1 of its 3 classes: 'digit'; .*'dog'"
  ):
    evaluate.evaluate_checkpoint(config, str(workdir))
  assert results(workdir) == before


def test_a_new_class_is_another_data_set_on_resume(workdir, tmp_path):
  write_images(tmp_path / 'more', 'train', CLASSES, seed=0)
  write_images(tmp_path / 'more', 'test', CLASSES, seed=0)
  for split in ('train', 'test'):
    shutil.copytree(
      tmp_path / 'more' / split / 'cat', tmp_path / 'more' / split / 'bird'
    )
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  with pytest.raises(
    errors.UserError, match="another data set: .* 1 of its 4 classes: 'bird'"
  ):
    train.train_and_evaluate(create_config(tmp_path / 'more'), str(workdir))
  assert before == {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


def test_the_classes_of_a_run_are_those_of_its_checkpoint(trained, workdir):
  """Whatever has become of config.json."""
  (workdir / 'config.json').unlink()
  config = create_config(trained[1])
  config.num_epochs = 22.0
  train.train_and_evaluate(config, str(workdir))
  assert load(workdir).data.class_names == CLASSES


def test_changed_images_are_told_on_resume(workdir, tmp_path, caplog):
  root = tmp_path / 'changed'
  write_images(root, 'train', CLASSES, seed=0)
  write_images(root, 'test', CLASSES, seed=0)
  (root / 'train' / 'cat' / '0.png').unlink()
  config = create_config(root)
  config.num_epochs = 22.0
  train.train_and_evaluate(config, str(workdir))
  assert (
    f'folder:{root} is another one than at step 60: 24 files then, 23' in caplog.text
  )


def test_an_older_checkpoint_is_evaluated(trained, workdir):
  values = evaluate.evaluate_checkpoint(load(workdir), str(workdir), which='30')
  (during,) = [x for x in results(workdir) if x['step'] == 30 and 'val/adv_loss' in x]
  assert results(workdir)[-1]['checkpoint'] == str(workdir / 'checkpoints' / '30')
  assert values[f'folder:{trained[1]}:test/adv_loss'] == during['val/adv_loss']


@pytest.fixture
def converted(trained, tmp_path):
  """Returns a workdir as one that was not trained in, with the clean network alone."""
  config = schema.read(load(trained[0]))
  model = create_tiny_model(config, num_classes=3)
  with restore.Reader(trained[0] / 'checkpoints') as saver:
    variables, _ = model_config.restore_variables(saver, 60, config, model)
  for name in ('norms', 'batch_stats'):
    variables[name] = {'clean': variables[name]['clean']}
  keys = ('name', 'class_names', 'image_size', 'crop_padding', 'resize_method')
  data = {key: config.data[key] for key in (*keys, 'eval_batch_size')}
  part = {'model': config.model, 'data': data}
  workdir = tmp_path / 'converted'
  with checkpoint.Checkpointer(workdir / 'checkpoints') as saver:
    saver.save(0, {'model': variables}, config=part, examples_seen=0, fingerprint={})
  (workdir / 'config.json').write_text(json.dumps(part))
  return workdir


def test_a_network_that_was_not_trained_here_is_evaluated(converted, trained, caplog):
  config = load(converted)
  config.data.eval_split = 'test'
  config.eval.attack = load(trained[0]).eval.attack
  values = evaluate.evaluate_checkpoint(config, str(converted))
  (during,) = [
    x for x in results(trained[0]) if x['step'] == 60 and 'val/adv_loss' in x
  ]
  title = f'folder:{trained[1]}:test'
  expected = {k.replace('val', title): x for k, x in during.items() if 'val/' in k}
  assert values == {k: x for k, x in expected.items() if '/adv_' not in k}
  assert results(converted)[-1]['averaged'] is False
  assert 'before and' not in caplog.text and 'is changed' not in caplog.text


@pytest.mark.parametrize('kept', [CLASSES, CLASSES[:2]])
def test_a_network_alone_cannot_be_trained_in_its_workdir(
  converted, trained, tmp_path, kept
):
  config = create_config(tmp_path / 'mine')
  write_images(tmp_path / 'mine', 'train', kept, seed=0)
  before = sorted(converted.rglob('*'))
  with pytest.raises(
    errors.UserError,
    match='checkpoints/0 holds a network without the state of a training; allowed: '
    f'--config.init_from={converted} with another --workdir',
  ):
    train.train_and_evaluate(config, str(converted))
  assert sorted(converted.rglob('*')) == before


def test_a_workdir_without_a_run_is_one_line(tmp_path):
  with pytest.raises(
    errors.UserError, match='config.json; allowed: that of a --workdir'
  ):
    directory.read_config(tmp_path / 'config.json')
  for text in ('{"a": 1', '[1]', '[' * 100_000, '\xff'):
    (tmp_path / 'config.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(errors.UserError, match='config.json is n') as e:
      directory.read_config(tmp_path / 'config.json')
    assert '\n' not in str(e.value)


def test_labels_outside_of_the_classes_end_training_and_are_counted_in_evaluation(
  trained, workdir, monkeypatch
):
  opened = images.open_dataset

  def without_last(*args, **options):  # Its label is the number of classes.
    dataset = opened(*args, **options)
    return type(dataset)(**{**vars(dataset), 'class_names': dataset.class_names[:2]})

  monkeypatch.setattr(images, 'open_dataset', without_last)
  values = evaluate.evaluate_checkpoint(load(workdir), str(workdir))
  title = f'folder:{trained[1]}:test'
  assert values[f'{title}/num_examples'] == 16
  assert values[f'{title}/num_unlabelled'] == 8
  with pytest.raises(
    errors.UserError, match="split 'train' has examples without a lab"
  ):
    train.train_and_evaluate(create_config(trained[1]), str(workdir / 'new'))


def read_suite(workdir, name):
  return json.loads((workdir / 'eval' / f'{name}.json').read_text())


def test_a_result_says_what_it_is_of(trained, workdir):
  """The scores of images whose predictions are known: all are right."""
  values = evaluate.evaluate_checkpoint(load(workdir), str(workdir))
  for name, kind in (('val', ''), ('pgd', '_pgd')):
    found = read_suite(workdir, name)
    assert found['complete'] and found['class_names'] == list(CLASSES)
    assert found['checkpoint']['step'] == 60 and found['checkpoint']['averaged']
    assert (found['attack'] is None) == (name == 'val')
    (cell,) = found['cells'].values()
    assert cell['data']['name'] == f'folder:{trained[1]}'
    assert cell['input']['image_size'] == 32
    assert (cell['num_examples'], cell['num_unlabelled'], cell['num_bad']) == (24, 0, 0)
    for branch in ('clean', 'adv'):
      scores = cell['branches'][branch]
      for score in ('top1', 'loss', 'ece'):
        assert (
          scores[score] == values[f'folder:{trained[1]}:test/{branch}{kind}_{score}']
        )
      counts = scores['reliability']['count']
      assert sum(counts) == 24 and np.sum(scores['confusion']) == 24
      ece = sum(
        n * abs(x - y)
        for n, x, y in zip(*scores['reliability'].values(), strict=True)
        if n
      )
      assert scores['ece'] == pytest.approx(ece / 24)
      right = np.diagonal(scores['confusion'])
      assert scores['class_top1'] == pytest.approx(list(right / 8))
  assert (
    read_suite(workdir, 'val')['cells']['all']['branches']['clean']['confusion']
    == (8 * np.eye(3)).tolist()
  )


def test_an_evaluation_goes_on_with_what_is_missing(workdir, monkeypatch, caplog):
  """Ended in the middle, it is repeated: each cell is evaluated once."""
  names = [(x, n) for x in ('brightness', 'fog') for n in (1, 2)]
  cells = {f'{x}_{n}': suites.Cell(corruption=(x, n)) for x, n in names}
  suite = suites.SUITES['corruptions']._replace(cells=cells)
  monkeypatch.setitem(suites.SUITES, 'corruptions', suite)
  evaluated, corrupt = [], corrupted_batches.corrupt_batches

  class Interrupted(Exception):
    pass

  def corrupt_batches(batches, name, severity, *, seed):
    class Batches:
      num_bad = 0

      def __len__(self):
        return len(batches)

      def __iter__(self):
        if len(evaluated) == interrupted_at:
          raise Interrupted
        evaluated.append((name, severity))
        return iter(corrupt(batches, name, severity, seed=seed))

    return Batches()

  monkeypatch.setattr(corrupted_batches, 'corrupt_batches', corrupt_batches)
  interrupted_at = 2
  run = functools.partial(
    evaluate.evaluate_checkpoint,
    load(workdir),
    str(workdir),
    suite_names=('corruptions',),
  )
  with pytest.raises(Interrupted):
    run()
  half = read_suite(workdir, 'corruptions')
  assert list(half['cells']) == ['brightness_1', 'brightness_2']
  assert not half['complete']
  interrupted_at = 9
  first = run()
  assert evaluated == names
  whole = read_suite(workdir, 'corruptions')
  assert whole['complete'] and whole['cells'].keys() == cells.keys()
  assert whole['cells']['brightness_1'] == half['cells']['brightness_1']
  lines = results(workdir)
  assert run() == first and evaluated == names  # Nothing is left to do.
  assert read_suite(workdir, 'corruptions') == whole and results(workdir) == lines


def test_another_checkpoint_has_results_of_its_own(workdir, caplog):
  config = load(workdir)
  config.eval.suites = ('val',)
  evaluate.evaluate_checkpoint(config, str(workdir))
  new = (workdir / 'eval' / 'val.json').read_text()
  absl_logging.set_verbosity('info')
  evaluate.evaluate_checkpoint(config, str(workdir), which='30')
  assert read_suite(workdir, 'val')['checkpoint']['step'] == 30
  (kept,) = [x for x in (workdir / 'eval').iterdir() if x.name != 'val.json']
  assert kept.read_text() == new and kept.name.startswith('val.json.step60-')
  assert (
    f'is of other weights, data, crop, network or attack: it is kept as {kept.name}'
    in (caplog.text)
  )
  lines = results(workdir)
  evaluate.evaluate_checkpoint(config, str(workdir))  # Not evaluated once more.
  again = read_suite(workdir, 'val')
  assert again.pop('taken_up') >= again['date'] and again == json.loads(new)
  assert results(workdir) == lines
  names = {x.name.partition('-')[0] for x in (workdir / 'eval').iterdir()}
  assert names == {'val.json', 'val.json.step30'}


def test_other_images_or_crops_are_evaluated_anew(trained, workdir, tmp_path):
  config = load(workdir)
  config.eval.suites = ('val',)
  evaluate.evaluate_checkpoint(config, str(workdir))
  date = read_suite(workdir, 'val')
  config.model.bn_epsilon = 0.5  # Another function of the same weights.
  evaluate.evaluate_checkpoint(config, str(workdir))
  assert read_suite(workdir, 'val')['network']['bn_epsilon'] == 0.5
  config.data.crop_padding = 4
  evaluate.evaluate_checkpoint(config, str(workdir))
  changed = read_suite(workdir, 'val')
  assert changed['cells']['all']['input']['crop_padding'] == 4
  root = shutil.copytree(trained[1], tmp_path / 'fewer')
  (root / 'test' / 'cat' / '0.png').unlink()
  config.data.name = f'folder:{root}'
  evaluate.evaluate_checkpoint(config, str(workdir))
  assert read_suite(workdir, 'val')['cells']['all']['num_examples'] == 23
  for text in ('{"cells": ', '[]', '{"cells": []}'):
    (workdir / 'eval' / 'val.json').write_text(text)
    evaluate.evaluate_checkpoint(config, str(workdir))
    assert read_suite(workdir, 'val')['cells']['all']['num_examples'] == 23
  assert date['cells']['all']['num_examples'] == 24


def test_results_of_changed_images_do_not_count_when_the_new_ones_fail(
  trained, workdir, tmp_path
):
  """A mean over old and new images would be silently wrong."""
  root = shutil.copytree(trained[1], tmp_path / 'copy')
  config = load(workdir)
  config.data.name = f'folder:{root}'
  config.eval.suites = ('val',)
  assert evaluate.evaluate_checkpoint(config, str(workdir))
  for path in root.glob('test/*/*'):
    path.write_bytes(b'no image, and of another size')
  config.eval.suites = ('val',)
  with pytest.raises(errors.UserError, match='suite val, all: '):
    evaluate.evaluate_checkpoint(config, str(workdir))
  lines = [x for x in results(workdir) if f'folder:{root}' in str(x)]
  assert len(lines) == 1


def test_cells_of_earlier_evaluations_are_kept_while_their_images_are_away(
  workdir, monkeypatch
):
  """As of a test set that is unpacked and evaluated part by part."""
  suite, found = suites.SUITES['corruptions'], {}
  cells = {x: suites.Cell(corruption=(x, 1)) for x in ('brightness', 'contrast', 'fog')}
  monkeypatch.setitem(suites.SUITES, 'corruptions', suite._replace(cells=cells))
  opened = evaluations.open_once
  for there in ('fog', 'brightness'):

    def open_once(config, cell, *args, there=there):
      if cell.corruption[0] != there:
        raise errors.UserError('not there')
      return opened(config, cell, *args)

    monkeypatch.setattr(evaluations, 'open_once', open_once)
    message = 'suite corruptions, 2 of 3 sets cannot be evaluated; .*: not there'
    with pytest.raises(errors.UserError, match=message):
      evaluate.evaluate_checkpoint(
        load(workdir), str(workdir), suite_names=('corruptions',)
      )
    found[there] = read_suite(workdir, 'corruptions')
  assert list(found['brightness']['cells']) == ['brightness', 'fog']
  assert found['brightness']['cells']['fog'] == found['fog']['cells']['fog']
  assert not found['brightness']['complete']


def test_ctrl_c_tells_what_is_left_of_an_evaluation():
  text = evaluate.describe_interruption('runs/x')
  assert 'goes on with the sets of images' in text and text.endswith('runs/x/eval')


def test_what_is_evaluated_in_one_pass_is_written_at_once():
  order = evaluate._same_images_together(['val', 'corruptions', 'pgd', 'a'])
  assert order == ['val', 'pgd', 'corruptions', 'a']


def test_what_is_missing_is_said_and_the_rest_is_evaluated(workdir, caplog):
  config = load(workdir)
  config.data.data_dir = str(workdir)
  with pytest.raises(
    errors.UserError,
    match='^1 of 2 suites have no result .*: suite sketch, all: the network lacks 1000',
  ):
    evaluate.evaluate_checkpoint(config, str(workdir), suite_names=('sketch', 'val'))
  assert read_suite(workdir, 'val')['complete']
  with pytest.raises(errors.UserError, match="suite 'vall'; did you mean 'val'"):
    evaluate.evaluate_checkpoint(config, str(workdir), suite_names=('vall',))
  config.eval.suites = ()
  with pytest.raises(errors.UserError, match='nothing to evaluate: eval.suites is'):
    evaluate.evaluate_checkpoint(config, str(workdir))
  with pytest.raises(errors.UserError, match='allowed: all alone'):
    evaluate.evaluate_checkpoint(config, str(workdir), suite_names=('all', 'val'))
