"""What a stage of an ensemble becomes: its attack, checked before any runs."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import errors, registry
from advprop_jax.attacks import ensembles, table
from advprop_jax.attacks.ensembles import Stage


def program(stage: Stage) -> tuple:
  """Returns what a compiled stage is known by, which is all that is not traced."""
  section = tuple(x for x in stage.section if x[0] != 'num_steps')
  return section, 'num_steps' in dict(stage.section), stage.target_rank > 0


def check(
  stages: Sequence[Stage],
  *,
  num_classes: int,
  image_shape: tuple[int, ...],
  is_randomised: bool = False,
):
  """Raises UserError if an attack cannot be made or traced, before any runs.

  Args:
    stages: all of them.
    num_classes: K.
    image_shape: (H, W, C).
    is_randomised: whether the network takes a key.
  """
  image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  label = jax.ShapeDtypeStruct((1,), np.int32)

  def logits_fn(image, *key):
    return jnp.zeros([len(image), num_classes]) + image.mean()

  for stage in stages:
    if not is_randomised and dict(stage.section).get('num_samples', 1) > 1:
      raise errors.UserError(
        f'{stage.attack} has several num_samples; allowed: 1, since the network is not '
        'randomised'
      )
    try:
      attack = create(
        stage.section,
        num_classes,
        epsilon=stage.epsilon,
        target_rank=stage.target_rank if stage.target_rank else None,
      )
      jax.eval_shape(
        functools.partial(attack, logits_fn), image, label, jax.random.key(0)
      )
    except errors.UserError as e:
      raise errors.UserError(f'{stage.attack}: {e}') from e


def create(section, num_classes: int, *, epsilon, num_steps=None, target_rank=None):
  """Returns the attack of a stage; what is None its section says, if anything does.

  Args:
    section: of the stage.
    num_classes: K.
    epsilon: radius, of images in [0, 1]; may be traced, like the next two.
    num_steps: steps.
    target_rank: which of the other classes is aimed at, from 1 on.
  """
  section = dict(section)
  for key in ensembles.STEP_SIZES & section.keys():
    section[key] *= epsilon
  given = {'num_classes': num_classes, 'epsilon': epsilon, 'epsilon_l2': epsilon}
  for key, value in (('num_steps', num_steps), ('target_rank', target_rank)):
    if value is not None:
      given[key] = value
  return registry.create('the attack', table.ATTACKS, section, **given)
