"""Tests the tables of published names, and which networks timm computes as we do."""

import pytest

from advprop_jax import models
from advprop_jax.weights import namings


def test_every_naming_can_be_told_by_an_example_of_its_own():
  for of_model in namings.NAMINGS.values():
    examples = [naming.example for naming in of_model]
    assert len(set(examples)) == len(examples)
    titles = [naming.title for naming in of_model]
    assert len(set(titles)) == len(titles)


def test_exports_take_a_naming_that_is_read_again():
  assert namings.TIMM.keys() == namings.NAMINGS.keys()
  for model, naming in namings.TIMM.items():
    assert naming in namings.NAMINGS[model] and naming.title == 'timm'


@pytest.mark.parametrize(
  'name, attributes, is_timms',
  [  # timm's `tf_efficientnet_*` and `resnet50`: their activation, epsilon, pooling.
    ('efficientnet_b0', {}, True),
    ('efficientnet_b0', {'activation': 'silu'}, True),
    ('efficientnet_b0', {'activation': 'relu'}, False),
    ('efficientnet_b0', {'bn_epsilon': 1e-5}, False),
    ('efficientnet_lite0', {}, True),
    ('efficientnet_lite0', {'activation': 'swish'}, False),
    ('resnet_50', {'even_pool_padding': True, 'bn_epsilon': 1e-5}, True),
    ('resnet_50', {'even_pool_padding': False, 'bn_epsilon': 1e-5}, False),
    ('resnet_50', {'even_pool_padding': True, 'bn_epsilon': 1e-3}, False),
    (
      'resnet_50',
      {'even_pool_padding': True, 'bn_epsilon': 1e-5, 'activation': 'silu'},
      False,
    ),
  ],
)
def test_timm_computes_its_own_networks_alone(name, attributes, is_timms):
  model = models.create_model(name, **attributes)
  assert namings.timm_computes(model) == is_timms
