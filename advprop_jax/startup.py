"""Sets up a process before JAX and TensorFlow load, since both then read the setup."""

import functools
import os
import pathlib
import platform
import sys
import traceback
import warnings
import zlib

from advprop_jax import preemption

# glibc's malloc then asks the kernel (madvise) for large pages. Source:
# https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
LARGE_PAGES = 'glibc.malloc.hugetlb=1'
# A second start of the same config reads here what the first one compiled.
COMPILATIONS = '~/.cache/advprop_jax/compilations'
# The names of its entries, which end in a SHA-256, and JAX's warning. Source: jax 0.10
# and 0.12, `lru_cache.py`, `cache_key.py` and `compiler.py`.
ENTRIES = '*-' + 64 * '[0-9a-f]' + '-cache'
UNREADABLE = 'Error reading persistent compilation cache entry'
ZLIB = b'\x78'  # The first byte of what it compressed. Source: RFC 1950, section 2.2.


def prepare():
  """Prepares the process; to be called by a program's own file, before it imports more.

  Sets large pages, what signals do, JAX's cache of compilations and TensorFlow's log.
  What the environment says already stays as it is; the platforms in it get the CPU,
  which draws the initial weights.
  """
  restart_with_large_pages(sys._getframe(1))
  preemption.watch()
  compilations = os.path.expanduser(COMPILATIONS)  # As it is, if there is no home.
  if compilations != COMPILATIONS:
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', compilations)
  if folder := os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    remove_broken_when_warned(folder)
  if platforms := os.environ.get('JAX_PLATFORMS'):
    if 'cpu' not in platforms.split(','):
      os.environ['JAX_PLATFORMS'] = f'{platforms},cpu'  # The first is the default.
  # TensorFlow only reads data here: its start-up lines are noise.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def restart_with_large_pages(caller):
  """Starts this program anew, once, with large pages for large arrays.

  Without them the CPU maps the memory of large arrays anew in every step. glibc reads
  the choice when a process starts and has no call for it. A value that the user gave
  stays as it is; other C libraries have no such choice; and a program that another one
  runs (a debugger, a profiler, a notebook) goes on, for a restart would end the other.

  Args:
    caller: the frame of the program's own file.
  """
  if 'GLIBC_TUNABLES' in os.environ or platform.libc_ver()[0] != 'glibc':
    return
  outer = [frame.f_globals['__name__'] for frame, _ in traceback.walk_stack(caller)][1:]
  if set(outer) <= {'runpy'}:  # Nobody, or `python -m`.
    command = [sys.executable, *sys.orig_argv[1:]]  # With the flags of Python itself.
    os.execve(command[0], command, {**os.environ, 'GLIBC_TUNABLES': LARGE_PAGES})


def remove_broken_when_warned(folder: str):
  """Removes the broken entries of JAX's cache when JAX warns of the first.

  JAX writes an entry in place, so that a process killed meanwhile leaves half of it;
  later it compiles anew but never writes over a file, and would warn at every start.
  The warning comes before, so that this run writes the entry. It names the program, not
  the file: hence all are looked at, once.

  Args:
    folder: of the cache; only a local one is looked at.
  """
  show = warnings.showwarning
  remove = functools.cache(remove_broken)

  def show_and_remove(message, *args, **kwargs):
    show(message, *args, **kwargs)
    if str(message).startswith(UNREADABLE):
      remove(folder)

  warnings.showwarning = show_and_remove


def remove_broken(folder: str):
  """Removes entries that end early or cannot be decompressed, if it may."""
  for path in pathlib.Path(folder).glob(ENTRIES):
    try:
      if _is_broken(path):
        path.unlink()
    except OSError:  # A folder that is read only, or another process was faster.
      pass


def _is_broken(path: pathlib.Path) -> bool:
  """Returns whether an entry is empty, or is zlib's and not whole.

  JAX compresses with Zstandard where that is installed: such entries are left alone.
  """
  stream = zlib.decompressobj()
  with path.open('rb') as f:
    start = f.read(1)
    if start not in (b'', ZLIB):
      return False
    try:
      stream.decompress(start)
      while chunk := f.read(2**20):
        stream.decompress(chunk)
    except zlib.error:
      return True
  return not stream.eof
