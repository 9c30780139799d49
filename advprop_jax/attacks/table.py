"""Attacks by name: from images and a model's logits to adversarial images."""

from collections.abc import Callable

from advprop_jax.attacks import apgd, fab, gradient, square
from advprop_jax.attacks.gradient import Attack

# Name -> function of keyword arguments that returns an `Attack`. `num_classes` is given
# to those that ask for it.
ATTACKS: dict[str, Callable[..., Attack]] = {
  'pgd': gradient.make_pgd,
  'ifgsm': gradient.make_ifgsm,
  'fgsm': gradient.make_fgsm,
  'gd': gradient.make_gd,
  'pgd_l2': gradient.make_pgd_l2,
  'apgd': apgd.make_apgd,
  'fab': fab.make_fab,
  'square': square.make_square,
}
