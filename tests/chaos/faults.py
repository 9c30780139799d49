"""What is done to runs: SIGKILL and SIGTERM, at moments by chance.

A moment is uniform over the seconds that an uninterrupted run takes: set-up,
compilation, steps with their saves, and evaluation. Imports are not in it, since the
zygote has made them. Of two processes it is from where they have found each other:
before, the other one waits for minutes, as JAX does.
"""

import re
import signal
import socket
import time

from tests.chaos import state
from tests.chaos.figure import Fault

_JOINED = ', workdir '  # Is printed when all processes have found each other.
_SAID = re.compile(
  r'^SIGTERM: (?:interrupted; the same command (?:resumes it from step (?P<newest>\d+)|'
  r'(?P<none>begins it anew)) |step (?P<saved>\d+) of \d+ is saved; the same command )',
  re.MULTILINE,
)
_LOST_PEER_SECS = 15.0
# In which JAX tells two processes of a signal, and an evaluation and a save end.
_RELAY_SECS = 5.0


def kill(chain, run, rng, number):
  """SIGKILL at any moment."""
  if not run.lasts(rng.uniform(0, chain.runs.secs)):
    return None
  return kill_now(chain, run)


def kill_now(chain, run):
  """SIGKILL now."""
  run.kill()
  if run.wait() != [-signal.SIGKILL]:
    return None  # It has ended by itself in this very moment.
  unfinished = list(chain.workdir.glob('checkpoints/*.orbax-checkpoint-tmp*'))
  return Fault(f'{run.phase()}{" in a save" if unfinished else ""}')


def terminate(chain, run, rng, number):
  """SIGTERM at any moment."""
  if not run.lasts(rng.uniform(0, chain.runs.secs)):
    return None
  return send_sigterm(chain, run)


def send_sigterm(chain, run):
  """Sends SIGTERM now."""
  phase, sent = run.phase(), time.monotonic()
  is_last = f'evaluating step {chain.runs.num_steps}' in run.text()
  run.children[0].send(signal.SIGTERM)
  (code,) = run.wait()
  secs = time.monotonic() - sent
  problem, said = _problem(run.text(), code, chain.workdir)
  if code == 0 and 'SIGTERM' in run.text() and not is_last:
    problem = 'did not stop at SIGTERM'
  if code == 0 and said is None and 'SIGTERM' not in run.text():
    return None if problem is None else Fault(phase, problem, secs)  # It was over.
  return Fault(phase, problem and f'{problem}\n{run.tail()}', secs)


def terminate_one(chain, run, rng, number):
  """SIGTERM to one of two processes, in turn."""
  target = number % 2
  if not _last_joined(chain, run, rng):
    return None
  phase, sent = run.phase(target), time.monotonic()
  run.children[target].send(signal.SIGTERM)
  codes = run.wait()
  secs = time.monotonic() - sent
  if codes == [0, 0] and 'SIGTERM' not in run.text(target):
    return None
  problem, said = _problem(run.text(target), codes[target], chain.workdir)
  other = 1 - target
  problem = problem or _problem_of_other(
    run.text(other),
    codes[other],
    target=target,
    pid=run.children[target].pid,
    said=said,
    is_over=codes[target] == 0 and secs < _RELAY_SECS,
  )
  what = f'{phase}, ends with {codes[target]} and the other with {codes[other]}'
  return Fault(what, problem and f'{problem}\n{run.tail()}', secs)


def kill_one(chain, run, rng, number):
  """SIGKILL to one of two processes, in turn: the other ends, and names it."""
  target = number % 2
  if not _last_joined(chain, run, rng):
    return None
  phase, sent = run.phase(target), time.monotonic()
  run.children[target].send(signal.SIGKILL)
  other = run.children[1 - target]
  code, secs = other.wait(), time.monotonic() - sent
  run.wait()
  if code == 0:
    if run.children[target].poll() == 0:
      return None  # It was over.
    # It was killed when it had told the other one that it was done.
    is_over = 'finished ' in run.text(target) or 'nothing to train' in run.text(target)
    return Fault('the end', None if is_over else f'was not noticed\n{run.tail()}')
  problem = None
  if run.children[target].poll() != -signal.SIGKILL:
    problem = f'the killed one ended with {run.children[target].poll()}'
  problem = problem or _problem_of_other(
    run.text(1 - target),
    code,
    target=target,
    pid=run.children[target].pid,
    said=None,
    is_killed=True,
  )
  if problem is None and secs > _LOST_PEER_SECS:
    problem = f'took {secs:.1f} s, and {_LOST_PEER_SECS} s are allowed'
  return Fault(phase, problem and f'{problem}\n{run.tail()}', secs)


def _last_joined(chain, run, rng) -> bool:
  """Waits until two processes know each other, and for a time by chance."""
  joined = run.waits_for(_JOINED)
  return joined and run.lasts(rng.uniform(0, max(0.0, chain.runs.secs - run.age())))


def _problem(text: str, code: int, workdir):
  """Returns what is wrong with the end of a process that got SIGTERM, and its line."""
  said = list(_SAID.finditer(text))
  if 'Traceback' in text:
    return 'a traceback', None
  if code == 0:
    is_over = 'finished ' in text or 'nothing to train' in text
    return None if is_over else 'ended with 0, and is not finished', None
  if code != 143:
    return f'ended with {code}, not 143', None
  if not said and _JOINED not in text:
    return None, None  # Nothing had begun, and nothing is said.
  if len(said) != 1:
    return f'{len(said)} lines say what is saved, not 1', None
  saved = state.steps(workdir)
  told = 0 if said[0]['none'] else int(said[0]['newest'] or said[0]['saved'])
  # A save in the background may end after the line is made.
  if told > (saved[-1] if saved else 0):
    return f'step {told} is said to be saved, and there are {saved}', said[0]
  return None, said[0]


def _problem_of_other(
  text: str, code: int, *, target: int, pid: int, said, is_over=False, is_killed=False
):
  """Returns what is wrong with the end of the process that got no signal."""
  if 'Traceback' in text:
    return 'a traceback of the other'
  if is_over and code == 0 and 'finished ' in text:
    return None  # The run has ended before JAX has told both of the signal.
  if code == 143 and said is not None and said['saved']:
    line = f'a signal to another host: step {said["saved"]} of '
  elif code == (75 if is_killed else 143) and (said is None or not said['saved']):
    what = 'is lost: ' if is_killed else 'has ended: SIGTERM: '
    line = f'process {target} of 2 ({socket.gethostname()}, pid {pid}) {what}'
  else:
    return f'the other ended with {code}'
  lines = [x for x in text.splitlines() if x.startswith(line)]
  return None if len(lines) == 1 else f'{len(lines)} lines {line!r}, not 1'
