"""Tests how a program starts, with a few lines in the place of what is heavy."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MAIN = str(ROOT / 'main.py')
LARGE_PAGES = 'glibc.malloc.hugetlb=1'
# What Python runs first in every process: notes that it was started, and how.
SITECUSTOMIZE = """
import json, os, pathlib, sys
with open(pathlib.Path(__file__).with_name('starts.jsonl'), 'a') as f:
  start = [os.environ.get('GLIBC_TUNABLES'), sys.orig_argv]
  f.write(json.dumps(start) + '\\n')
if os.environ.get('C_LIBRARY'):
  import platform
  platform.libc_ver = lambda *_: (os.environ['C_LIBRARY'], '1.2')
"""
STAND_IN = """
import json, os, sys
print(json.dumps([sys.argv, sys.flags.optimize, dict(os.environ)]))
sys.exit(7)
"""


@pytest.fixture
def start(tmp_path):
  """Returns f(words, env) -> starts, (argv, optimize, environ) of the last one."""
  (tmp_path / 'sitecustomize.py').write_text(SITECUSTOMIZE)
  for name in ('jax', 'tensorflow'):  # Whichever is imported first.
    (tmp_path / f'{name}.py').write_text(STAND_IN)

  def run(*words, cwd=ROOT, **env):
    chosen = ('GLIBC_TUNABLES', 'JAX_COMPILATION_CACHE_DIR')
    ours = {k: x for k, x in os.environ.items() if k not in chosen}
    command = [sys.executable, *map(str, words)]
    env = {**ours, 'PYTHONPATH': f'{tmp_path}:{ROOT}', **env}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    starts = (tmp_path / 'starts.jsonl').read_text().splitlines()
    printed = [x for x in result.stdout.splitlines() if x.startswith('[[')]
    assert len(printed) == 1, result
    return [json.loads(line) for line in starts], json.loads(printed[0])

  return run


needs_glibc = pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='other C libraries have no such choice'
)


@needs_glibc
@pytest.mark.parametrize(
  'words, folder',
  [
    ([MAIN], '.'),
    ([MAIN, '--workdir=a b', '--', '*'], '.'),
    (['main.py', '--help'], '.'),
    (['../main.py'], 'tests'),
    (['-O', '-X', 'utf8', '-W', 'ignore', MAIN, '-m', 'pdb'], '.'),
    (['-O', '-m', 'main', '--help'], '.'),
  ],
)
def test_a_program_starts_anew_once_with_large_pages(words, folder, start):
  starts, (argv, optimize, environ) = start(*words, cwd=ROOT / folder)
  assert [value for value, _ in starts] == [None, LARGE_PAGES]
  assert [command[1:] for _, command in starts] == [words, words]
  assert environ['GLIBC_TUNABLES'] == LARGE_PAGES
  name = 'main' if 'main' in words else next(w for w in words if 'main.py' in w)
  assert argv[1:] == words[words.index(name) + 1 :]
  assert optimize == ('-O' in words)


@pytest.mark.parametrize(
  'given, value', [('tpu', 'tpu,cpu'), ('cuda,cpu', 'cuda,cpu'), ('cpu', 'cpu')]
)
def test_the_platforms_have_a_cpu_for_the_initial_weights(given, value, start):
  _, (_, _, environ) = start(MAIN, JAX_PLATFORMS=given, GLIBC_TUNABLES='')
  assert environ['JAX_PLATFORMS'] == value


@pytest.mark.parametrize('value', ['', 'glibc.malloc.arena_max=1'])
def test_a_given_value_stays(value, start):
  starts, (*_, environ) = start(MAIN, GLIBC_TUNABLES=value)
  assert [value for value, _ in starts] == [value]
  assert environ['GLIBC_TUNABLES'] == value


@pytest.mark.parametrize('library', ['musl', 'none'])
def test_other_c_libraries_are_left_alone(library, start):
  starts, (*_, environ) = start(MAIN, C_LIBRARY=library)
  assert len(starts) == 1 and 'GLIBC_TUNABLES' not in environ


@pytest.mark.parametrize(
  'words',
  [
    ['-m', 'pdb', '-c', 'continue', '-c', 'quit', MAIN],
    ['-m', 'cProfile', MAIN],
    ['-c', f'import runpy; runpy.run_path({MAIN!r}, run_name="__main__")'],
  ],
  ids=['debugger', 'profiler', 'other program'],
)
def test_a_program_that_another_one_runs_goes_on(words, start):
  starts, _ = start(*words)
  assert len(starts) == 1


@needs_glibc
def test_a_child_process_inherits_the_pages_and_does_not_start_anew(tmp_path, start):
  program = tmp_path / 'program.py'
  program.write_text("""
import multiprocessing
from advprop_jax import startup
if __name__ == '__main__':
  startup.prepare()
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    assert pool.map(abs, [-3]) == [3]
  import jax
""")
  starts, _ = start(program)
  assert [value for value, _ in starts[:2]] == [None, LARGE_PAGES]
  children = starts[2:]  # One of the pool, and what else multiprocessing starts.
  assert any('spawn_main' in ' '.join(command) for _, command in children)
  assert all(value == LARGE_PAGES for value, _ in children)
  assert not any(str(program) in command for _, command in children)


@needs_glibc
def test_the_kernel_is_asked_for_large_pages(tmp_path, start):
  mode = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
  if not mode.exists() or '[madvise]' not in mode.read_text():
    pytest.skip('the kernel gives large pages to all programs, or to none')
  program = tmp_path / 'program.py'
  program.write_text("""
from advprop_jax import startup
if __name__ == '__main__':
  startup.prepare()
  array = bytearray(2**26)
  advised = [x for x in open('/proc/self/smaps') if 'VmFlags' in x and ' hg' in x]
  import os
  os.environ['ADVISED'] = str(len(advised))
  import jax
""")
  _, (*_, environ) = start(program)
  assert int(environ['ADVISED']) > 0
  _, (*_, environ) = start(program, GLIBC_TUNABLES='')
  assert int(environ['ADVISED']) == 0


def test_compilations_are_kept_in_the_home_unless_a_folder_is_given(start):
  name = 'JAX_COMPILATION_CACHE_DIR'
  _, (*_, environ) = start(MAIN, HOME='/home/me')
  assert environ[name] == '/home/me/.cache/advprop_jax/compilations'
  _, (*_, environ) = start(MAIN, **{name: 'elsewhere'})
  assert environ[name] == 'elsewhere'
