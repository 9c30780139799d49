"""Tests the import rule drawn in README.md: lower layers never import upper ones."""

import ast
import pathlib
import subprocess
import sys

import pytest

LAYERS = [  # Lowest first. Modules of the second do not import each other.
  {'errors'},
  {
    'augment_ops',
    'branches',
    'check_config',
    'datasets',
    'decode',
    'losses',
    'models',
    'optim',
    'parallel',
    'pictures',
    'pixels',
    'preprocess',
  },
  {
    'attacks',
    'augment',
    'bad_examples',
    'checkpoint',
    'metrics',
    'records',
    'train_state',
  },
  {'data', 'evaluate', 'train_step'},
  {'experiment'},
  {'train'},
]
CORE = [
  'attacks',
  'branches',
  'losses',
  'models',
  'optim',
  'parallel',
  'pixels',
  'train_state',
  'train_step',
]
TENSORFLOW_USERS = {
  'augment',
  'augment_ops',
  'bad_examples',
  'data',
  'datasets',
  'decode',
  'preprocess',
  'records',
}
MAY_IMPORT = {
  'clu': {'evaluate', 'metrics', 'train'},
  'ml_collections': set(),
  'orbax': {'checkpoint'},
  'sklearn': {'datasets'},
  'tensorflow': TENSORFLOW_USERS,
  'tensorflow_datasets': TENSORFLOW_USERS,
}
ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'advprop_jax'
FILES = sorted(set(PACKAGE.rglob('*.py')) - {PACKAGE / '__init__.py'})


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
  unit = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
  for name in imports(path):
    root, _, rest = name.partition('.')
    if root == 'advprop_jax':
      target = rest.split('.')[0]
      assert level[target] < level[unit] or target == unit, name
    assert unit in MAY_IMPORT.get(root, {unit}), name


def test_pmap_is_said_in_one_file():
  files = [path for path in FILES if 'pmap(' in path.read_text()]
  assert [path.name for path in files] == ['parallel.py']


def test_configs_import_only_ml_collections_and_each_other():
  for path in (ROOT / 'configs').glob('*.py'):
    roots = {name.partition('.')[0] for name in imports(path)}
    assert roots <= {'configs', 'ml_collections'}, path


def test_core_loads_without_tensorflow():
  code = f'from advprop_jax import {", ".join(CORE)}; import sys; '
  code += 'assert "tensorflow" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_page_to_read_first_is_short():
  assert len((PACKAGE / 'train_step.py').read_text().splitlines()) <= 130
