"""Breaks runs off and damages checkpoints as `python -m tests.chaos` does, a few times.

One test, since all of it shares a process that has imported everything, and what an
uninterrupted run ends with.
"""

import concurrent.futures

import pytest

from tests.chaos import damages, disks, faults, figure, runs, zygote

SEED = 0


def terminate_at(printed):
  """Returns an injection: SIGTERM when this is printed."""

  def inject(chain, run, rng, number):
    return faults.send_sigterm(chain, run) if run.waits_for(printed) else None

  return inject


def kill_soon(chain, run, rng, number):
  """SIGKILL at a moment by chance, in set-up, compilation, steps or saves."""
  first = 'setting up' if number % 2 else 'compiled and made'
  if not run.waits_for(first) or not run.lasts(rng.uniform(0, 0.3)):
    return None
  return faults.kill_now(chain, run)


# Of each, in a row on one workdir.
INJECTIONS = {
  'signals': (
    terminate_at('compiling the step'),
    terminate_at('[5] '),
    terminate_at('evaluating step'),
  ),
  'kills': (kill_soon, kill_soon, kill_soon),
  'disks': (disks.take_disk,),  # A full one.
}


def damage(first_run, starter):
  """Returns the figures of flipped bits and cut files, of a run that is over."""
  source, words = first_run.workdir, first_run.runs.words(first_run.workdir)
  newest = source / 'checkpoints' / str(first_run.runs.num_steps)
  num_cut = len(damages.of_every_file(newest, [damages.CUT]))
  made = figure.Figure('damages', 30 + num_cut)
  (folder := first_run.folder / 'damages').mkdir()
  damages.try_all(
    *(made, starter, words, source, folder), flips=30, kinds=[damages.CUT], seed=SEED
  )
  return made


def inject(all_runs, name):
  """Returns a figure of INJECTIONS."""
  injections = INJECTIONS[name]
  made = figure.Figure(name, len(injections))
  figure.inject_all(
    *(made, all_runs, lambda chain, run, rng, i: injections[i](chain, run, rng, i)),
    seed=SEED,
    new_chain=disks.DiskChain if name == 'disks' else runs.Chain,
  )
  return made


@pytest.mark.long
def test_whatever_breaks_a_run_off_it_ends_as_without(tmp_path, digits_dir):
  (tmp := tmp_path / 'tmp').mkdir()
  with (
    zygote.Zygote(tmp_path / 'compilations', TMPDIR=str(tmp)) as starter,
    concurrent.futures.ThreadPoolExecutor() as executor,
  ):
    all_runs = runs.Runs(starter, tmp_path / 'runs', data_dir=digits_dir, num_steps=12)
    first_run = runs.Chain(all_runs, 'uninterrupted')
    uninterrupted = first_run.start()
    assert uninterrupted.waits_for('digits: '), uninterrupted.tail()  # Are prepared.
    injected = [executor.submit(inject, all_runs, name) for name in INJECTIONS]
    assert uninterrupted.wait() == [0], uninterrupted.tail()
    all_runs.learn(first_run, secs=uninterrupted.age())
    for made in (damage(first_run, starter), *(x.result() for x in injected)):
      assert made.is_perfect, '\n'.join([str(made), *made.failures])
