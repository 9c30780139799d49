"""Attacks by name: from images and a model's logits to adversarial images."""

from advprop_jax.attacks import gradient
from advprop_jax.attacks.gradient import Attack

__all__ = ['ATTACKS', 'Attack']

# Name -> function of keyword arguments that returns an `Attack`. `num_classes` is given
# to those that ask for it.
ATTACKS = {'pgd': gradient.make_pgd}
