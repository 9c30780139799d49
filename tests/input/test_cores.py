"""Tests the count of cores: those that the process may use, not those there are."""

import os
import subprocess
import sys

import pytest

from advprop_jax.input import cores


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='Linux only')
def test_a_process_on_one_core_has_one():
  code = 'import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n'
  code += 'from advprop_jax.input import cores; print(cores.count())'
  printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert printed.stdout == '1\n'


def test_without_affinities_all_cores_count(monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  assert cores.count() == os.cpu_count()
