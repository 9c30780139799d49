"""Tests the counts that benchmarks compare with, and that their programs run."""

import json
import pathlib
import subprocess
import sys

import pytest

from advprop_jax import models
from benchmarks import arithmetic

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


@pytest.mark.parametrize('name', PUBLISHED)
def test_multiply_adds_are_the_published_ones(name):
  model = models.create_model(name)
  count = arithmetic.count_model(model, models.MODELS[name].image_size)
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


def run_step_time(*args):
  command = [sys.executable, 'benchmarks/step_time.py', '--model', 'efficientnet_tiny']
  command += ['--size', '32', '--batch', '8', '--repeats', '2', *args]
  return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_step_time_prints_one_line_with_the_ratio_to_a_peer():
  peer = {
    'peer': 'somebody else',
    'model': 'efficientnet_tiny',
    'batch': 8,
    'size': 32,
    'pgd_steps': 2,
    'advprop_step': 0.5,
  }
  args = ('--method', 'advprop', '--pgd-steps', '2', '--peer', json.dumps(peer))
  done = run_step_time(*args)
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  result = json.loads(line)
  assert 0 < result['step_secs'] <= result['step_median_secs'] < result['compile_secs']
  assert result['images_per_sec'] == pytest.approx(8 / result['step_secs'])
  assert result['flops_per_sec'] == pytest.approx(result['flops'] / result['step_secs'])
  assert result['peer_ratio'] == pytest.approx(result['step_secs'] / 0.5)
  assert result['temp_bytes'] > 0


def test_step_time_refuses_another_computation_as_its_peer():
  peer = {'peer': 'x', 'model': 'efficientnet_tiny', 'batch': 4, 'size': 32}
  done = run_step_time('--method', 'forward', '--peer', json.dumps(peer))
  assert done.returncode != 0
  assert 'batch is 8 and the peer measured 4' in done.stderr


def test_step_time_needs_no_tensorflow():
  code = 'import benchmarks.step_time, sys; assert "tensorflow" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
