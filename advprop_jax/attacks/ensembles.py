"""AutoAttack's versions: attacks with their parameters, one after another, as data.

Source: Croce and Hein 2020, and `_set_version` of the authors' code, of which every
number is. Each attack runs on the examples that all before it have left.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Member(NamedTuple):
  """One attack of an ensemble."""

  # A key of ATTACKS and arguments; `epsilon`, `norm` and `target_rank` come later.
  section: Mapping[str, Any]
  num_targets: int = 0  # Wrong classes that are attacked in turn, the likeliest first.
  num_restarts: int = 1


_APGD = {'name': 'apgd', 'num_steps': 100}
_FAB = {'name': 'fab', 'num_steps': 100, 'alpha_max': 0.1, 'eta': 1.05, 'beta': 0.9}

APGD_CE = Member({**_APGD, 'loss': 'ce'})
APGD_DLR = Member({**_APGD, 'loss': 'dlr'})
APGD_T = Member({**_APGD, 'loss': 'targeted_dlr'}, num_targets=9)
FAB = Member({**_FAB, 'targeted': False})
FAB_T = Member({**_FAB, 'targeted': True}, num_targets=9)
SQUARE = Member({'name': 'square', 'num_queries': 5000, 'p_init': 0.8})


def _averaged(member: Member) -> Member:
  """Returns an attack on the mean gradient of 20 passes of a randomised network."""
  return member._replace(section={**member.section, 'num_samples': 20})


def to_transfer(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an attack whose images are meant for another network than it sees.

  APGD then goes on to the largest loss, where for its own network it ends at a
  misclassified point, hardly beyond the boundary.
  """
  is_apgd = section['name'] == 'apgd'
  return {**section, 'keep_strongest': True} if is_apgd else dict(section)


# By version, {name as AutoAttack calls it: member}, in their order.
VERSIONS: dict[str, dict[str, Member]] = {
  'standard': {
    'apgd-ce': APGD_CE,
    'apgd-t': APGD_T,
    'fab-t': FAB_T,
    'square': SQUARE,
  },
  'plus': {
    'apgd-ce': APGD_CE._replace(num_restarts=5),
    'apgd-dlr': APGD_DLR._replace(num_restarts=5),
    'fab': FAB._replace(num_restarts=5),
    'square': SQUARE,
    'apgd-t': APGD_T,
    'fab-t': FAB_T,
  },
  'rand': {
    'apgd-ce': _averaged(APGD_CE),
    'apgd-dlr': _averaged(APGD_DLR),
  },
}
RANDOMISED = 'rand'  # The version whose networks take a key.


_DEFAULTS = {x.section['name']: x.section for x in (APGD_CE, FAB_T, SQUARE)}
STEP_SIZES = {'step_size', 'step_size_l2'}  # In sections of stages: shares of epsilon.


class Stage(NamedTuple):
  """One run of one attack on the examples that are left."""

  attack: str  # Name of the member that it belongs to.
  section: tuple[tuple[str, Any], ...]  # Key and value; a stage can be a key of a dict.
  epsilon: float
  target_rank: int = 0  # 2: the second largest logit; 0: no target.
  restart: int = 0

  @property
  def cost(self) -> int:
    """Forward passes of an example; a gradient costs three."""
    section = dict(self.section)
    passes = 3 * section.get('num_samples', 1)
    if section['name'] == 'fab':  # A forward pass of its own says what a step found.
      passes += 1
    return section.get('num_queries', 0) or passes * section.get('num_steps', 1)

  def __str__(self):
    words = [self.attack]
    words += [f'target {self.target_rank - 1}'] * (self.target_rank > 0)
    words += [f'restart {self.restart}'] * (self.restart > 0)
    return ', '.join(words)


def stages(
  members: Mapping[str, Member], *, epsilon: float, norm: str, num_classes: int
) -> list[Stage]:
  """Returns the runs of some attacks in their order.

  Args:
    members: by name, such as `VERSIONS['standard']`.
    epsilon: radius of the ball, in pixel units of [0, 1].
    norm: of the ball, a key of `balls.BALLS`.
    num_classes: K; there are K - 1 targets at most.
  """
  found = []
  for name, member in members.items():
    section = {**member.section, 'norm': norm}
    num_targets = min(member.num_targets, num_classes - 1)
    for rank in range(2, num_targets + 2) if num_targets else (0,):
      for restart in range(member.num_restarts):
        varied = _restarted(section, restart)
        found.append(Stage(name, tuple(varied.items()), epsilon, rank, restart))
  return found


def stages_of_one(
  section: Mapping[str, Any], *, epsilons: Iterable[float], num_restarts: int
) -> list[Stage]:
  """Returns one attack at several radii, ascending, with restarts at each.

  What falls at a radius is left out at larger ones, so one pass finds the smallest
  radius at which each image falls.

  Args:
    section: of ATTACKS. Its step size grows with the radius.
    epsilons: radii; none: the section's own.
    num_restarts: of the attack at each radius.
  """
  name, own = section['name'], 1.0
  section = {**_DEFAULTS.get(name, {}), **section}
  for key in ('epsilon', 'epsilon_l2'):
    own = section.pop(key, own)
  for key in STEP_SIZES & section.keys():
    section[key] /= own
  return [
    Stage(name, tuple(section.items()), x, restart=i)
    for x in sorted(epsilons) or (own,)
    for i in range(num_restarts)
  ]


def _restarted(section: dict[str, Any], restart: int) -> dict[str, Any]:
  """Returns the section of a restart: FAB starts at the image itself, but once."""
  if section['name'] != 'fab' or not restart:
    return section
  return {**section, 'random_start': True}
