"""Stands in for Slurm's srun: starts SLURM_NTASKS processes on this machine.

As with `--kill-on-bad-exit=1` one that fails ends the others, by SIGTERM, and KILL_WAIT
seconds later by SIGKILL; the status is the highest, that of a signal above all others.
Source: Slurm's manual of srun, and `_task_finish` in its `launch.c`.

With PREEMPT_AT=n in the environment task 1 gets SIGTERM, as in a preemption, when
PREEMPT_FILE has n lines.
"""

import contextlib
import math
import os
import pathlib
import signal
import subprocess
import sys
import time


def start(command, index):
  env = {
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': str(index),
    'SLURM_STEP_NODELIST': 'localhost',
  }
  return subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True)


def num_lines(path):
  return path.read_bytes().count(b'\n') if path.exists() else 0


def main():
  options = [arg for arg in sys.argv[1:5] if arg.startswith('--')]
  assert '--kill-on-bad-exit=1' in options
  command = sys.argv[1 + len(options) :]
  tasks = [start(command, i) for i in range(int(os.environ['SLURM_NTASKS']))]
  preempt_at = int(os.environ.get('PREEMPT_AT', 0))
  stopped, kill_at = False, 0.0
  while None in (statuses := [task.poll() for task in tasks]):
    if preempt_at and num_lines(pathlib.Path(os.environ['PREEMPT_FILE'])) >= preempt_at:
      tasks[1].send_signal(signal.SIGTERM)
      preempt_at = 0
    if any(statuses) and not stopped:
      stopped = True
      time.sleep(0.2)  # Those that end on their own are not signaled.
      for task in tasks:
        task.send_signal(signal.SIGTERM)  # Nothing, if it has ended.
      kill_at = time.monotonic() + float(os.environ.get('KILL_WAIT', 30))
    if stopped and time.monotonic() > kill_at:
      for task in tasks:
        with contextlib.suppress(ProcessLookupError):  # It has ended.
          os.killpg(task.pid, signal.SIGKILL)
      kill_at = math.inf
    time.sleep(0.01)
  by_signal = [128 - status for status in statuses if status < 0]
  return max(by_signal or statuses)


if __name__ == '__main__':
  sys.exit(main())
