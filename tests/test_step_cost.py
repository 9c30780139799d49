"""Tests what a step costs, against counts by hand."""

from typing import Any

import flax.linen as nn
import pytest

from advprop_jax import methods, schema, step_cost
from advprop_jax.models import arithmetic, conv
from configs import (
  digits_advprop,
  digits_fast_advprop,
  digits_fine_grained,
  digits_sat,
  digits_vanilla,
)

# Of an image with 100 multiply-adds, 10 of them in the first layer, and nothing else: a
# forward pass has 200 operations, a backward pass to weights 2 * (100 - 10 + 100), to
# the image 200, to both 400.
COUNT = arithmetic.Count(100, 10, normalised=0, activated=0, gated=0)
UPDATE, ATTACK = 200 + 380, 200 + 200


def flops(config):
  method = methods.create_method(schema.read(config), num_classes=10)
  return method.flops_per_image(COUNT)


@pytest.mark.parametrize(
  'module, argument, streams, attack_steps',
  [
    (digits_vanilla, None, 1, 0),
    (digits_advprop, None, 2, 3),
    (digits_sat, 'silu', 1, 3),
    (digits_fine_grained, None, 3, 3),
  ],
)
def test_a_method_needs_its_passes(module, argument, streams, attack_steps):
  config = module.get_config(argument)
  config.attack.num_steps = 3
  assert flops(config) == streams * UPDATE + attack_steps * ATTACK


def test_a_streams_own_attack_counts():
  config = digits_advprop.get_config()
  clean, adv = config.streams
  for attack, num_steps in [
    ({'num_steps': 7}, 7),
    ({'name': 'fgsm', 'epsilon': 0.1}, 1),
    ({'num_steps': 0}, 0),
  ]:
    config.streams = (clean, {**adv, 'attack': {**attack, 'targeted': False}})
    assert flops(config) == 2 * UPDATE + num_steps * ATTACK


def test_batch_statistics_are_computed_in_an_attack_through_them():
  count = arithmetic.Count(0, 0, normalised=1000, activated=0, gated=0)
  config = digits_advprop.get_config()
  found = []
  for statistics in ('running', 'batch'):
    config.attack.statistics = statistics
    method = methods.create_method(schema.read(config), num_classes=10)
    found.append(method.flops_per_image(count))
  # Of each value, and each of two steps: 3 operations forward and 6 backward.
  assert found[1] - found[0] == 2 * 1000 * (3 + 6)


@pytest.mark.parametrize('batch_size, share', [(80, 4 / 20), (32, 2 / 8)])
@pytest.mark.parametrize('reuse_gradient, attack', [(True, 200 + 400), (False, ATTACK)])
def test_fast_advprop_needs_its_passes(batch_size, share, reuse_gradient, attack):
  """Of four devices; the attack's backward pass is to the weights, too, if reused."""
  config = digits_fast_advprop.get_config()
  config.data.batch_size = batch_size
  config.method.reuse_gradient = reuse_gradient
  config.method.noise_weight = 0.5 if reuse_gradient else 0.0
  expected = (1 - share) * UPDATE + share * (attack + UPDATE)
  assert flops(config) == pytest.approx(expected)


class Pointwise(nn.Module):
  """A convolution of one pixel, from 3 to 7 channels."""

  layer: Any

  @nn.compact
  def __call__(self, image, *, train):
    return self.layer(image).sum((1, 2))


@pytest.mark.parametrize('layer', [nn.Conv(7, (1, 1)), conv.Conv(7, 1)])
def test_a_convolution_of_one_pixel_counts_as_by_hand(layer):
  config = schema.read(digits_vanilla.get_config())
  method = methods.create_method(config, num_classes=7)
  # 3 * 7 multiply-adds in each of 5 * 5 pixels, forward and to the weights; training
  # needs no gradient to the images.
  expected = 2 * (5 * 5 * 3 * 7) * 2
  assert step_cost.train_flops(method, Pointwise(layer), image_size=5) == expected


def test_utilisation_is_the_share_of_the_peak():
  config = schema.read(digits_vanilla.get_config())
  method = methods.create_method(config, num_classes=7)
  chips = {'image_size': 5, 'num_devices': 8}
  model = Pointwise(nn.Conv(7, (1, 1)))
  meter = step_cost.create_meter(method, model, **chips, device_kind='TPU v4')
  # 275e12 operations a second and device, 2100 an image.
  assert meter(8 * 275e12 / 2100) == pytest.approx(1)
  assert meter(2 * 275e12 / 2100) == pytest.approx(0.25)
  unknown = 'a chip that nobody knows'
  assert step_cost.create_meter(method, model, **chips, device_kind=unknown) is None
