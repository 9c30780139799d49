"""Puts things into a workdir that no run has written, to test what reads it."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from etils import epath

from advprop_jax.workdir import checksums

DEEP = 100_000  # Brackets inside each other: more than Python's parsers follow.
HUGE = 10**400  # An integer that is no float.
NEW = 'checkpoints/2'  # The newest checkpoint of the prepared workdir; the other is 1.
EXAMPLES = 'eval/val.examples.44136fa3.npz'  # Of the identity {}.


class Bomb:
  """A pickle of it leaves a mark when it is loaded."""

  def __init__(self, mark):
    self._mark = str(mark)

  def __reduce__(self):
    return os.mkdir, (self._mark,)


def mark(workdir):
  """Returns the path that appears if a pickle in a workdir was loaded."""
  return workdir.parent / 'a_pickle_was_loaded'


def pickled(workdir) -> bytes:
  return pickle.dumps({'x': Bomb(mark(workdir))})


def clear(path):
  """Removes what is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  path.unlink(missing_ok=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def put(name, content=b''):
  """Returns what replaces a file by bytes, text, or a JSON value."""
  if not isinstance(content, bytes | str):
    content = json.dumps(content)
  if isinstance(content, str):
    content = content.encode()
  return lambda workdir: clear(workdir / name).write_bytes(content)


def link(name, target):
  return lambda workdir: clear(workdir / name).symlink_to(target)


def directory(name):
  return lambda workdir: clear(workdir / name).mkdir()


def pipe(name):
  return lambda workdir: os.mkfifo(clear(workdir / name))


def change(name, *keys_and_value):
  """Returns what sets a value of a JSON file: change('x', 'data', 'name', 3)."""
  *keys, last, value = keys_and_value

  def plant(workdir):
    content = json.loads((workdir / name).read_text())
    section = content
    for key in keys:
      section = section[key]
    section[last] = value
    put(name, content)(workdir)

  return plant


def add(name, line):
  """Returns what adds a line to a file."""
  line = line if isinstance(line, bytes) else json.dumps(line).encode()

  def plant(workdir):
    with (workdir / name).open('ab') as file:
      file.write(line + b'\n')

  return plant


def both(*plants):
  def plant_all(workdir):
    for plant in plants:
      plant(workdir)

  return plant_all


def sealed(plant, step=NEW):
  """Returns what also writes the checksums anew: only later checks are in the way."""

  def plant_and_seal(workdir):
    plant(workdir)
    checksums.seal(epath.Path(workdir / step))

  return plant_and_seal


def without_sums(plant, step=NEW):
  """Returns what also removes the checksums, as of a checkpoint of an older version."""

  def plant_and_unseal(workdir):
    plant(workdir)
    clear(workdir / step / 'SHA256SUMS')

  return plant_and_unseal


def sums(lines: bytes):
  """Returns what adds lines to the checksums, whose own sum is right."""

  def plant(workdir):
    name = f'{NEW}/SHA256SUMS'
    content = (workdir / name).read_bytes().rpartition(b'# ')[0] + lines + b'\n'
    last = f'# {hashlib.sha256(content).hexdigest()} of the lines above\n'
    put(name, content + last.encode())(workdir)

  return plant


def archive(**members: bytes):
  """Returns what writes EXAMPLES, an .npz with these files in it."""

  def plant(workdir):
    with zipfile.ZipFile(clear(workdir / EXAMPLES), 'w', zipfile.ZIP_DEFLATED) as file:
      for name, content in members.items():
        file.writestr(f'{name}.npy', content)

  return plant


def array(values) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, np.asarray(values))
  return buffer.getvalue()


def array_of(shape, data=b'') -> bytes:
  """Returns an array whose header promises a shape."""
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  )
  return header.getvalue() + data


def objects(workdir):
  """Writes EXAMPLES with an array of pickled objects."""
  content = io.BytesIO()
  values = np.array([Bomb(mark(workdir))], dtype=object)
  np.save(content, values, allow_pickle=True)
  archive(position=content.getvalue(), identity=array('{}'), text=array('{}'))(workdir)


def png_of(width, height) -> bytes:
  """Returns the beginning of a PNG that says it is that large."""
  header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  crc = struct.pack('>I', zlib.crc32(header))
  return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header + crc


# What may lie in the place of any file -> what puts it there.
THINGS: dict[str, Callable] = {
  'a directory': directory,
  'a pipe': pipe,
  'a link to itself': lambda name: link(name, name.rpartition('/')[2]),
  'a link to nothing': lambda name: link(name, 'nothing'),
  'a link to a device': lambda name: link(name, '/dev/zero'),
  'a file': put,  # Empty.
  'no text': lambda name: put(name, b'{"\xff\xfe": "\x80"}'),
  'deep': lambda name: put(name, '[' * DEEP + ']' * DEEP),
  'half deep': lambda name: put(name, '{"data":' * 900 + '1' + '}' * 900),
  'a list': lambda name: put(name, [1, {'data': 2}]),
  'a text': lambda name: put(name, json.dumps('text')),
  'not a number': lambda name: put(name, 'NaN'),
  'many digits': lambda name: put(name, '{"seed": ' + '9' * 5000 + '}'),
  'a pickle': lambda name: lambda workdir: put(name, pickled(workdir))(workdir),
}
