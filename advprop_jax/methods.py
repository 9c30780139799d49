"""Training methods by name: from a config to the step that trains by it.

What a method asks of the config is checked by `check`, before data are opened.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from advprop_jax import (
  attacks,
  branches,
  errors,
  fast_step,
  registry,
  schema,
  train_step,
)
from advprop_jax.input import preprocess
from advprop_jax.models import activations
from advprop_jax.streams import Stream

# What a batch may hold images of: an example with the config's augmentation, and, if a
# stream asks for it, the same crop of it without.
IMAGE_KEYS = ('image', preprocess.PLAIN_IMAGE)
# Besides these, one with an ending of its own: 'adv_2'.
BRANCHES = (branches.CLEAN, branches.ADV, 'augmented')
# Where the study of gradients has a smooth one: (in the attack, in the update).
SMOOTH_BACKWARD = {
  'none': (False, False),
  'attack': (True, False),
  'update': (False, True),
  'both': (True, True),
}


class Method(NamedTuple):
  """A way to train, as a config describes it."""

  names: tuple[str, ...]  # Of its streams, as in metrics.
  branch_names: tuple[str, ...]
  image_keys: tuple[str, ...]  # What its batches hold.
  # (model, tx, label_smoothing=, ema_decay=, accumulate_steps=) -> step, per device.
  make_step: Callable[..., Any]
  notes: tuple[str, ...] = ()  # What a user should know of it, a line each.
  unused: tuple[str, ...] = ()  # Sections and keys of the config that have no effect.


def create_method(config, *, num_classes: int) -> Method:
  """Returns the training method of a config.

  Raises:
    UserError: the config asks for something that does not exist or cannot be.
  """
  table = {name: kind.components for name, kind in METHODS.items()}
  components = registry.create('method', table, config.method)
  create = METHODS[config.method['name']].create
  return create(config, components, num_classes=num_classes)


def check(config):
  """Raises UserError for a method that cannot be; needs no data."""
  create_method(config, num_classes=2)


class NoComponents(NamedTuple):
  """What `config.method` holds, besides its name, for a method of streams."""


def streams_method(config, _: NoComponents, *, num_classes: int) -> Method:
  """Returns the method of `config.streams`, see `train_step.py`."""
  streams = create_streams(config, num_classes=num_classes)
  in_attack, in_update = _smooth_backward(config)
  if in_attack and not any(stream.attack for stream in streams):
    raise errors.UserError(
      f'model.smooth_backward is {config.model["smooth_backward"]!r}, and no stream '
      "has an attack; allowed: 'update' or 'none'"
    )

  def make_step(model, tx, **arguments):
    return train_step.make_train_step(
      with_smooth_backward(model) if in_update else model,
      tx,
      streams,
      attacked_model=with_smooth_backward(model) if in_attack else model,
      **arguments,
    )

  return Method(
    names=tuple(stream.name for stream in streams),
    branch_names=tuple(dict.fromkeys(stream.branch for stream in streams)),
    image_keys=tuple(dict.fromkeys(stream.image_key for stream in streams)),
    unused=_unused(config),
    make_step=make_step,
  )


def fast_advprop(
  config, components: fast_step.Components, *, num_classes: int
) -> Method:
  """Returns Fast AdvProp, see `fast_step.py`."""
  del num_classes
  schema.check_section('method', config.method)
  errors.check_choice('method.statistics', components.statistics, ['batch', 'running'])
  if any(_smooth_backward(config)):
    raise errors.UserError(
      'model.smooth_backward is for methods of streams, whose attack is apart from the '
      "update; allowed with method.name 'fast_advprop': 'none'"
    )
  num_parts = jax.device_count() * config.optim.accumulate_steps
  num_images = config.data.batch_size // num_parts
  num_attacked = components.num_attacked(num_images)
  if not 0 < num_attacked < num_images:
    raise errors.UserError(
      f'method.adversarial_share is {components.adversarial_share}: of the '
      f'{num_images} images that a device sees at a time {num_attacked} are attacked; '
      'allowed: a share that leaves at least 1 attacked and 1 clean image'
    )
  if not components.adversarial_weight:
    raise errors.UserError(
      'method.adversarial_weight is 0: nothing is learnt from what is attacked; '
      'allowed: more than 0'
    )
  if components.noise_weight and not components.reuse_gradient:
    raise errors.UserError(
      f'method.noise_weight is {components.noise_weight} and method.reuse_gradient is '
      'False: the attack does not train; allowed: method.noise_weight 0.0, or '
      'method.reuse_gradient True'
    )

  def make_step(model, tx, **arguments):
    return fast_step.make_fast_step(model, tx, components, **arguments)

  return Method(
    names=(branches.CLEAN, 'noise', branches.ADV),
    branch_names=(branches.CLEAN, branches.ADV),
    image_keys=('image',),
    notes=(
      f'{num_attacked} of the {num_images} images that a device sees at a time are '
      f'attacked (method.adversarial_share {components.adversarial_share})',
    ),
    unused=('streams', 'attack'),
    make_step=make_step,
  )


class Kind(NamedTuple):
  """A kind of method."""

  components: Callable[..., Any]  # What `config.method` holds, besides the name.
  create: Callable[..., Method]  # Of the config and these.


METHODS = {
  'streams': Kind(NoComponents, streams_method),
  'fast_advprop': Kind(fast_step.Components, fast_advprop),
}


def create_streams(config, *, num_classes: int) -> tuple[Stream, ...]:
  """Returns the streams of a config, with the attacks they name.

  Raises:
    UserError: a stream has other keys or values than it may, a name twice, none of
      them trains the clean branch, or none of a branch has a weight.
  """
  streams = []
  for stream in config.streams:
    expected = set(Stream._fields) - {'attack_statistics'}
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
    attack, statistics = _create_attack(config, stream['attack'], num_classes)
    streams.append(
      Stream(**{**stream, 'attack': attack, 'attack_statistics': statistics})
    )
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


def _unused(config) -> tuple[str, ...]:
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


def _smooth_backward(config) -> tuple[bool, bool]:
  """Returns whether attack and update have a smooth backward pass of their own."""
  choice = config.model.get('smooth_backward', 'none')
  activations.get_activation(config.model['activation'])  # An unknown one is said here.
  if config.model['activation'].partition(':')[0] == activations.RELU_SMOOTH_BACKWARD:
    raise errors.UserError(
      f'model.activation is {config.model["activation"]!r}, by which evaluation would '
      "attack another function than the network; allowed: 'relu', with "
      'model.smooth_backward'
    )
  errors.check_choice('model.smooth_backward', choice, SMOOTH_BACKWARD)
  activation = config.model['activation']
  if choice != 'none' and activation != activations.RELU:
    raise errors.UserError(
      f'model.smooth_backward is {choice!r} and model.activation {activation!r}, which '
      "has a backward pass of its own; allowed: model.activation 'relu', or 'none'"
    )
  return SMOOTH_BACKWARD[choice]


def with_smooth_backward(model):
  """Returns a ReLU network with the same values and smooth derivatives."""
  return model.clone(activation=activations.RELU_SMOOTH_BACKWARD)
