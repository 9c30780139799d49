"""From a config to the streams that it trains on, and what they may not be."""

import re

from advprop_jax import attacks, branches, errors, registry, schema
from advprop_jax.input import preprocess
from advprop_jax.streams import Stream

# What a batch may hold images of: an example with the config's augmentation, and, if a
# stream asks for it, the same crop of it without.
IMAGE_KEYS = ('image', preprocess.PLAIN_IMAGE)
# Besides these, one with an ending of its own: 'adv_2'.
BRANCHES = (branches.CLEAN, branches.ADV, 'augmented')


def create_streams(config, *, num_classes: int) -> tuple[Stream, ...]:
  """Returns the streams of a config, with the attacks they name.

  Raises:
    UserError: a stream has other keys or values than it may, a name twice, none of
      them trains the clean branch, or none of a branch has a weight.
  """
  streams = []
  for stream in config.streams:
    expected = set(Stream._fields) - {'attack_statistics', 'attack_gradients'}
    if not isinstance(stream, dict):
      raise errors.UserError(
        f'config.streams holds {stream!r}; allowed: dicts, set in a config file as in '
        'configs/default.py'
      )
    if set(stream) != expected:
      raise errors.UserError(
        f'a stream has the keys {sorted(map(str, stream))}; allowed: exactly '
        f'{sorted(expected)}, as in configs/default.py'
      )
    schema.check_section('streams', {**stream, 'attack': None})
    errors.check_choice('image_key of a stream', stream['image_key'], IMAGE_KEYS)
    errors.check_choice('label_key of a stream', stream['label_key'], ['label'])
    if not re.fullmatch('[a-z0-9_]+', stream['name']):
      raise errors.UserError(
        f'a stream is named {stream["name"]!r}, as its metrics are; allowed: a-z, 0-9 '
        "and '_'"
      )
    _check_branch(stream['branch'])
    if not isinstance(stream['attack'], dict | None):
      raise errors.UserError(
        f'attack of a stream is {stream["attack"]!r}; allowed: None, or a dict of '
        'values that replace those of config.attack'
      )
    attack = _create_attack(config, stream['attack'], num_classes)
    streams.append(Stream(**{**stream, **attack}))
  names = [stream.name for stream in streams]
  if len(set(names)) < len(names):
    raise errors.UserError(f'streams are named {names}; allowed: every name once')
  _check_together(config, streams)
  return tuple(streams)


def _check_branch(branch: str):
  """Raises UserError for a branch that may be misspelt, or be taken for a metric."""
  known = '|'.join(BRANCHES)
  ending = re.fullmatch(f'(?:{known})((?:_[a-z0-9]+)*)', branch)
  if ending is None or 'pgd' in ending[1].split('_'):  # 'adv_pgd_top1' is of 'adv'.
    raise errors.UserError(
      f'unknown branch {branch!r} of a stream; {errors.nearest(branch, BRANCHES)}'
      f"allowed: {', '.join(BRANCHES)}, or one with an ending, 'adv_2', but '_pgd'"
    )


def _check_together(config, streams: list[Stream]):
  """Raises UserError for streams that are right one by one, and wrong together."""
  norms = {stream.branch for stream in streams}
  if branches.CLEAN not in norms:
    raise errors.UserError(
      f'the streams train the norms {sorted(norms)}; allowed: any that include '
      f'{branches.CLEAN!r}, which is evaluated and released'
    )
  for branch in sorted(norms):
    if not any(stream.weight for stream in streams if stream.branch == branch):
      raise errors.UserError(
        f'all streams of branch {branch!r} have the weight 0: nothing is learnt; '
        'allowed: a weight above 0'
      )
  keys = {stream.image_key for stream in streams}
  augmentation = config.data.augmentation['name']
  if preprocess.PLAIN_IMAGE in keys and augmentation == 'none':
    raise errors.UserError(
      f"a stream's image_key is {preprocess.PLAIN_IMAGE!r} and data.augmentation is "
      "'none': both views of an example would be the same; allowed: an augmentation, "
      "or the image_key 'image'"
    )
  if keys == {preprocess.PLAIN_IMAGE}:
    raise errors.UserError(
      f'the image_key of all streams is {preprocess.PLAIN_IMAGE!r}: no augmented image '
      "is used; allowed: a stream with the image_key 'image', or, if none is wanted, "
      "'image' for all and data.augmentation 'none'"
    )
  of_augmented = [x for x in streams if x.branch.startswith('augmented')]
  if of_augmented and preprocess.PLAIN_IMAGE not in keys:
    raise errors.UserError(
      "a stream trains the branch 'augmented', but none the images without "
      f'augmentation; allowed: a stream with the image_key {preprocess.PLAIN_IMAGE!r}'
    )
  for stream in of_augmented:
    if stream.image_key == preprocess.PLAIN_IMAGE:
      raise errors.UserError(
        f'stream {stream.name!r} trains the branch {stream.branch!r} on '
        f"{stream.image_key!r}, which is not augmented; allowed: the image_key 'image'"
      )


def _create_attack(config, overrides: dict | None, num_classes: int):
  """Returns what a stream has of its attack: `config.attack`, with its own values."""
  if overrides is None:
    return {'attack': None, 'attack_statistics': 'running'}
  section = dict(config.attack)
  if overrides.get('name', section['name']) != section['name']:
    section = {'statistics': section['statistics']}  # Another kind: nothing else stays.
  section |= overrides
  schema.check_section('attack', section)
  attack = registry.create(
    'attack',
    attacks.ATTACKS,
    section,
    also=('statistics',),
    num_classes=num_classes,
  )
  errors.check_choice('attack.statistics', section['statistics'], ['running', 'batch'])
  return {
    'attack': attack,
    'attack_statistics': section['statistics'],
    'attack_gradients': section.get('num_steps', 1),  # FGSM has one and no such key.
  }


def unused_values(config) -> tuple[str, ...]:
  """Returns what of `config.attack` no stream looks at."""
  used = set()
  for stream in config.streams:
    if (overrides := stream['attack']) is not None:
      other_kind = overrides.get('name', config.attack['name']) != config.attack['name']
      keys = ['statistics'] if other_kind else config.attack
      used |= set(keys) - set(overrides)
  if not used:
    return ('attack',)
  return tuple(f'attack.{key}' for key in config.attack if key not in used)
