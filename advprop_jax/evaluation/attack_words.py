"""Attacks in words, of the values that eval/<suite>.json and configs have of them."""

from collections.abc import Mapping
from typing import Any

from advprop_jax.evaluation.run_files import is_number


def describe(attack: Mapping[str, Any]) -> str:
  """Returns 'PGD-10, epsilon 8/255, steps of 2/255, 5 restarts, 100 images'."""
  words = [name_of(attack), radius_of(attack)]
  for key, scale, unit in (('step_size', 255, '/255'), ('step_size_l2', 1, '')):
    if is_number(attack.get(key)):
      words.append(f'steps of {scale * attack[key]:.3g}{unit}')
  words += [f'loss {attack["loss"]}'] if attack.get('loss') else []
  words += ['targeted'] * bool(attack.get('targeted'))
  return ', '.join(filter(None, [*words, *extent(attack)]))


def title(attack: Mapping[str, Any]) -> str:
  """Returns the same without how it steps."""
  words = [name_of(attack), radius_of(attack), *extent(attack)]
  return ', '.join(filter(None, words))


def name_of(attack: Mapping[str, Any]) -> str:
  """Returns 'PGD-10' or 'AutoAttack standard'."""
  name = str(attack.get('name', ''))
  if name == 'autoattack':
    return f'AutoAttack {attack.get("version", "")}'.strip()
  name, steps = name.upper().replace('_', ' '), attack.get('num_steps')
  return f'{name}-{steps}' if steps else name


def extent(attack: Mapping[str, Any]) -> list[str]:
  """Returns what is other than one run on all images through the branch itself."""
  words = []
  for key, usual, unit in (
    ('num_restarts', 1, 'restart'),
    ('num_examples', 0, 'image'),
  ):
    count = attack.get(key, usual)
    if count != usual:
      words.append(f'{count} {unit}{"s" * (count != 1)}')
  if attack.get('attack_branch'):
    words.append(f'through {attack["attack_branch"]}')
  return words


def has_l2(attack: Mapping[str, Any]) -> bool:
  """Returns whether the radius of an attack is an L2 norm."""
  return attack.get('norm') == 'l2' or 'epsilon_l2' in attack


def is_worst_case(attack: Mapping[str, Any]) -> bool:
  """Returns whether the worst case was taken, see `robust_config.describe`.

  An image that was wrong before is wrong then, whatever the attack makes of it.
  """
  return attack.get('name') == 'autoattack' or 'num_restarts' in attack


def radius_of(attack: Mapping[str, Any]) -> str:
  """Returns 'epsilon 8/255', 'L2 0.5', or '' of an attack in no ball."""
  epsilon = attack.get('epsilon_l2', attack.get('epsilon'))
  return radius(epsilon, is_l2=has_l2(attack)) if is_number(epsilon) else ''


def radius(epsilon: float, *, is_l2: bool) -> str:
  """Returns 'epsilon 8/255' or 'L2 0.5'."""
  return f'L2 {epsilon:.3g}' if is_l2 else f'epsilon {255 * epsilon:.3g}/255'
