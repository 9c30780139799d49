"""Tests what signals do, with a program that loads nothing heavy."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from advprop_jax import preemption

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import hashlib, signal, sys, time
from advprop_jax import preemption
preemption.watch()
what = sys.argv[1]
if what != 'import':
  preemption.end_with(lambda: 'step 5 is saved')
if what == 'relay':  # Stands for the handler that JAX installs.
  signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))
  preemption.relay_to_jax()
if what == 'told':
  preemption.tell_hosts_with(lambda number: print(number.name, flush=True))
if what in ('import', 'set-up', 'blocked', 'told'):
  print('ready', flush=True)
  if what == 'blocked':
    hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)  # As long as JAX compiles.
  time.sleep(60)
if what == 'done':
  preemption.end_as_done()
  print('ready', flush=True)
  time.sleep(60)
with preemption.finishing():
  print('ready', flush=True)
  while preemption.received() is None or what == 'twice':
    time.sleep(0.01)
if what == 'relay':
  time.sleep(0.2)
print(preemption.cause())
sys.exit(preemption.exit_code(preemption.received()))
"""


def start(what):
  return subprocess.Popen(
    [sys.executable, '-c', PROGRAM, what],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process, *numbers, what_comes='later'):
  """Returns the exit code, and the lines that were printed after 'ready'."""
  with process:
    assert process.stdout.readline() == 'ready\n'
    for i, number in enumerate(numbers):
      process.send_signal(number)
      if i + 1 < len(numbers):  # Two pending signals of a kind are one.
        assert preemption.FINISHING in process.stderr.readline()
        if what_comes == 'later':
          time.sleep(0.25)
    out, err = process.communicate(timeout=20)
  return process.returncode, out.splitlines(), err.splitlines()


@pytest.mark.parametrize('number', preemption.SIGNALS)
@pytest.mark.parametrize('what', ['import', 'set-up', 'blocked'])
def test_with_nothing_to_save_the_first_signal_ends_the_program(what, number):
  code, out, err = end(start(what), number)
  assert code == 128 + number and not out
  assert err == ([] if what == 'import' else [f'{number.name}: step 5 is saved'])


@pytest.mark.parametrize('number', preemption.SIGNALS)
def test_with_something_to_save_the_first_signal_is_noted(number):
  code, out, err = end(start('finishing'), number)
  assert (code, out) == (128 + number, [number.name])
  assert err == [f'{number.name}: {preemption.FINISHING}']


def test_the_second_signal_ends_the_program():
  code, out, err = end(start('twice'), signal.SIGTERM, signal.SIGINT)
  assert (code, out, err) == (130, [], [f'SIGINT: {preemption.ENDED}'])


@pytest.mark.parametrize('what, out', [('set-up', ''), ('relay', 'told\nSIGTERM\n')])
def test_signals_are_heard_when_nobody_reads_the_output(what, out):
  with start(what) as process:
    assert process.stdout.readline() == 'ready\n'
    process.stderr.close()  # As of `python main.py 2>&1 | tee log` when tee has ended.
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert process.stdout.read() == out


def test_other_hosts_are_told_of_an_end_at_once():
  code, out, err = end(start('told'), signal.SIGTERM)
  assert (code, out, err) == (143, ['SIGTERM'], ['SIGTERM: step 5 is saved'])


def test_a_program_that_is_done_ends_with_0():
  assert end(start('done'), signal.SIGTERM) == (0, [], [])


def test_signals_that_come_together_are_one():
  code, out, _ = end(
    start('finishing'), signal.SIGTERM, signal.SIGTERM, what_comes='together'
  )
  assert (code, out) == (143, ['SIGTERM'])


@pytest.mark.parametrize('number', preemption.SIGNALS)
def test_the_handler_of_jax_hears_the_first_signal(number):
  code, out, _ = end(start('relay'), number)
  assert (code, out) == (128 + number, ['told', number.name])


def test_without_a_watch_nothing_is_received():
  with preemption.finishing():
    assert preemption.received() is None
  assert preemption.exit_code(None) == 143
