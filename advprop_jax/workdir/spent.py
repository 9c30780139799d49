"""What a run has cost: seconds of its phases, hours of devices, work that was lost."""

import contextlib
import time

import jax

# Of what a run has spent, beside the seconds of its phases: hours times devices, and of
# them those of work that a start had to do again.
DEVICE_HOURS, LOST_DEVICE_HOURS = 'device_hours', 'lost_device_hours'
LOST_STEPS = 'lost_steps'
TOTALS = (DEVICE_HOURS, LOST_DEVICE_HOURS, LOST_STEPS)


class PhaseTimer:
  """Adds up the seconds spent in each named phase of a run since its last start."""

  def __init__(self):
    self.secs: dict[str, float] = {}
    self._earlier: dict[str, float] = {LOST_DEVICE_HOURS: 0.0, LOST_STEPS: 0}
    self._start = time.monotonic()

  @property
  def spent(self) -> dict[str, float]:
    """Returns what all starts of the run have spent, to go on from: JSON values.

    They are the seconds of each phase, for work that was kept; the hours of the run
    times its devices, idle ones, too; and of these the hours of work that was lost.
    """
    hours = (time.monotonic() - self._start) / 3600
    now = {**self.secs, DEVICE_HOURS: hours * jax.device_count()}
    earlier = self._earlier
    return earlier | {key: earlier.get(key, 0.0) + x for key, x in now.items()}

  def scalars(self) -> dict[str, float]:
    """Returns what was spent, by the names that it has in results."""
    return {k if k in TOTALS else f'secs/{k}': x for k, x in self.spent.items()}

  def totals(self) -> dict[str, float]:
    """Returns what was spent and lost before this start, for it to write down."""
    return {key: self._earlier.get(key, 0.0) for key in TOTALS}

  def add(self, spent: dict[str, float]):
    """Adds what earlier starts of the run have spent, up to the checkpoint."""
    self._earlier |= spent

  def add_start(self, line: dict[str, float] | None, *, resume_step: int):
    """Adds what an earlier start has found lost, and has not saved.

    Args:
      line: of results, its `totals`; None: there was no such start.
      resume_step: of the checkpoint. What a start from a later one has spent, which is
        damaged now, `add_lost` adds.
    """
    if line is None or line[LOST_STEPS] <= self._earlier[LOST_STEPS]:
      return
    keys = TOTALS if line['step'] == resume_step else (LOST_STEPS,)
    self._earlier |= {key: line[key] for key in keys}

  def add_lost(self, line: dict[str, float], *, resume_step: int):
    """Adds what was spent after the checkpoint, to be done again.

    Args:
      line: of results, the last of the start that was stopped. What came after it is
        not known.
      resume_step: of the checkpoint.
    """
    known = self._earlier.get(DEVICE_HOURS, 0.0)
    lost = max(0.0, line[DEVICE_HOURS] - known)
    self._earlier[DEVICE_HOURS] = known + lost
    self._earlier[LOST_DEVICE_HOURS] += lost
    self._earlier[LOST_STEPS] += line['step'] - resume_step

  @contextlib.contextmanager
  def __call__(self, phase: str):
    """Counts the time inside the `with` block towards `phase`."""
    start = time.monotonic()
    yield
    self.secs[phase] = self.secs.get(phase, 0.0) + time.monotonic() - start

  def __str__(self):
    return ', '.join(f'{phase} {secs:.1f} s' for phase, secs in self.secs.items())
