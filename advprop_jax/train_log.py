"""What becomes of the metrics of steps: each is looked at, their means are written."""

import collections
from collections.abc import Callable

import jax
import numpy as np

from advprop_jax import bad_steps, hosts, parallel, run_start, step_cost
from advprop_jax.workdir import metric_writer, spent


class TrainLog:
  """Collects the metrics of the steps of one start of a run."""

  def __init__(
    self,
    exp,
    start: run_start.Start,
    writer: metric_writer.MetricWriter,
    timer: spent.PhaseTimer,
    *,
    num_bad: Callable[[], int],
    saved: Callable[[], list[int]],
  ):
    """Begins with no step.

    Args:
      exp: the experiment.
      start: of the run.
      writer: receives the means.
      timer: whose seconds of 'train' are those of all steps but the first.
      num_bad: returns the examples of this host that could not be decoded.
      saved: returns the steps of the checkpoints.
    """
    self._exp, self._start, self._writer, self._timer = exp, start, writer, timer
    self._num_bad, self._saved = num_bad, saved
    self._batch_size = exp.config.data.batch_size
    self._bad = bad_steps.BadSteps(
      exp.config.on_nonfinite,
      exp.abstract_state,
      frozen=exp.config.optim.freeze,
      num_skipped=start.step - int(start.state.step),
    )
    self._not_looked_at: collections.deque = collections.deque()  # (step, metrics)
    self._recent: list[dict] = []  # Metrics that are not written yet.
    self._timed_images, self._train_secs = 0, 0.0
    self._utilisation = step_cost.create_meter(
      exp.method,
      exp.model,
      image_size=exp.config.data.image_size,
      device_kind=jax.devices()[0].device_kind,
      num_devices=jax.device_count(),
    )

  def add(self, step: int, metrics: dict):
    """Adds a step that was begun, and waits for the one before; see `look_at`.

    At most one step is under way while the next is prepared: batches are large.
    """
    is_first = step == self._start.step + 1
    self._recent.append(metrics)
    self._not_looked_at.append((step, metrics))
    self.look_at(up_to=step if is_first else step - 1)
    if not is_first:
      self._timed_images += self._batch_size

  def look_at(self, *, up_to: int):
    """Waits for steps; UserError if one is not finite and the run has to stop."""
    while self._not_looked_at and self._not_looked_at[0][0] <= up_to:
      step, metrics = self._not_looked_at.popleft()
      num_before = step - self._start.step - 1  # Steps of this start.
      self._bad.look_at(
        step,
        metrics,
        batch_size=self._batch_size,
        num_seen=self._start.examples_seen + num_before * self._batch_size,
        saved=self._saved,
      )

  def write(self, step: int):
    """Writes the means over the steps since the last call, if there are some."""
    if not self._recent:
      return
    exp, secs = self._exp, self._timer.secs
    with self._timer('train'):
      self.look_at(up_to=step)
      found = jax.device_get(self._recent)
      found = [x for x in found if x['all_finite']] or found[-1:]
      means = jax.tree.map(lambda *x: float(np.mean(x)), *found)
    del means['all_finite'], means['nonfinite']
    scalars = {f'train/{name}': value for name, value in means.items()}
    if exp.config.on_nonfinite == 'skip':
      scalars['train/skipped_steps'] = self._bad.num_skipped
    with parallel.on_host():  # Not between two steps of an accelerator.
      # A step that is skipped leaves the count of the optimizer.
      num_updates = step - self._bad.num_skipped
      rate = exp.schedule(max(0, num_updates - 1))
      scalars['train/learning_rate'] = float(rate)
    scalars['data/bad_examples'] = hosts.sum_over_hosts(self._num_bad())
    if self._timed_images:
      images_per_sec = self._timed_images / (secs['train'] - self._train_secs)
      scalars['train/images_per_sec'] = images_per_sec
      if self._utilisation is not None:
        scalars['train/mfu'] = self._utilisation(images_per_sec)
    scalars[spent.DEVICE_HOURS] = self._timer.spent[spent.DEVICE_HOURS]
    self._writer.write_scalars(step, scalars)
    self._recent, self._timed_images, self._train_secs = [], 0, secs['train']
