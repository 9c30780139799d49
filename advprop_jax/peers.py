"""Ends all processes of a run when one of them ends too early: in a line, in seconds.

JAX's own check takes 100 s and then aborts. Here every process keeps a connection to
the first one; when a process dies, its kernel closes it. When a machine is gone, the
others' kernels notice within 10 s that nothing comes back.
"""

import contextlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Exit code of a process that has lost another one, or for another reason is to be
# started again. Source: EX_TEMPFAIL of sysexits.h.
RESTART = 75
_CONNECT_SECS = 20.0  # For all to connect.
_HELLO_SECS = 2.0  # For what a connection begins with.
_MOST_BYTES = 2**16  # Of a message.
# A silent connection is asked after 4 s, and thrice more, every 2 s.
_KEEPALIVE = {'TCP_KEEPIDLE': 4, 'TCP_KEEPINTVL': 2, 'TCP_KEEPCNT': 3}


class _Address(NamedTuple):
  """Where a process is; the first one's is where the others connect."""

  host: str
  pid: int
  ip: str = ''
  port: int = 0
  token: str = ''


class Peers:
  """The connections of this process."""

  def __init__(self, index: int, exchange: Callable[[str], list[str]]):
    """Connects; all processes have to call.

    Args:
      index: of this process.
      exchange: returns a text of every process, in their order; all have to call.

    Raises:
      OSError: the first process cannot be reached; the others go on without this one.
    """
    self._index, self._lock, self._is_over = index, threading.Lock(), False
    server = None
    address = _Address(socket.gethostname(), os.getpid())
    if index == 0:
      server = socket.create_server(('', 0), backlog=4096)
      port, token = server.getsockname()[1], secrets.token_hex(16)
      address = address._replace(ip=_own_ip(), port=port, token=token)
    self._all = [_Address(*json.loads(x)) for x in exchange(json.dumps(address))]
    self._sockets: dict[int, socket.socket] = {}
    if server is not None:
      self._accept(server)
    else:
      self._connect(self._all[0])
    for other, connection in self._sockets.items():
      threading.Thread(
        target=self._listen, args=(other, connection), daemon=True, name='peers'
      ).start()

  def leave(self, error: str | None = None, *, code: int = 1):
    """Tells the others that this process ends, and is not lost.

    Args:
      error: the message that ends it, and is to end the others; None: the run is over.
      code: the exit code of all, if there is a message.
    """
    with self._lock:
      self._is_over = True
    code = 0 if error is None else code
    self._tell(_Message(self._index, code, error or ''))

  @property
  def missing(self) -> list[int]:
    """Returns, on the first process, the others that have not connected."""
    others = range(1, len(self._all)) if self._index == 0 else ()
    return [i for i in others if i not in self._sockets]

  def _accept(self, server: socket.socket):
    """Takes the connections of the other processes that come in time."""
    end = time.monotonic() + _CONNECT_SECS
    with server:
      while len(self._sockets) < len(self._all) - 1:
        server.settimeout(max(0.001, end - time.monotonic()))
        try:
          connection, _ = server.accept()
        except TimeoutError:
          return
        connection.settimeout(_HELLO_SECS)
        # Anyone may call: with brackets in brackets, with a token that is no ASCII.
        with contextlib.suppress(
          OSError, ValueError, KeyError, TypeError, RecursionError
        ):
          hello = _read_object(connection)
          if hmac.compare_digest(str(hello['token']), self._all[0].token):
            self._sockets[int(hello['index'])] = _keep_alive(connection)
            continue
        connection.close()

  def _connect(self, first: _Address):
    # Of machines that were copied, several may have the same name.
    is_here = first.host == socket.gethostname()
    try:
      ip = '127.0.0.1' if is_here else first.ip
      connection = socket.create_connection((ip, first.port), timeout=_CONNECT_SECS)
    except OSError:
      if not is_here:
        raise
      address = first.ip, first.port
      connection = socket.create_connection(address, timeout=_CONNECT_SECS)
    _write(connection, {'token': first.token, 'index': self._index})
    self._sockets[0] = _keep_alive(connection)

  def _listen(self, other: int, connection: socket.socket):
    """Waits for what becomes of a process, or for what the first one knows of it."""
    while True:
      try:
        message = _read(connection)
      except OSError:
        message = None
      if message is None:
        message = _Message(other, RESTART)
      if message.code != 0:
        self._end(message)
      if message.process == other:
        return

  def _end(self, message: '_Message'):
    """Ends this process for what has become of another one; tells the others."""
    with self._lock:
      if self._is_over:
        return
      self._is_over = True
    peer = self._all[message.process]
    name = (
      f'process {message.process} of {len(self._all)} ({peer.host}, pid {peer.pid})'
    )
    self._tell(message)
    if message.text:
      line = f'{name} has ended: {message.text}'
    else:
      line = f'{name} is lost: the same command goes on from the last checkpoint'
    try:
      # Not `sys.stderr`: the main thread may have redirected it for a moment.
      print(line, file=sys.__stderr__, flush=True)
    finally:
      os._exit(message.code)

  def _tell(self, message: '_Message'):
    for connection in self._sockets.values():
      with contextlib.suppress(OSError):
        _write(connection, message._replace(text=message.text[:2000])._asdict())


class _Message(NamedTuple):
  """What has become of a process."""

  process: int
  code: int  # Its exit code, with which the others end, too; 0: they go on.
  text: str = ''  # What has ended it; '': it is lost.


def _own_ip() -> str:
  """Returns the address of this machine towards others; sends nothing."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('10.255.255.255', 1))
      return probe.getsockname()[0]
    except OSError:
      return '127.0.0.1'


def _keep_alive(connection: socket.socket) -> socket.socket:
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE.items():
    if hasattr(socket, name):  # Linux has them all.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return connection


def _write(connection: socket.socket, message: dict[str, Any]):
  content = json.dumps(message).encode()
  connection.sendall(len(content).to_bytes(4, 'big') + content)


def _read(connection: socket.socket) -> '_Message | None':
  """Returns the next message; None at the end, or of what is none."""
  try:
    return _Message(**_read_object(connection))
  except (ValueError, TypeError, RecursionError):
    return None


def _read_object(connection: socket.socket) -> dict[str, Any]:
  """Returns the next JSON object; ValueError at the end, and of what is none."""
  size = int.from_bytes(_read_bytes(connection, 4), 'big')
  if not 0 < size < _MOST_BYTES:
    raise ValueError
  found = json.loads(_read_bytes(connection, size))
  if not isinstance(found, dict):
    raise ValueError
  return found


def _read_bytes(connection: socket.socket, size: int) -> bytes:
  content = b''
  while len(content) < size and (part := connection.recv(size - len(content))):
    content += part
  return content
