"""What becomes of steps that are not finite: they end a run, or are skipped."""

from collections.abc import Callable

import numpy as np
from absl import logging

from advprop_jax import errors, train_state, update

POLICIES = ('skip', 'stop')  # Of `config.on_nonfinite`.
MOST_SKIPPED = 10  # In a row; then the data or the rate are at fault.


class BadSteps:
  """Looks at the steps of a run, one after the other."""

  def __init__(
    self,
    policy: str,
    state: train_state.TrainState,
    *,
    frozen: tuple[str, ...] = (),
    num_skipped: int = 0,
  ):
    """Begins with no step seen.

    Args:
      policy: one of POLICIES.
      state: shapes and types of the step's.
      frozen: see `update.make_step`.
      num_skipped: in earlier starts of the run.
    """
    self._policy, self._state, self._frozen = policy, state, frozen
    self.num_skipped = num_skipped
    self._num_in_row = 0

  def look_at(
    self,
    step: int,
    metrics: dict,
    *,
    batch_size: int,
    num_seen: int,
    saved: Callable[[], list[int]],
  ):
    """Looks at a step that is done.

    Args:
      step: its number.
      metrics: of `update.make_step`.
      batch_size: its images.
      num_seen: examples that the run had seen before it.
      saved: returns the steps of the checkpoints.

    Raises:
      UserError: the run has to stop.
    """
    if np.asarray(metrics['all_finite']):
      self._num_in_row = 0
      return
    name, is_in_state = update.describe(
      self._state, int(metrics['nonfinite']), frozen=self._frozen
    )
    place = f'{name} is not finite at step {step}'
    if self._policy == 'skip' and not is_in_state:
      self.num_skipped += 1
      self._num_in_row += 1
      logging.warning('%s, which is skipped', place)
      if self._num_in_row < MOST_SKIPPED:
        return
      place += f', the last of {MOST_SKIPPED} in a row'
    checkpoint = f'of step {saved()[-1]}' if saved() else 'none'
    raise errors.UserError(
      f'training has diverged: {place}; its images are number {num_seen} to '
      f'{num_seen + batch_size - 1} of the run, and --replay_step={step} makes it '
      f'again; the last checkpoint is {checkpoint}; a lower learning_rate or longer '
      'warmup_epochs of optim.schedule may help'
    )
