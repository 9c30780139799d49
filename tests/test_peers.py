"""Tests that processes of a run end together; they load nothing heavy, and no JAX."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import pathlib, sys, time
from advprop_jax import peers

peers._CONNECT_SECS = float(sys.argv[5])

folder, what = sys.argv[1], sys.argv[4]
index, count = map(int, sys.argv[2:4])

def exchange(text):
  file = pathlib.Path(folder, f'{index}.new')
  file.write_text(text)
  file.rename(pathlib.Path(folder, f'{index}.json'))
  files = [pathlib.Path(folder, f'{i}.json') for i in range(count)]
  while not all(x.exists() for x in files):
    time.sleep(0.01)
  return [x.read_text() for x in files]

if what == 'blocked':  # By a firewall.
  def connect(*_, **__):
    raise OSError('no route')
  peers.socket.create_connection = connect
if what == 'renamed' and index:  # A machine with the same name, and other addresses.
  create_connection = peers.socket.create_connection
  def connect(address, **options):
    if address[0] == '127.0.0.1':
      raise ConnectionRefusedError
    return create_connection(('127.0.0.1', address[1]), **options)
  peers.socket.create_connection = connect
try:
  connections = peers.Peers(index, exchange)
except OSError as e:
  sys.exit(str(e))
print('ready', connections.missing, flush=True)
sys.stdin.readline()
if what == 'error':
  connections.leave('error: no data here')
  sys.exit(1)
if what == 'SIGTERM':
  connections.leave('SIGTERM: the same command goes on', code=143)
  sys.exit(143)
connections.leave()
"""


@contextlib.contextmanager
def processes(folder, count, failing=None, what='error', secs=20.0, missing=()):
  """Yields processes that are connected; each ends with a line to its stdin.

  Args:
    folder: for their files.
    count: of them.
    failing: the one that something happens to.
    what: this.
    secs: that the first one waits for the others.
    missing: those that it has no connection to.
  """
  found = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, folder, str(i), str(count)]
      + [what if i == failing else 'done', str(secs)],
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]
  with contextlib.ExitStack() as stack:
    for process in found:
      stack.enter_context(process)
    for i, process in enumerate(found):
      expected = f'ready {[] if i else list(missing)}\n'
      assert process.stdout.readline() == ('' if i in missing else expected)
    yield found
    for process in found:
      process.kill()


def end(process):
  """Returns the exit code and what was printed; the process gets no line."""
  process.wait(timeout=15)
  return process.returncode, process.stderr.read()


@pytest.mark.parametrize('lost', [0, 1, 2])
def test_a_killed_process_ends_the_others_and_is_named(tmp_path, lost):
  with processes(tmp_path, 3) as found:
    found[lost].send_signal(signal.SIGKILL)
    name = f'process {lost} of 3 ({socket.gethostname()}, pid {found[lost].pid})'
    line = f'{name} is lost: the same command goes on from the last checkpoint\n'
    for i in {0, 1, 2} - {lost}:
      assert end(found[i]) == (75, line)


@pytest.mark.parametrize('failing', [0, 2])
@pytest.mark.parametrize(
  'what, expected, words',
  [
    ('error', 1, 'error: no data here'),
    ('SIGTERM', 143, 'SIGTERM: the same command goes on'),
  ],
)
def test_an_error_or_signal_of_one_ends_the_others(
  tmp_path, failing, what, expected, words
):
  with processes(tmp_path, 3, failing, what) as found:
    found[failing].communicate('go on\n')
    for i in {0, 1, 2} - {failing}:
      code, text = end(found[i])
      assert code == expected and text.count('\n') == 1
      assert text.startswith(f'process {failing} of 3 (')
      assert text.endswith(f') has ended: {words}\n')


def test_one_whose_output_nobody_reads_ends_with_the_others(tmp_path):
  with processes(tmp_path, 2) as found:
    found[0].stderr.close()
    found[1].send_signal(signal.SIGKILL)
    assert found[0].wait(timeout=15) == 75


def test_one_that_cannot_connect_takes_none_with_it(tmp_path):
  options = {'what': 'blocked', 'secs': 1.0, 'missing': [2]}
  with processes(tmp_path, 3, 2, **options) as found:
    assert end(found[2]) == (1, 'no route\n')
    found[1].send_signal(signal.SIGKILL)
    code, text = end(found[0])
    assert code == 75 and text.startswith('process 1 of 3 (')


def test_machines_may_have_the_same_name(tmp_path):
  with processes(tmp_path, 2, 1, 'renamed') as found:
    found[0].send_signal(signal.SIGKILL)
    assert end(found[1])[0] == 75


def test_processes_that_end_as_they_should_end_alone(tmp_path):
  with processes(tmp_path, 3) as found:
    for i in (1, 0, 2):
      assert found[i].communicate('go on\n') == ('', '')
      assert found[i].returncode == 0
      time.sleep(0.1)


def test_strangers_are_turned_away(tmp_path):
  """A connection without the token takes no place, whatever it sends."""
  with processes(tmp_path, 2) as found:
    assert all(process.poll() is None for process in found)
  server = socket.create_server(('127.0.0.1', 0))
  from advprop_jax import peers

  first = peers._Address('host', 1, '127.0.0.1', server.getsockname()[1], 'secret')
  joined = object.__new__(peers.Peers)
  joined._all, joined._sockets = [first, first], {}
  for content in (b'', b'\x00\x00\x00\x02[]', b'\xff' * 99, b'\x00\x00\x00\x02{}'):
    with socket.create_connection(server.getsockname()) as stranger:
      stranger.sendall(content)
  deep = b'[' * 60_000
  with socket.create_connection(server.getsockname()) as stranger:
    stranger.sendall(len(deep).to_bytes(4, 'big') + deep)
  for token in ('guess', 'gu\xe9ss'):
    with socket.create_connection(server.getsockname()) as stranger:
      peers._write(stranger, {'token': token, 'index': 1})
  with socket.create_connection(server.getsockname()) as friend:
    peers._write(friend, {'token': 'secret', 'index': 1})
    joined._accept(server)
    assert joined._sockets.keys() == {1}
    joined._sockets[1].close()
