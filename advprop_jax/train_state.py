"""What a run carries from step to step, and its first value."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from advprop_jax import branches, nonfinite, optim, parallel
from advprop_jax.models import initializers


class TrainState(flax.struct.PyTreeNode):
  """Everything that a checkpoint needs; the same on every device."""

  step: jax.Array  # int32 []: updates done.
  params: Any  # Shared by all branches.
  norms: dict[str, Any]  # {branch: scale and bias}
  batch_stats: dict[str, Any]  # {branch: running mean and var}
  opt_state: optax.OptState
  ema: dict[str, Any] | None  # Averages of the three above; None: not kept.
  rng: jax.Array  # The run's key; never used itself, only folded.

  @property
  def parts(self) -> dict[str, Any]:
    """Returns the state as the parts that a checkpoint consists of."""
    training = {'step': self.step, 'rng': self.rng, 'opt_state': self.opt_state}
    parts = {'model': self.model, 'training': training}
    return parts if self.ema is None else {**parts, 'ema': self.ema}

  @classmethod
  def from_parts(cls, parts: dict[str, Any]) -> 'TrainState':
    """Returns the state whose `parts` these are."""
    return cls(**parts['model'], **parts['training'], ema=parts.get('ema'))

  @property
  def model(self) -> dict[str, Any]:
    """Params, norms and batch_stats: all that a network consists of."""
    return {
      'params': self.params,
      'norms': self.norms,
      'batch_stats': self.batch_stats,
    }

  @property
  def trained(self) -> dict[str, Any]:
    """Params and norms: what the optimizer updates."""
    return {'params': self.params, 'norms': self.norms}

  @property
  def eval_variables(self) -> dict[str, Any]:
    """Params, norms and batch_stats to evaluate: the averages, where they are kept."""
    return self.ema or self.model

  def variables(self, branch: str) -> dict[str, Any]:
    """Returns what `model.apply` expects, for one branch."""
    return branches.variables(self.params, self.norms, self.batch_stats, branch)

  def update(
    self, tx, grads, batch_stats, *, ema_decay: float
  ) -> tuple['TrainState', Any]:
    """Returns the state after one update, and what was added to the trained values.

    Args:
      tx: optimizer of {'params': ..., 'norms': {branch: ...}}.
      grads: like what `tx` updates.
      batch_stats: {branch: new running statistics}.
      ema_decay: see `optim.ema_update`.
    """
    updates, opt_state = tx.update(grads, self.opt_state, self.trained)
    new = {**optax.apply_updates(self.trained, updates), 'batch_stats': batch_stats}
    step, ema = self.step + 1, self.ema
    if ema is not None:
      ema = optim.ema_update(ema, new, step=step, decay=ema_decay)
    return self.replace(step=step, opt_state=opt_state, ema=ema, **new), updates

  def start_from(self, variables: dict[str, Any]) -> 'TrainState':
    """Returns this state with the weights of another network.

    Args:
      variables: {'params', 'norms', 'batch_stats'}. A branch that it lacks becomes a
        copy of its clean one, a layer of 'params' stays as it is here.
    """

    def of_branches(name):
      clean = variables[name][branches.CLEAN]
      return {branch: variables[name].get(branch, clean) for branch in self.norms}

    new = {
      'params': {**self.params, **variables['params']},
      'norms': of_branches('norms'),
      'batch_stats': of_branches('batch_stats'),
    }
    ema = None if self.ema is None else jax.tree.map(jnp.copy, new)
    return self.replace(ema=ema, **jax.tree.map(jnp.copy, new))

  def first_nonfinite(self) -> jax.Array:
    """Returns which array is not finite, see `nonfinite.first`; inside a step."""
    return nonfinite.first(self._without_key())

  def name_of_array(self, place: int) -> str:
    """Returns the name of an array that `first_nonfinite` has found."""
    return nonfinite.name(self._without_key(), place)

  def _without_key(self) -> dict[str, Any]:
    return {'ema': self.ema, 'model': self.model, 'opt_state': self.opt_state}


def create_train_state(model, tx, *, branch_names, image_size, seed, keep_ema):
  """Returns the state before the first step; all branches start equal.

  Args:
    model: maps float32 [B, image_size, image_size, 3] to logits.
    tx: optimizer of {'params': ..., 'norms': {branch: ...}}.
    branch_names: the branches of norms, in any order, each once.
    image_size: side of the square images, in pixels.
    seed: of the initial weights and of the run's random numbers, int.
    keep_ema: whether to keep averages of weights, norms and statistics.

  Returns:
    A `TrainState`, float32 but for the step and the key, on the host's CPU: numpy draws
    the weights in a callback, which not every accelerator has.
  """

  # One program: tens of shapes, each compiled alone, would take longer than all of it.
  @jax.jit
  def create():
    init_rng, rng = jax.random.split(jax.random.key(seed))
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables = model.init(initializers.host_key(init_rng), image, train=False)
    trained = {
      'params': variables['params'],
      'norms': branches.fork(variables['norm'], branch_names),
    }
    batch_stats = branches.fork(variables['batch_stats'], branch_names)
    ema = None
    if keep_ema:
      ema = jax.tree.map(jnp.copy, {**trained, 'batch_stats': batch_stats})
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      **trained,
      batch_stats=batch_stats,
      opt_state=tx.init(trained),
      ema=ema,
      rng=rng,
    )

  with parallel.on_host():
    return create()
