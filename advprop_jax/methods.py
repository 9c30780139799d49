"""Training methods: the streams of a config, with the attacks they name."""

from advprop_jax import attacks, branches, errors, registry, schema, train_step


def create_streams(config, *, num_classes: int) -> tuple[train_step.Stream, ...]:
  """Returns the streams of a config, with the attacks they name.

  Raises:
    UserError: a stream has other keys or values than it may, a name twice, or none of
      them trains the clean branch.
  """
  streams = []
  for stream in config.streams:
    expected = set(train_step.Stream._fields) - {'attack_statistics'}
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
    errors.check_choice('image_key of a stream', stream['image_key'], ['image'])
    errors.check_choice('label_key of a stream', stream['label_key'], ['label'])
    if not isinstance(stream['attack'], dict | None):
      raise errors.UserError(
        f'attack of a stream is {stream["attack"]!r}; allowed: None, or a dict of '
        'values that replace those of config.attack'
      )
    attack, statistics = _create_attack(config, stream['attack'], num_classes)
    streams.append(
      train_step.Stream(**{**stream, 'attack': attack, 'attack_statistics': statistics})
    )
  names = [stream.name for stream in streams]
  if len(set(names)) < len(names):
    raise errors.UserError(f'streams are named {names}; allowed: every name once')
  norms = {stream.branch for stream in streams}
  if branches.CLEAN not in norms:
    raise errors.UserError(
      f'the streams train the norms {sorted(norms)}; allowed: any that include '
      f'{branches.CLEAN!r}, which is evaluated and released'
    )
  return tuple(streams)


def _create_attack(config, overrides: dict | None, num_classes: int):
  """Returns (attack, statistics): `config.attack`, with a stream's own values."""
  if overrides is None:
    return None, 'running'
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
  return attack, section['statistics']
