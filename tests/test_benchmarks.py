"""Tests the counts that benchmarks compare with, and that their programs run."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from advprop_jax import errors, models
from advprop_jax.attacks import ensembles, worst_case
from advprop_jax.input import augment_ops, batches, corruptions
from advprop_jax.input.datasets import prepared
from advprop_jax.models import arithmetic, efficientnet
from benchmarks import attack_gradients, input_pipeline, step_time, training
from benchmarks import autoattack as autoattack_benchmark
from benchmarks import checkpoints as checkpoints_benchmark
from benchmarks import corruptions as corruptions_benchmark
from benchmarks import evaluate as evaluate_benchmark

ROOT = pathlib.Path(__file__).parent.parent

# 'FLOPS', in billions of multiply-adds. Source: Tan & Le 2019, table 2, published.
PUBLISHED = {
  'efficientnet_b0': 0.39,
  'efficientnet_b1': 0.70,
  'efficientnet_b2': 1.0,
  'efficientnet_b3': 1.8,
  'efficientnet_b4': 4.2,
  'efficientnet_b5': 9.9,
  'efficientnet_b6': 19,
  'efficientnet_b7': 37,
}


@pytest.mark.parametrize('name', [f'efficientnet_b{i}' for i in (0, 1, 4, 7)])
def test_multiply_adds_are_the_published_ones(name):
  model = models.create_model(name)
  count = arithmetic.count_model(model, efficientnet.VARIANTS[name].image_size)
  assert count.multiply_adds / 1e9 == pytest.approx(PUBLISHED[name], rel=0.05)


def test_advprop_costs_what_the_paper_says():
  # (K + 2) forward and backward passes for K steps. Source: Mei et al. 2022 (Fast
  # AdvProp), eq. 2, which counts an attack's backward pass like any other.
  count = arithmetic.count_model(models.create_model('efficientnet_b0'), 224)
  vanilla = arithmetic.train(count, clean=1, attacked=0, num_steps=0)
  for steps in (1, 5):
    advprop = arithmetic.train(count, clean=1, attacked=1, num_steps=steps)
    # No weight gradients in the attack: two thirds of a pass.
    assert advprop / vanilla == pytest.approx(2 + 2 / 3 * steps, rel=0.03)
    assert advprop / vanilla < steps + 2


def test_a_step_is_described_with_its_passes():
  parser = training.create_parser('Steps.', methods=training.METHODS)

  def passes(method):
    args = parser.parse_args(['--method', method, '--pgd-steps', '3'])
    line = training.describe(args)
    return tuple(
      line[f'{name}_passes{to}']
      for name, to in [
        ('forward', ''),
        ('backward', '_to_weights'),
        ('backward', '_to_images'),
      ]
    )

  # Counted by hand: every stream has one of each, an attack three more.
  assert passes('vanilla') == (1, 1, 0)
  assert passes('advprop') == (5, 2, 3)
  assert passes('adversarial_only') == (4, 1, 3)
  assert passes('fine_grained') == (6, 3, 3)
  assert passes('fast_advprop') == pytest.approx((1.2, 1.2, 0))


@pytest.mark.parametrize('method, multiple', [('fast_advprop', 20), ('advprop', 4)])
def test_a_batch_that_does_not_divide_is_refused(method, multiple):
  training.check(argparse.Namespace(method=method, batch=3 * multiple))
  with pytest.raises(errors.UserError, match=f'multiples of {multiple}, for 4 devices'):
    training.check(argparse.Namespace(method=method, batch=multiple + 2))


PEER = {'peer': 'x', 'model': 'efficientnet_tiny', 'batch': 8, 'size': 64}


@pytest.mark.long
def test_step_time_prints_one_line_with_the_ratio_to_a_peer():
  peer = PEER | {'pgd_steps': 2, 'advprop_step': 0.5}
  command = f'{sys.executable} benchmarks/step_time.py --model efficientnet_tiny '
  command += '--size 64 --batch 8 --repeats 2 --method advprop --pgd-steps 2 '
  command += '--peak-tflops 1 --peer'
  done = subprocess.run(
    [*command.split(), json.dumps(peer)],
    env={**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},  # Compiles faster.
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  result = json.loads(line)
  assert 0 < result['step_secs'] <= result['step_median_secs'] < result['compile_secs']
  assert result['peer_ratio'] == pytest.approx(result['step_secs'] / 0.5)
  assert result['flops_analytic'] == pytest.approx(
    1e12 * result['utilisation'] * result['step_secs']
  )
  assert result['temp_bytes'] > 0
  # So small a model pays visibly for its optimizer (B0: 1.05, see README.md). Gradients
  # to the weights in the attack would be 1.37.
  assert 1 < result['flops_ratio'] < 1.2


@pytest.mark.parametrize(
  ('peer', 'message'),
  [
    ('{"peer"', 'JSONDecodeError'),
    ('[1]', 'TypeError'),
    (
      json.dumps(PEER),
      "KeyError: 'advprop_step'.*allowed.*pgd_steps, and seconds as advprop_step",
    ),
    (json.dumps(PEER | {'advprop_step': 1, 'pgd_steps': 1}), 'pgd_steps 1, this is 2'),
    (json.dumps(PEER | {'advprop_step': 0, 'pgd_steps': 2}), 'more than 0'),
    ('{"advprop_step": NaN, ' + json.dumps(PEER | {'pgd_steps': 2})[1:], 'more than 0'),
    (
      json.dumps(PEER | {'advprop_step': 1, 'pgd_steps': 2, 'dtype': 'bfloat16'}),
      'dtype bfloat16, this is float32',
    ),
    (
      json.dumps(PEER | {'advprop_step': 1, 'pgd_steps': 2, 'batch': 4}),
      'batch 4, this is 8; allowed: the same',
    ),
  ],
)
def test_step_time_refuses_other_computations_as_its_peer(peer, message):
  args = argparse.Namespace(
    model='efficientnet_tiny',
    size=64,
    batch=8,
    method='advprop',
    pgd_steps=2,
    dtype='float32',
    peer=peer,
  )
  with pytest.raises(errors.UserError, match=message):
    step_time.parse_peer(args)


class FlipsInBfloat16(nn.Module):
  """Weighs the lower rows triple; in bfloat16 the upper rows count negative."""

  dtype: Any = jnp.float32
  num_classes: int = 2

  @nn.compact
  def __call__(self, image, *, train):
    rows = jnp.arange(image.shape[1])[:, None, None]
    upper = rows < image.shape[1] // 2
    weight = jnp.where(upper, -1.0 if self.dtype == jnp.bfloat16 else 1.0, 3.0)
    total = (weight * image).sum((1, 2, 3))
    return jnp.stack([total - 41, 41 - total], axis=-1)


def test_attack_gradients_count_the_signs_that_agree():
  image = jnp.full((3, 4, 4, 3), 0.5)
  result = attack_gradients.compare(
    FlipsInBfloat16(),
    {},
    image,
    jnp.zeros(3, jnp.int32),
    {'epsilon': 0.1, 'step_size': 0.1, 'num_steps': 1},
  )
  assert result['images'] == 3
  assert result['sign_agreement'] == 0.5
  assert result['sign_agreement_weighted'] == pytest.approx(0.75)
  # 24 values of 0.5, once and three times, make 48. The attack in float32 takes
  # 0.1 * (24 + 72) = 9.6 of it, that in bfloat16 0.1 * (72 - 24) = 4.8.
  assert result['top1_attacked_in_float32'] == 0
  assert result['top1_attacked_in_bfloat16'] == 1


def test_step_time_needs_no_tensorflow():
  code = 'import benchmarks.step_time, sys; assert "tensorflow" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


@pytest.fixture
def measure(monkeypatch, capsys):
  """Returns a function that runs one measure of input_pipeline.py, much shrunk."""
  monkeypatch.setattr(input_pipeline, 'use_one_core', lambda: None)
  monkeypatch.setattr(input_pipeline, 'BATCH_SIZE', 2)
  monkeypatch.setattr(input_pipeline, 'NUM_IMAGES', 4)
  monkeypatch.setattr(batches, 'NUM_PARALLEL_EXAMPLES', batches.NUM_PARALLEL_EXAMPLES)

  def call(name, **kwargs):
    args = argparse.Namespace(sizes=[32], batches=1, repeats=1, **kwargs)
    input_pipeline.MEASURES[name](args)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

  return call


def test_the_input_pipeline_is_compared_with_its_floor(measure):
  floor, crop, *augmented = measure('pipeline')
  assert floor['what'] == 'floor' and floor['ratio_to_floor'] == 1.0
  assert crop['ratio_to_floor'] == crop['images_per_sec'] / floor['images_per_sec']
  assert [x['what'] for x in augmented] == ['autoaugment', 'randaugment']
  for x in augmented:
    cost = 1 / x['images_per_sec'] / (1 / crop['images_per_sec']) - 1
    assert x['cost_on_top_of_crop'] == pytest.approx(cost)


def test_every_augmentation_op_is_timed(measure):
  assert [x['op'] for x in measure('ops')] == list(augment_ops.OPS)


@pytest.mark.parametrize('size', ['small', 'large'])
def test_reading_is_compared_with_the_disk_and_one_thread(measure, monkeypatch, size):
  monkeypatch.setattr(input_pipeline, 'TRAIN_IMAGES', 1001)
  monkeypatch.setattr(input_pipeline, 'NUM_SHARDS', 10)
  if size == 'large':  # Files are then read one by one.
    monkeypatch.setattr(prepared, 'MAX_FILE_BYTES', -1)
  counts = []
  count_records = input_pipeline.count_records

  def spy(records):
    counts.append(count_records(records))

  monkeypatch.setattr(input_pipeline, 'count_records', spy)
  lines = measure('read', shards=4)
  assert counts == [4 * 1001 // 10] * 4
  assert [(x['from'], x['what']) for x in lines] == [
    (where, what)
    for where in ('disk', 'memory')
    for what in ('the bytes alone', 'one file after the other', 'ours')
  ]
  assert lines[1]['ratio_to_one_file'] == lines[4]['ratio_to_one_file'] == 1


def test_resuming_is_timed_on_a_data_set_of_imagenets_size(measure, monkeypatch):
  """Its shards are links: the number of records is checked, not made up."""
  monkeypatch.setattr(input_pipeline, 'TRAIN_IMAGES', 1001)
  monkeypatch.setattr(input_pipeline, 'NUM_SHARDS', 10)
  monkeypatch.setattr(input_pipeline, 'TRAIN_BATCH', 2)
  sizes = []
  train_batches = batches.train_batches

  def spy(dataset, **kwargs):
    sizes.append((dataset.num_examples('train'), kwargs['start_example']))
    return train_batches(dataset, **kwargs)

  monkeypatch.setattr(batches, 'train_batches', spy)
  lines = measure('resume', step=7777)
  assert [x['step'] for x in lines] == [0, 7777]
  assert sizes == [(1001, 0), (1001, 2 * 7777)]


def test_every_corruption_is_timed(monkeypatch, capsys):
  monkeypatch.setattr(corruptions_benchmark, 'imagecorruptions', None)
  corruptions_benchmark.main(['--size', '8', '--repeats', '1'])
  lines = [x.strip('| ').split(' | ') for x in capsys.readouterr().out.splitlines()[2:]]
  assert [x[1] for x in lines] == [*corruptions.CORRUPTIONS, 'mean']
  assert all(float(x[2]) > 0 for x in lines)


def test_an_evaluation_is_timed_beside_the_forward_pass(capsys, fast_compilation):
  words = ['--model=efficientnet_tiny', '--size=32', '--batch=4', '--num-batches=1']
  evaluate_benchmark.main([*words, '--repeats=1'])
  lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  assert [x['branches'] for x in lines] == [1, 2]
  for line in lines:
    ratio = line['images_per_sec'] / line['forward_images_per_sec']
    assert line['ratio'] == pytest.approx(ratio, rel=0.05, abs=0.002)


def test_autoattack_is_timed_beside_the_gradients_alone(capsys, fast_compilation):
  words = ['--model=efficientnet_tiny', '--size=32', '--batch=4', '--steps=2']
  autoattack_benchmark.main(['--what=apgd', *words, '--repeats=1'])
  line = json.loads(capsys.readouterr().out)
  ratio = line['gradients_per_sec'] / line['bare_gradients_per_sec']
  assert line['share'] == pytest.approx(ratio)


def test_autoattack_is_timed_with_all_examples_left_in(
  capsys, digits_dir, monkeypatch, fast_compilation
):
  section = {**ensembles.APGD_CE.section, 'num_steps': 4}
  short_apgd = {**section, 'norm': 'linf'}
  monkeypatch.setattr(autoattack_benchmark, 'SHORT_APGD', short_apgd)
  monkeypatch.setattr(autoattack_benchmark, 'EPSILONS', [0.02, 0.09, 0.3])
  standard = {
    'apgd-ce': ensembles.APGD_CE._replace(section=section),
    'square': ensembles.SQUARE,
  }
  monkeypatch.setitem(ensembles.VERSIONS, 'standard', standard)
  counts = []  # Of examples, by batch of any attack.
  attack = worst_case.WorstCase.attack

  def spy(self, stage, examples, index, **kwargs):
    counts.append((stage.attack, len(index)))
    return attack(self, stage, examples, index, **kwargs)

  monkeypatch.setattr(worst_case.WorstCase, 'attack', spy)
  words = ['--examples=12', '--batch=4', '--queries=10', '--repeats=1']
  words.append(f'--data-dir={digits_dir}')
  autoattack_benchmark.main(['--what=dropping', *words])
  line = json.loads(capsys.readouterr().out)

  assert line['clean_accuracy'] == 1 and line['queries'] == 10
  assert line['robust_accuracy'] == line['robust_accuracy_all']
  assert line['epsilon'] == 0.09 and 0 < line['robust_accuracy'] < 0.7
  assert line['share'] == line['seconds_dropping'] / line['seconds_all']
  # Three radii, then with dropping, cold and warm, then without, compiled before.
  compiled = [('apgd-ce', 1), ('square', 1)]
  all_left_in = [*3 * [('apgd-ce', 4)], *3 * [('square', 4)]]
  place = next(i for i in range(len(counts)) if counts[i : i + 2] == compiled)
  assert counts[-6:] == all_left_in
  with_dropping = counts[place + 2 : -6]
  assert counts[place - len(with_dropping) : place] == with_dropping
  assert with_dropping[:3] == all_left_in[:3]
  left = sum(count for _, count in with_dropping[3:])
  assert 12 * line['robust_accuracy'] <= left < 12


def test_the_cost_of_checksums_is_measured(capsys, fast_compilation):
  checkpoints_benchmark.main(['--model=resnet_tiny', '--size=32', '--repeats=1'])
  (line,) = map(json.loads, capsys.readouterr().out.splitlines())
  assert line['files'] > 20 and line['megabytes'] > 0
  assert line['check_secs'] > 0 and line['restore_secs'] > 0
