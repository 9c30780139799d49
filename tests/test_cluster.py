"""Tests what an environment says of the processes of a run."""

import importlib.util

import pytest

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
    (POD, ('Kubernetes', None, "JAX needs `pip install 'jax[k8s]'`")),
    (without(POD, 'JOB_COMPLETION_INDEX'), None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),  # Without a TPU, a copied environment.
  ],
)
def test_the_environment_says_how_many_processes_there_are(environ, expected):
  found = cluster.find(environ)
  assert found == (None if expected is None else cluster.Cluster(*expected))


@pytest.mark.parametrize(
  'environ, count',
  [
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}, 4),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '3'}, 6),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:2', 'TPU_WORKER_HOSTNAMES': 'a'}, 2),
    ({}, None),  # Google's metadata say it.
  ],
)
def test_a_tpu_says_how_many_hosts_there_are(monkeypatch, environ, count):
  monkeypatch.setattr(cluster, '_has_tpu', lambda: True)
  assert cluster.find(environ) == cluster.Cluster('a TPU pod', count)
  assert cluster.find({**environ, 'JAX_PLATFORMS': 'cpu'}) is None


def test_one_host_with_a_tpu_is_alone(monkeypatch):
  monkeypatch.setattr(cluster, '_has_tpu', lambda: True)
  assert cluster.find({'TPU_WORKER_HOSTNAMES': 'localhost'}) is None
  assert cluster.find({'TPU_SKIP_MDS_QUERY': '1'}) is None


def test_with_its_package_kubernetes_is_asked(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
  monkeypatch.setattr(cluster, '_has_tpu', lambda: False)
  assert cluster.find(POD) == cluster.Cluster('Kubernetes', None)
