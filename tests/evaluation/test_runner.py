"""Tests that evaluation counts every example once and measures what it says."""

import jax
import numpy as np
import pytest
import tensorflow as tf
from tiny_model import TinyModel

from advprop_jax import branches, errors, parallel
from advprop_jax.attacks import gradient
from advprop_jax.evaluation import pictures, runner

pytestmark = pytest.mark.usefixtures('fast_compilation')

NUM_CLASSES = 7


@pytest.fixture(scope='module')
def weights():
  image = np.zeros((1, 8, 8, 3), np.float32)
  variables = TinyModel(NUM_CLASSES).init(jax.random.key(0), image, train=False)
  norms = branches.fork(variables['norm'], ('clean', 'adv'))
  norms['adv']['bn']['scale'] = -norms['adv']['bn']['scale']
  return {
    'params': variables['params'],
    'norms': norms,
    'batch_stats': branches.fork(variables['batch_stats'], ('clean', 'adv')),
  }


def examples(n, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(size=(n, 8, 8, 3)).astype(np.float32)
  return image, rng.integers(0, NUM_CLASSES, n).astype(np.int32)


def batches(image, label, batch_size):
  """Returns padded batches; the padding is poisoned, to see whether it counts."""
  result = []
  for i in range(0, len(image), batch_size):
    x, y = image[i : i + batch_size], label[i : i + batch_size]
    pad = batch_size - len(x)
    result.append(
      {
        'image': np.concatenate([x, np.full((pad, 8, 8, 3), np.nan, np.float32)]),
        'label': np.concatenate([y, np.zeros(pad, np.int32)]),
        'mask': np.arange(batch_size) < len(x),
        'position': np.where(
          np.arange(batch_size) < len(x), i + np.arange(batch_size), -1
        ).astype(np.int32),
      }
    )
  return result


def pgd(**changes):
  settings = {
    'num_classes': NUM_CLASSES,
    'epsilon': 16 / 255,
    'step_size': 4 / 255,
    'num_steps': 5,
    'targeted': False,
    'prob_start_from_clean': 0.0,
  }
  return gradient.make_pgd(**{**settings, **changes})


def make_evaluator(**changes):
  return runner.Evaluator(TinyModel(NUM_CLASSES), pgd(**changes), seed=0)


@pytest.mark.parametrize('n', [1, 8, 13, 37])
def test_equals_tensorflow_on_every_example_exactly_once(weights, n):
  image, label = examples(n)
  values, *_ = make_evaluator()(**weights, batches=batches(image, label, 8))
  assert values['num_examples'] == n
  for branch in ('clean', 'adv'):
    variables = branches.variables(**weights, branch=branch)
    logits = np.asarray(TinyModel(NUM_CLASSES).apply(variables, image, train=False))
    top1 = tf.keras.metrics.sparse_categorical_accuracy(label, logits)
    top5 = tf.keras.metrics.sparse_top_k_categorical_accuracy(label, logits, k=5)
    loss = tf.keras.losses.sparse_categorical_crossentropy(
      label, logits, from_logits=True
    )
    for name, expected in [('top1', top1), ('top5', top5), ('loss', loss)]:
      assert values[f'{branch}_{name}'] == pytest.approx(
        float(np.mean(expected)), rel=1e-5
      )


def test_the_attack_lowers_what_it_attacks_through_either_branch(weights):
  image, label = examples(64)
  values, *_ = make_evaluator()(**weights, batches=batches(image, label, 16))
  for branch in ('clean', 'adv'):
    assert values[f'{branch}_pgd_top1'] <= values[f'{branch}_top1']
    assert values[f'{branch}_pgd_loss'] > values[f'{branch}_loss']


def test_epsilon_zero_equals_clean(weights):
  image, label = examples(16)
  values, shown, _ = make_evaluator(epsilon=0.0)(
    **weights, batches=batches(image, label, 8)
  )
  assert values['clean_pgd_loss'] == values['clean_loss']
  np.testing.assert_array_equal(shown.image, shown.adversarial)
  np.testing.assert_array_equal(shown.image, image[:8])
  np.testing.assert_array_equal(shown.logits, shown.adversarial_logits)


@pytest.mark.parametrize('targeted', [False, True])
def test_the_attack_of_an_example_depends_on_no_other(weights, targeted):
  """Neither on the size of the batch, nor on which devices there are."""
  image, label = examples(24)
  found = [
    make_evaluator(targeted=targeted)(**weights, batches=batches(image, label, size))
    for size in (4, 8, 24)
  ]
  for other in found[1:]:
    assert other.metrics == pytest.approx(found[0].metrics, rel=1e-6)
  np.testing.assert_array_equal(
    found[1].pictures.adversarial, found[2].pictures.adversarial
  )
  # The same on one device, as `jax.jit` of the per-device step has it.
  attack = pgd(targeted=targeted)
  step = jax.vmap(
    runner.make_step(TinyModel(NUM_CLASSES), attack, columns=None),
    in_axes=(None, 0, None),
    axis_name='batch',
  )
  (whole,) = batches(image, label, 24)
  rng = jax.random.fold_in(jax.random.key(0), runner._EVALUATION)
  variables = branches.variables(**weights, branch='clean')
  sums, _ = jax.jit(step)(variables, jax.tree.map(lambda x: x[None], whole), rng)
  loss = float(sums['_pgd']['loss'][0]) / 24
  assert loss == pytest.approx(found[0].metrics['clean_pgd_loss'], rel=1e-6)


def test_logits_are_picked_by_columns_and_the_others_do_not_count(weights):
  image, label = examples(13)
  columns = np.array([5, 0, 2], np.int32)
  evaluator = runner.Evaluator(TinyModel(NUM_CLASSES), pgd(), seed=0, columns=columns)
  values, shown, _ = evaluator(**weights, batches=batches(image, label % 3, 8))
  variables = branches.variables(**weights, branch='clean')
  logits = np.asarray(TinyModel(NUM_CLASSES).apply(variables, image, train=False))
  masked = np.full_like(logits, -np.inf)
  masked[:, columns] = logits[:, columns]
  right = masked.argmax(-1) == columns[label % 3]
  assert values['clean_top1'] == pytest.approx(right.mean())
  loss = tf.keras.losses.sparse_categorical_crossentropy(
    columns[label % 3], masked.astype(np.float64), from_logits=True
  )
  assert values['clean_loss'] == pytest.approx(float(np.mean(loss)), rel=1e-5)
  assert shown.logits.shape == (8, 3)


def test_examples_without_a_label_are_counted_apart(weights):
  image, label = examples(13)
  (batch, last) = batches(image, label, 8)
  batch['label'][[1, 5]], batch['mask'][[1, 5]] = -1, False
  values, *_ = make_evaluator()(**weights, batches=[batch, last])
  assert (values['num_examples'], values['num_unlabelled']) == (11, 2)
  kept = np.delete(np.arange(13), [1, 5])
  expected, *_ = make_evaluator()(
    **weights, batches=batches(image[kept], label[kept], 8)
  )
  for name in ('clean_loss', 'adv_top1'):
    assert values[name] == pytest.approx(expected[name], rel=1e-6)
  batch['mask'][:] = False
  with pytest.raises(errors.UserError, match='no image can be evaluated'):
    make_evaluator()(**weights, batches=[batch])


def test_a_batch_is_transferred_once_and_one_step_is_compiled(weights, monkeypatch):
  """Whatever the number of branches, attacks and evaluations."""
  transfers, traces, compilations = [], [], []
  prefetch = parallel.prefetch
  monkeypatch.setattr(
    parallel, 'prefetch', lambda x: prefetch(transfers.append(i) or i for i in x)
  )
  attack = pgd()

  def counted(*args):
    traces.append(args)
    return attack(*args)

  def listen(event, secs, **kwargs):
    if 'compile' in event or 'trac' in event:
      compilations.append(event)

  evaluator = runner.Evaluator(TinyModel(NUM_CLASSES), counted, seed=0)
  image, label = examples(32)
  first, *_ = evaluator(**weights, batches=batches(image, label, 8))
  assert len(transfers) == 4 and len(traces) == 1
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    again, *_ = evaluator(**weights, batches=batches(image, label, 8))
    assert again == first and not compilations
    jax.jit(lambda x: x + 2)(np.float32(1))
    assert compilations  # The listener does hear of compilations.
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_pictures_are_of_examples_that_count(weights):
  image, label = examples(8)
  (batch,) = batches(image[:5], label[:5], 8)
  batch['mask'][1] = False  # As of a file that cannot be decoded.
  _, shown, _ = make_evaluator()(**weights, batches=[batch])
  np.testing.assert_array_equal(shown.image, image[[0, 2, 3, 4]])
  np.testing.assert_array_equal(shown.label, label[[0, 2, 3, 4]])
  assert len(shown.adversarial) == len(shown.logits) == 4


def test_every_batch_has_noise_of_its_own_and_evaluation_repeats_itself(weights):
  evaluator = make_evaluator(num_steps=0)
  image, label = examples(8)
  twice = batches(np.concatenate([image, image]), np.concatenate([label, label]), 8)
  run = lambda b: evaluator(  # noqa: E731
    **weights, batches=b
  )[0]['clean_pgd_loss']
  assert run(twice[:1]) != run(twice)
  assert run(twice) == run(twice)


def test_pictures_are_of_the_clean_branch_attacked_through_running_statistics(weights):
  """The attack is repeated on one device, image by image: no batch to be seen."""
  image, label = examples(8)
  settings = {'prob_start_from_clean': 1.0}
  variables = branches.variables(**weights, branch='clean')

  @jax.jit
  def logits_fn(x):
    return TinyModel(NUM_CLASSES).apply(variables, x, train=False)

  attack = pgd(**settings)
  alone = [
    attack(logits_fn, image[i : i + 1], label[i : i + 1], jax.random.key(i))
    for i in range(len(image))
  ]
  reverse = {**weights, 'norms': dict(reversed(weights['norms'].items()))}
  evaluator = make_evaluator(**settings)
  for each in (weights, reverse):  # Whichever branch comes last.
    _, shown, _ = evaluator(**each, batches=batches(image, label, 8))
    np.testing.assert_allclose(shown.adversarial, np.concatenate(alone), atol=1e-6)
    np.testing.assert_allclose(shown.logits, logits_fn(image), atol=1e-5)
    np.testing.assert_allclose(
      shown.adversarial_logits, logits_fn(shown.adversarial), atol=1e-5
    )


def test_random_numbers_share_nothing_with_those_of_training(weights):
  """No key of an attack is one that training of the same seed draws or derives from."""
  used = []

  def record(logits_fn, image, label, rng):
    jax.debug.callback(
      lambda x: used.extend(map(tuple, x.tolist())), jax.random.key_data(rng)
    )
    return image

  image, label = examples(32)
  evaluator = runner.Evaluator(TinyModel(NUM_CLASSES), record, seed=3)
  evaluator(**weights, batches=batches(image, label, 8))
  jax.effects_barrier()
  assert len(set(used)) == 32  # Examples; the same for every branch.
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  init_and_run = jax.random.split(jax.random.key(3))
  by_step = fold(init_and_run[1], np.arange(64))
  by_device = jax.vmap(lambda key: fold(key, np.arange(8)))(by_step)
  trained = {
    tuple(x)
    for keys in (init_and_run, by_step, by_device)
    for x in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()
  }
  assert not trained & set(used)


def test_the_picture_shows_both_predictions_and_the_perturbation():
  n = 2
  image = np.full((n, 4, 4, 3), 0.5, np.float32)
  adversarial = image + np.float32(4 / 255)
  logits = np.array([[9, 0, 0], [0, 9, 0]], np.float32)
  grid = pictures.adversarial_grid(
    image,
    adversarial,
    np.array([0, 2]),
    logits,
    logits[::-1],
    class_names=['zero', 'one', 'two'],
  )
  cell, line, margin = pictures.CELL, pictures.CAPTION, pictures.MARGIN
  assert grid.dtype == np.uint8 and grid.shape[2] == 3
  assert grid.shape[:2] == (
    3 * (cell + line + margin) + margin,
    n * (cell + margin) + margin,
  )
  middle = margin + cell // 2
  row = cell + line + margin
  # Clean grey; the largest perturbation fills the range, so white; adversarial grey.
  assert [int(grid[middle + i * row, middle, 0]) for i in range(3)] == [128, 255, 132]
  colours = {tuple(c) for c in grid.reshape(-1, 3)}
  assert pictures.RIGHT in colours and pictures.WRONG in colours


def test_a_model_that_diverged_can_still_be_drawn():
  image = np.zeros((3, 4, 4, 3), np.float32)
  logits = np.array([[np.nan, 0], [np.inf, 0], [1e38, -1e38]], np.float32)
  grid = pictures.adversarial_grid(
    image, image * np.nan, np.zeros(3, int), logits, logits, class_names=['a', 'b']
  )
  assert grid.dtype == np.uint8
