"""Tests the layers drawn in README.md: imports point down, libraries stay inside."""

import ast
import pathlib
import subprocess
import sys

import pytest

# Lowest first; a folder is one name. Those of one row do not import each other.
LAYERS = [
  {'errors', 'registry', 'pixels', 'losses', 'branches', 'optim', 'preemption'}
  | {'layer_rates', 'cluster', 'peers', 'nonfinite', 'json_files'},
  {'input', 'models', 'attacks', 'schema', 'parallel', 'hosts', 'startup'},
  {'train_state', 'workdir', 'evaluation', 'streams'},
  {'update'},
  {'train_step', 'fast_step', 'bad_steps'},
  {'images', 'stream_config', 'model_config', 'robust_config'},
  {'methods', 'step_cost', 'weights'},
  {'evaluations', 'phases', 'initial_weights'},
  {'experiment', 'run_start', 'suite_run', 'robust_run'},
  {'passes', 'train_log', 'run_setup'},
  {'train', 'dry_run', 'replay', 'evaluate', 'command_line', 'cli'},
]
# `errors` alone is for everybody, whatever the layer.
CORE = ['attacks.gradient', 'branches', 'losses', 'models', 'optim', 'parallel']
CORE += ['pixels', 'train_state', 'train_step']
# Library -> the folders and files that may import it.
BORDERS = {
  'clu': {'workdir'},
  'etils': {'workdir'},
  'jinja2': {'evaluation/report.py'},
  'matplotlib': {'evaluation/charts.py'},
  'ml_collections': set(),
  'orbax': {'workdir'},
  'sklearn': {'input'},
  'tensorflow': {'input', 'weights/readers.py', 'weights/formats.py'},
  'tensorflow_datasets': {'input'},
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


def unit(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_and_stay_within_borders(path):
  level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
  here = unit(path)
  for name in imports(path):
    root, _, rest = name.partition('.')
    if root == 'advprop_jax':
      target = rest.split('.')[0]
      assert level[target] < level[here] or target in (here, 'errors'), name
    allowed = BORDERS.get(root, {here})
    assert {here, str(path.relative_to(PACKAGE))} & allowed, name


def test_the_cpu_formulations_import_nothing_of_the_project():
  for path in (PACKAGE / 'models' / 'cpu').glob('*.py'):
    ours = [name for name in imports(path) if name.startswith('advprop_jax')]
    assert all(name.startswith('advprop_jax.models.cpu') for name in ours), path


@pytest.mark.parametrize(
  'word, files',
  [
    ('pmap(', {'parallel.py'}),
    ('platform_dependent(', {'models/conv.py', 'models/norm.py'}),
  ],
)
def test_a_word_is_said_in_its_files_only(word, files):
  found = {str(p.relative_to(PACKAGE)) for p in FILES if word in p.read_text()}
  assert found == files


def test_configs_import_only_ml_collections_and_each_other():
  for path in (ROOT / 'configs').glob('*.py'):
    roots = {name.partition('.')[0] for name in imports(path)}
    assert roots <= {'configs', 'ml_collections', 'difflib', 'json'}, path


def test_autoattack_loads_neither_tensorflow_nor_orbax():
  code = 'from advprop_jax.attacks import autoattack; import sys; '
  code += 'assert not {"tensorflow", "orbax", "flax", "clu"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


# What makes a program of data. `pickletools` only reads the instructions of pickles.
EXECUTING = {'cloudpickle', 'dill', 'joblib', 'jsonpickle', 'marshal', 'pickle'}
EXECUTING |= {'shelve', 'cPickle', '_pickle', 'code', 'runpy', 'torch'}


def executions(tree):
  """Yields what of a module could execute data, or might."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [x.name for x in node.names]
      names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
      yield from {x.partition('.')[0] for x in names} & EXECUTING
      yield from {x for x in names if x.endswith('import_module')}
    elif isinstance(node, ast.Call):
      function = ast.unparse(node.func)
      if function in ('eval', 'exec', 'compile', '__import__'):
        yield function
      if function.endswith('import_module'):
        yield function
      for word in node.keywords:
        if word.arg == 'allow_pickle' and ast.unparse(word.value) != 'False':
          yield f'{function}(allow_pickle={ast.unparse(word.value)})'
        if word.arg == 'shell' and ast.unparse(word.value) != 'False':
          yield f'{function}(shell=...)'
      if function == 'np.load' and not any(
        word.arg == 'allow_pickle' for word in node.keywords
      ):
        yield 'np.load without allow_pickle=False'


@pytest.mark.parametrize(
  'code',
  [
    'import pickle',
    'from dill import loads',
    'import importlib; importlib.import_module(name)',
    'eval(text)',
    "__import__('os')",
    'np.load(file)',
    'np.load(file, allow_pickle=True)',
    'subprocess.run(command, shell=True)',
  ],
)
def test_what_executes_data_is_found(code):
  assert [*executions(ast.parse(code))]


def test_no_data_are_executed():
  for path in (*FILES, ROOT / 'main.py', ROOT / 'configs/saved.py'):
    found = [*executions(ast.parse(path.read_text()))]
    assert not found, f'{path}: {found}'


def test_core_loads_without_tensorflow():
  code = ''.join(f'import advprop_jax.{name}; ' for name in CORE)
  code += 'import sys; assert "tensorflow" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_page_to_read_first_is_short():
  assert len((PACKAGE / 'train_step.py').read_text().splitlines()) <= 120
