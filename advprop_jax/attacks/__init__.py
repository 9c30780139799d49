"""Attacks: on batches, and the worst that several of them do to each example."""

from advprop_jax.attacks.gradient import Attack
from advprop_jax.attacks.standalone import autoattack
from advprop_jax.attacks.table import ATTACKS

__all__ = ['ATTACKS', 'Attack', 'autoattack']
