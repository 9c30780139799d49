"""Tests what a step costs, against counts by hand."""

import pytest

from advprop_jax import model_config, schema, step_cost
from advprop_jax.models import arithmetic
from configs import (
  digits_advprop,
  digits_fast_advprop,
  digits_fine_grained,
  digits_sat,
  digits_vanilla,
)


@pytest.mark.parametrize(
  'module, argument, passes',
  [  # Clean, attacked, steps of the attack.
    (digits_vanilla, None, (1, 0, 0)),
    (digits_advprop, None, (1, 1, 1)),
    (digits_sat, 'silu', (0, 1, 3)),
    (digits_fine_grained, None, (2, 1, 1)),
    (digits_fast_advprop, None, (1, 0.2, 0)),
  ],
)
def test_a_method_needs_its_passes(module, argument, passes):
  config = module.get_config(argument)
  clean, attacked, num_steps = passes
  if attacked == 1:
    config.attack.num_steps = num_steps
  config = schema.read(config)
  model = model_config.create_model(config, num_classes=10)
  count = arithmetic.count_model(model, config.data.image_size)
  update = arithmetic.forward(count, running=False) + arithmetic.backward(
    count, running=False, weights=True
  )
  attack = arithmetic.image_grad(count, running=True)
  expected = (clean + attacked) * update + attacked * num_steps * attack
  assert step_cost.train_flops(config, model) == pytest.approx(expected)


def test_a_streams_own_attack_counts():
  config = digits_advprop.get_config()
  clean, adv = config.streams
  config.streams = (clean, {**adv, 'attack': {'num_steps': 7}})
  more = schema.read(config)
  config.streams = (clean, {**adv, 'attack': {'name': 'fgsm', 'epsilon': 0.1}})
  one = schema.read(config)
  model = model_config.create_model(one, num_classes=10)
  count = arithmetic.count_model(model, one.data.image_size)
  found = step_cost.train_flops(more, model) - step_cost.train_flops(one, model)
  assert found == pytest.approx(6 * arithmetic.image_grad(count, running=True))


def test_utilisation_is_the_share_of_the_peak(monkeypatch):
  config = schema.read(digits_vanilla.get_config())
  model = model_config.create_model(config, num_classes=10)
  flops = step_cost.train_flops(config, model)
  peak = step_cost.PEAK_FLOPS['TPU v4']
  meter = step_cost.create_meter(config, model, device_kind='TPU v4', num_devices=8)
  assert meter(8 * peak / flops) == pytest.approx(1)
  assert meter(2 * peak / flops) == pytest.approx(0.25)
  kind = 'a chip that nobody knows'
  assert step_cost.create_meter(config, model, device_kind=kind, num_devices=8) is None
