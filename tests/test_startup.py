"""Tests that broken entries of JAX's cache are removed, and nothing else is."""

import os
import pathlib
import subprocess
import sys
import zlib

import pytest

from advprop_jax import startup

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
from advprop_jax import startup
startup.prepare()
import jax
jax.monitoring.register_event_listener(lambda event, **_: print(event))
print(jax.jit(lambda x: 3 * x + 1)(2.0))
"""
NAME = f'jit_f-{64 * "a"}-cache'


def test_an_entry_cut_off_is_written_anew_and_then_read(tmp_path):
  program, folder = tmp_path / 'program.py', tmp_path / 'compilations'
  program.write_text(PROGRAM)
  env = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }

  def run():
    """Returns numbers of entries that were read and written, and standard error."""
    command = [sys.executable, str(program)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert '\n7.0\n' in result.stdout, result
    counts = [result.stdout.count(f'cache_{event}\n') for event in ('hits', 'misses')]
    return *counts, result.stderr

  hits, num_entries, stderr = run()
  assert (hits, stderr) == (0, '') and num_entries > 0
  entries = {path: path.read_bytes() for path in folder.iterdir()}
  cut_off, *others = entries
  cut_off.write_bytes(entries[cut_off][:-5])
  times = {path: path.stat().st_mtime_ns for path in others}
  hits, misses, stderr = run()
  assert (hits, misses) == (num_entries - 1, 1)
  assert stderr.count('Error reading persistent compilation cache entry') == 1
  assert run() == (num_entries, 0, '')
  assert {path: path.stat().st_mtime_ns for path in others} == times
  zlib.decompress(cut_off.read_bytes())


WHOLE = zlib.compress(bytes(range(256)) * 20_000)


@pytest.mark.parametrize(
  'content',
  [b'', WHOLE[:1], WHOLE[:2], WHOLE[: len(WHOLE) // 2], WHOLE[:-1], WHOLE[:9] * 9],
  ids=['empty', 'a byte', 'header', 'half', 'last byte', 'other bytes'],
)
def test_what_zlib_cannot_read_is_removed(tmp_path, content):
  (tmp_path / NAME).write_bytes(content)
  with pytest.raises(zlib.error):
    zlib.decompress(content)
  startup.remove_broken(str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_whole_entries_and_other_files_stay(tmp_path):
  files = {
    NAME: WHOLE,
    NAME.replace('a', 'b'): b'\x28\xb5\x2f\xfd half of an entry of Zstandard',
    NAME.replace('-cache', '-atime'): b'',
    'notes-cache': b'',
    'notes.txt': WHOLE[:9],
  }
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  startup.remove_broken(str(tmp_path))
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_folder_that_is_read_only_or_elsewhere_is_left(tmp_path, monkeypatch):
  (tmp_path / NAME).write_bytes(WHOLE[:9])

  def unlink(self):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(pathlib.Path, 'unlink', unlink)
  startup.remove_broken(str(tmp_path))
  startup.remove_broken('gs://bucket/compilations')
