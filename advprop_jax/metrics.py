"""Where the numbers go: TensorBoard, `results.jsonl` and the log.

Names are `{split}/{stream or branch}_{quantity}`: train/adv_loss, val/clean_top1.
"""

import contextlib
import json
import math
import time

import jax
from clu import metric_writers
from etils import epath


class MetricWriter:
  """Writes metrics of one run into its workdir; a context manager.

  TensorBoard files lie in `<workdir>/tensorboard`, written by CLU in the background;
  `<workdir>/results.jsonl` has one object a line, {'step': 3, 'val/clean_top1': 0.9};
  null stands for what is not finite.
  Only the first of several hosts writes files; all of them log.
  """

  def __init__(self, workdir: epath.Path, *, resume_step: int | None = None):
    """Opens the files of `workdir`, to append to them.

    Args:
      workdir: existing directory.
      resume_step: the step that training goes on from; lines of later steps, left by a
        run that was stopped after its last checkpoint, are dropped: they will come
        again. None: every line stays.
    """
    self._is_first_host = jax.process_index() == 0
    self._clu = metric_writers.create_default_writer(
      workdir / 'tensorboard', just_logging=not self._is_first_host
    )
    self._results = workdir / 'results.jsonl'
    if self._is_first_host and resume_step is not None and self._results.exists():
      lines = self._results.read_text().splitlines()
      kept = [line for line in lines if _step(line) <= resume_step]
      new = self._results.with_name('results.jsonl.new')
      new.write_text(''.join(f'{line}\n' for line in kept))
      new.replace(self._results)

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._clu.close()

  def write_scalars(self, step: int, scalars: dict[str, float]):
    """Writes one line of results and the same numbers to TensorBoard and the log."""
    self._clu.write_scalars(step, scalars)
    if self._is_first_host:
      with self._results.open('a') as f:
        # JSON has no NaN and no infinity: an untrained model may have such a loss.
        finite = {k: x if math.isfinite(x) else None for k, x in scalars.items()}
        f.write(json.dumps({'step': step, **finite}) + '\n')

  def write_image(self, step: int, name: str, image):
    """Writes uint8 [H, W, 3] to TensorBoard."""
    self._clu.write_images(step, {name: image[None]})

  def write_hparams(self, hparams: dict):
    """Writes the flat config to TensorBoard's table of hyper-parameters."""
    self._clu.write_hparams(hparams)


def _step(line: str) -> float:
  """Returns the step of a line of results; infinity for half a line of a killed run."""
  try:
    return float(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return math.inf


class PhaseTimer:
  """Adds up the seconds spent in each named phase of a run."""

  def __init__(self):
    self.secs: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, phase: str):
    """Counts the time inside the `with` block towards `phase`."""
    start = time.monotonic()
    yield
    self.secs[phase] = self.secs.get(phase, 0.0) + time.monotonic() - start

  def __str__(self):
    return ', '.join(f'{phase} {secs:.1f} s' for phase, secs in self.secs.items())
