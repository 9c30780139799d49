"""Tests what an environment says of the processes of a run."""

import importlib.util

import pytest
from jax._src import hardware_utils

from advprop_jax import cluster

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_NTASKS': '8',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '3',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '4',
  'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:2',
}
POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}


def without(environ, *keys):
  return {key: x for key, x in environ.items() if key not in keys}


@pytest.mark.parametrize(
  'environ, expected',
  [
    ({}, None),
    (SLURM, ('Slurm', 8, None)),
    ({**SLURM, 'SLURM_NTASKS': '1'}, None),
    (without(SLURM, 'SLURM_STEP_NODELIST'), ('Slurm', 8, 'srun has not started it')),
    (without(SLURM, 'SLURM_JOB_ID'), None),
    (OPEN_MPI, ('Open MPI', 4, None)),
    ({**OPEN_MPI, 'OMPI_COMM_WORLD_SIZE': '1'}, None),
    (
      without(OPEN_MPI, 'OMPI_MCA_orte_hnp_uri'),
      ('Open MPI', 4, 'JAX knows only mpirun of Open MPI 4'),
    ),
    # A shell of `salloc`, and `mpirun` in a job of Slurm.
    (
      {**SLURM, 'SLURM_STEP_NUM_TASKS': '1'},
      ('Slurm', 8, 'srun has not started it'),
    ),
    ({**SLURM, 'SLURM_STEP_NUM_TASKS': '8'}, ('Slurm', 8, None)),
    ({**without(SLURM, 'SLURM_PROCID'), **OPEN_MPI}, ('Open MPI', 4, None)),
    ({**SLURM, **OPEN_MPI}, ('Open MPI', 4, None)),
    ({**SLURM, 'SLURM_NTASKS': '1', **OPEN_MPI}, ('Open MPI', 4, None)),
    (POD, ('Kubernetes', None, "JAX needs `pip install 'jax[k8s]'`")),
    (without(POD, 'JOB_COMPLETION_INDEX'), None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),  # Without a TPU, a copied environment.
  ],
)
def test_the_environment_says_how_many_processes_there_are(environ, expected):
  found = cluster.find(environ)
  assert found == (None if expected is None else cluster.Cluster(*expected))


@pytest.fixture
def tpu(monkeypatch):
  """Puts a TPU into the machine, and its library."""
  monkeypatch.setattr(cluster, '_has_tpu', lambda: True)
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: name == 'libtpu' or find_spec(name)
  )


@pytest.mark.parametrize(
  'environ, count',
  [
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}, 4),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '3'}, 6),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:2', 'TPU_WORKER_HOSTNAMES': 'a'}, 2),
    ({}, None),  # Google's metadata say it.
  ],
)
def test_a_tpu_says_how_many_hosts_there_are(tpu, environ, count):
  assert cluster.find(environ) == cluster.Cluster('a TPU pod', count)
  assert cluster.find({**environ, 'JAX_PLATFORMS': 'cpu'}) is None


def test_a_tpu_in_a_job_of_slurm_whose_srun_has_not_started_it(tpu):
  environ = {**without(SLURM, 'SLURM_PROCID'), 'TPU_WORKER_HOSTNAMES': 'a,b'}
  assert cluster.find(environ) == cluster.Cluster('a TPU pod', 2)


def test_one_host_with_a_tpu_is_alone(tpu):
  assert cluster.find({'TPU_WORKER_HOSTNAMES': 'localhost'}) is None
  assert cluster.find({'TPU_WORKER_HOSTNAMES': 'localhost', **POD}) is None
  assert cluster.find({'TPU_SKIP_MDS_QUERY': '1'}) is None


def test_a_tpu_without_its_library_is_told(monkeypatch):
  monkeypatch.setattr(cluster, '_has_tpu', lambda: True)
  problem = "JAX needs `pip install 'jax[tpu]'`"
  assert cluster.find({}) == cluster.Cluster('a TPU pod', None, problem)
  assert cluster.find({'JAX_PLATFORMS': 'cpu'}) is None


@pytest.mark.parametrize('devices', [[], ['0x0042'], ['0x0042', '0x0063']])
def test_tpus_are_found_as_by_jax(tmp_path, monkeypatch, devices):
  assert set(hardware_utils._TPU_PCI_DEVICE_IDS) <= cluster.TPUS
  for i, device in enumerate(devices):
    (tmp_path / str(i)).mkdir()
    (tmp_path / str(i) / 'vendor').write_text('0x1ae0\n')
    (tmp_path / str(i) / 'device').write_text(f'{device}\n')
  monkeypatch.setattr(cluster, 'PCI', tmp_path)
  monkeypatch.setattr(
    hardware_utils.glob, 'glob', lambda _: map(str, tmp_path.glob('*/vendor'))
  )
  count, _ = hardware_utils.num_available_tpu_chips_and_device_id()
  assert cluster._has_tpu() == (count > 0)


def test_with_its_package_kubernetes_is_asked(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
  monkeypatch.setattr(cluster, '_has_tpu', lambda: False)
  assert cluster.find(POD) == cluster.Cluster('Kubernetes', None)
