"""From a config to the attacks whose worst case counts, `config.eval.robustness`."""

from collections.abc import Iterable
from typing import Any

from advprop_jax import errors, schema
from advprop_jax.attacks import balls, ensembles, inputs, stage_attack
from advprop_jax.evaluation import attack_words, robustness, suites

AUTOATTACK, PGD = 'autoattack', 'pgd'  # Names of suites.
# Keys of `eval.robustness`.
_OF_AUTOATTACK = ('version', 'norm', 'epsilon')
_OF_BOTH = ('epsilons', 'num_examples', 'subset_seed', 'attack_branch')


def is_worst_case(suite_name: str, config: schema.Section) -> bool:
  """Returns whether of a suite the worst case counts, and not one attack.

  Of `pgd` it is so if there are restarts, radii, a part of the images, or two branches:
  then fallen images are left out, and what stands in eval/pgd.json are accuracies.
  """
  section = config.eval.robustness
  several = section.num_restarts > 1 or section.epsilons or section.num_examples
  return suite_name == AUTOATTACK or (
    suite_name == PGD and bool(several or is_studied(config))
  )


def is_studied(config: schema.Section) -> bool:
  """Returns whether one branch is attacked through, and another classifies."""
  section = config.eval.robustness
  return section.attack_branch not in ('', section.branch)


def describe(suite_name: str, config: schema.Section) -> dict[str, Any]:
  """Returns what attacks the images of a suite, as JSON values."""
  section = config.eval.robustness
  if not is_worst_case(suite_name, config):
    return dict(config.eval.attack)
  if suite_name == AUTOATTACK:
    own = {key: section[key] for key in (*_OF_AUTOATTACK, *_OF_BOTH)}
    return {'name': AUTOATTACK, **own}
  shared = {key: section[key] for key in ('num_restarts', *_OF_BOTH)}
  return {**config.eval.attack, **shared}


def unused_keys(suite_names: Iterable[str], config: schema.Section) -> set[str]:
  """Returns the keys of `eval.attack` and `eval.robustness` that no suite looks at."""
  used: set[str] = set()
  for name in suite_names:
    if name == AUTOATTACK or is_worst_case(name, config):
      used |= {f'eval.robustness.{key}' for key in (*_OF_BOTH, 'branch')}
    if name == AUTOATTACK:
      used |= {f'eval.robustness.{key}' for key in _OF_AUTOATTACK}
    elif suites.SUITES[name].attacked:
      used |= {f'eval.attack.{key}' for key in config.eval.attack}
      used.add('eval.robustness.num_restarts')
  known = {f'eval.attack.{key}' for key in config.eval.attack}
  known |= {f'eval.robustness.{key}' for key in config.eval.robustness}
  return known - used


def describe_radius(suite_name: str, config: schema.Section) -> str:
  """Returns which value of the config is the radius of a suite; '' if it has none."""
  if suite_name == AUTOATTACK:
    key, section = 'eval.robustness.epsilon', config.eval.robustness
    is_l2 = section.norm == 'l2'
  elif suites.SUITES[suite_name].attacked:
    section = config.eval.attack
    is_l2 = 'epsilon_l2' in section
    key = f'eval.attack.epsilon{"_l2" * is_l2}'
  else:
    return ''
  epsilon = section.get(key.rpartition('.')[2])
  if epsilon is None:
    return ''
  words = f'suite {suite_name}: {attack_words.radius(epsilon, is_l2=is_l2)}'
  hint = inputs.hint_of_small_radius(
    epsilon, norm='l2' if is_l2 else 'linf', image_shape=_image_shape(config)
  )
  return f'{words}, which is config.{key}{"; " * bool(hint)}{hint}'


def create_work(
  suite_name: str, config: schema.Section, *, num_classes: int
) -> robustness.Work:
  """Returns the attacks of a suite.

  Raises:
    UserError: a value that cannot be, or too few classes for an attack.
  """
  section, shape = config.eval.robustness, _image_shape(config)
  if suite_name == AUTOATTACK:
    check(config)
    members = ensembles.VERSIONS[section.version]
    if is_studied(config):
      members = {
        name: member._replace(section=ensembles.to_transfer(member.section))
        for name, member in members.items()
      }
    stages = ensembles.stages(
      members,
      epsilon=section.epsilon,
      norm=section.norm,
      num_classes=num_classes,
    )
    stage_attack.check(stages, num_classes=num_classes, image_shape=shape)
    one = {**members['apgd-ce'].section, 'norm': section.norm}
    curve = section.epsilons and ensembles.stages_of_one(
      one, epsilons=section.epsilons, num_restarts=1
    )
    curve = tuple(stage._replace(attack='apgd-ce') for stage in curve)
    return robustness.Work(tuple(stages), section.norm, curve)
  attack = dict(config.eval.attack)
  if is_studied(config):
    attack = ensembles.to_transfer(attack)
  if not {'epsilon', 'epsilon_l2'} & attack.keys():
    raise errors.UserError(
      f'eval.attack is {attack["name"]!r}, which has no radius; allowed with '
      'eval.robustness: attacks in a ball, such as pgd'
    )
  norm = 'l2' if 'epsilon_l2' in attack else attack.get('norm', 'linf')
  own = attack.get('epsilon', attack.get('epsilon_l2', 0.0))
  radii = {'eval.attack': (own,), 'eval.robustness.epsilons': section.epsilons}
  _check_radii(radii, norm=norm, image_shape=shape)
  stages = ensembles.stages_of_one(
    attack, epsilons=(), num_restarts=section.num_restarts
  )
  stage_attack.check(stages, num_classes=num_classes, image_shape=shape)
  curve = section.epsilons and ensembles.stages_of_one(
    attack, epsilons=section.epsilons, num_restarts=section.num_restarts
  )
  return robustness.Work(tuple(stages), norm, tuple(curve))


def check(config: schema.Section):
  """Raises UserError for values of `eval.robustness` that cannot be."""
  section = config.eval.robustness
  errors.check_choice('eval.robustness.version', section.version, _VERSIONS)
  errors.check_choice('eval.robustness.norm', section.norm, balls.BALLS)
  radii = {
    'eval.robustness.epsilon': (section.epsilon,),
    'eval.robustness.epsilons': section.epsilons,
  }
  _check_radii(radii, norm=section.norm, image_shape=_image_shape(config))


def _check_radii(radii, *, norm: str, image_shape: tuple[int, ...]):
  for name, epsilons in radii.items():
    for epsilon in epsilons:
      inputs.check_epsilon(epsilon, norm=norm, image_shape=image_shape, name=name)


def _image_shape(config: schema.Section) -> tuple[int, int, int]:
  return config.data.image_size, config.data.image_size, 3


# Of deterministic networks, as all of ours are under `train=False`.
_VERSIONS = [x for x in ensembles.VERSIONS if x != ensembles.RANDOMISED]
