"""Finds out whether this process is one of several that make one run together.

What is found here, `jax.distributed.initialize` finds, too, and joins.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

# PCI's numbers of vendor and devices. Source: JAX's `hardware_utils.py`.
PCI = pathlib.Path('/sys/bus/pci/devices')
GOOGLE = '0x1ae0'
TPUS = {
  *('0x0027', '0x0056', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076'),
  *('0x007c', '0x0083'),
}


class Cluster(NamedTuple):
  """What the environment says."""

  name: str
  num_processes: int | None  # None: JAX has to ask for it.
  problem: str | None = None  # What keeps the process from joining the others.


def find(environ: Mapping[str, str]) -> Cluster | None:
  """Returns the cluster that a process was started in; None: it is alone.

  Args:
    environ: of the process.
  """
  detected = [(name, detect(environ)) for name, detect in CLUSTERS.items()]
  found = [x._replace(name=name) for name, x in detected if x is not None]
  # Under Slurm, `mpirun` may have started the processes, and not `srun`.
  found.sort(key=lambda x: x.problem is not None)
  return found[0] if found and found[0].num_processes != 1 else None


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
  """Source: the output environment variables of `srun`, in its manual."""
  count = _number(environ.get('SLURM_NTASKS'))
  if count is None or 'SLURM_JOB_ID' not in environ:
    return None
  # In a shell that `salloc` opens they are there, too, and the step is of one task.
  is_of_step = environ.get('SLURM_STEP_NUM_TASKS', str(count)) == str(count)
  names = {'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'}
  if names <= environ.keys() and is_of_step:
    return Cluster('', count)
  return Cluster('', count, 'srun has not started it')


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
  """Source: the environment variables of `mpirun`, and JAX's `OmpiCluster`."""
  count = _number(environ.get('OMPI_COMM_WORLD_SIZE'))
  if count is None:
    return None
  if 'OMPI_MCA_orte_hnp_uri' in environ:
    return Cluster('', count)
  return Cluster('', count, 'JAX knows only mpirun of Open MPI 4')


def _tpu(environ: Mapping[str, str]) -> Cluster | None:
  """Source: JAX's `GkeTpuCluster` and `GceTpuCluster`, which asks Google's metadata."""
  if not _has_tpu() or environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu':
    return None
  if importlib.util.find_spec('libtpu') is None:
    return Cluster('', None, "JAX needs `pip install 'jax[tpu]'`")
  for key in ('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES'):
    if key in environ:
      slices = _number(environ.get('MEGASCALE_NUM_SLICES')) or 1
      return Cluster('', len(environ[key].split(',')) * slices)
  if 'TPU_SKIP_MDS_QUERY' in environ:
    return None
  return Cluster('', None)


def _kubernetes(environ: Mapping[str, str]) -> Cluster | None:
  """Source: JAX's `K8sCluster`; the index is that of an Indexed Job."""
  if 'KUBERNETES_SERVICE_HOST' not in environ:
    return None
  if 'JOB_COMPLETION_INDEX' not in environ:
    return None
  if importlib.util.find_spec('kubernetes') is None:
    return Cluster('', None, "JAX needs `pip install 'jax[k8s]'`")
  return Cluster('', None)


def _has_tpu() -> bool:
  """Returns whether this machine has a TPU."""
  for vendor in PCI.glob('*/vendor'):
    if vendor.read_text().strip() == GOOGLE:
      if vendor.with_name('device').read_text().strip() in TPUS:
        return True
  return False


def _number(text: str | None) -> int | None:
  return int(text) if text and text.isdecimal() else None


# Name -> function of the environment that returns what it says; None: another cluster,
# or none. In the order in which JAX takes the first.
CLUSTERS: dict[str, Callable[[Mapping[str, str]], Cluster | None]] = {
  'Open MPI': _open_mpi,
  'Slurm': _slurm,
  'a TPU pod': _tpu,
  'Kubernetes': _kubernetes,
}
