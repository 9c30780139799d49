"""Training methods by name: from a config to the step that trains by it.

What a method asks of the config is checked by `check`, before data are opened.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from advprop_jax import (
  branches,
  errors,
  fast_step,
  registry,
  schema,
  stream_config,
  train_step,
)
from advprop_jax.models import activations, arithmetic

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
  # (model, tx, label_smoothing=, ema_decay=, accumulate_steps=, frozen=,
  # skip_nonfinite=) -> step, per device.
  make_step: Callable[..., Any]
  # What an image meets on its way -> operations of a step for each of the batch: of
  # all the forward and backward passes that the method cannot do without.
  flops_per_image: Callable[[arithmetic.Count], float]
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
  streams = stream_config.create_streams(config, num_classes=num_classes)
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

  def flops_per_image(count):
    attacks = [
      x.attack_gradients
      * arithmetic.image_grad(count, running=x.attack_statistics == 'running')
      for x in streams
    ]
    return len(streams) * arithmetic.update(count) + sum(attacks)

  return Method(
    names=tuple(stream.name for stream in streams),
    branch_names=tuple(dict.fromkeys(stream.branch for stream in streams)),
    image_keys=tuple(dict.fromkeys(stream.image_key for stream in streams)),
    unused=stream_config.unused_values(config),
    make_step=make_step,
    flops_per_image=flops_per_image,
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

  def flops_per_image(count):
    running = components.statistics == 'running'
    attack = arithmetic.forward(count, running=running) + arithmetic.backward(
      count, running=running, image=True, weights=components.reuse_gradient
    )
    return arithmetic.update(count) + num_attacked / num_images * attack

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
    flops_per_image=flops_per_image,
  )


class Kind(NamedTuple):
  """A kind of method."""

  components: Callable[..., Any]  # What `config.method` holds, besides the name.
  create: Callable[..., Method]  # Of the config and these.


METHODS = {
  'streams': Kind(NoComponents, streams_method),
  'fast_advprop': Kind(fast_step.Components, fast_advprop),
}


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
