"""How devices share the work of a step: the only module to say pmap.

A step is written for one device: it sees its own part of the batch and averages or sums
over AXIS itself. `data_parallel` runs it on all devices. On JAX >= 0.8 `jax.pmap` is
`jit` of `shard_map`; `in_axes=None` and `out_axes=None` keep the state one replicated
array per leaf, without a leading device axis.
"""

import collections
import itertools
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advprop_jax import errors, preemption

AXIS = 'batch'
_calls = itertools.count()  # Of `reached_preemption`.


def data_parallel(step_fn, *, split, split_outputs=False, donate_state=False):
  """Maps a per-device step over all devices.

  Args:
    step_fn: function of positional pytrees, run on every device.
    split: tuple of bool, for every argument: split over the devices along its leading
      axis (see `shard`), or the same on all of them.
    split_outputs: bool or tuple of bool, for the outputs. True: they come back stacked
      along a leading device axis. False: as single arrays, because the step has reduced
      them over AXIS and they are equal on every device. That is not checked: a
      forgotten reduction returns one device's value.
    donate_state: give the memory of the first argument to the outputs; the caller may
      not use that argument again.

  Returns:
    The compiled step, a function of the same arguments; `lower(*args)` as `jax.jit`'s.
  """
  mapped = jax.pmap(
    step_fn,
    axis_name=AXIS,
    in_axes=_axes(split),
    out_axes=_axes(split_outputs),
    donate_argnums=(0,) if donate_state else (),
  )

  def run(*args):
    # pmap gives axes to the wrong leaves, silently, if an argument without leaves makes
    # the number of leaves equal to that of arguments (`_get_in_axes_flat`, JAX 0.10).
    if not all(jax.tree.leaves(arg) for arg in args):
      raise ValueError('an argument of a data-parallel step has no arrays in it')
    return mapped(*args)

  # To compile ahead of time, and to ask what it costs. mypy knows no attributes of
  # functions.
  run.lower = mapped.lower  # type: ignore[attr-defined]
  return run


def _axes(split):
  if isinstance(split, tuple):
    return tuple(_axes(part) for part in split)
  return 0 if split else None


def shard(batch):
  """Reshapes every array [B, ...] of a host's batch to [devices, B / devices, ...].

  Raises:
    UserError: the batch is not divisible by the number of devices of this host.
  """
  num_devices = jax.local_device_count()

  def split(x):
    if x.shape[0] % num_devices:
      raise errors.UserError(
        f'a batch of {x.shape[0]} images per host is not divisible by its '
        f'{num_devices} devices; allowed: multiples of {num_devices}'
      )
    return x.reshape((num_devices, -1) + x.shape[1:])

  return jax.tree.map(split, batch)


def prefetch(batches, *, size: int = 2):
  """Yields a host's batches, each split over its devices, some ahead of their use.

  The transfers run in the background: while a step is computed, the next batches are
  on their way.

  Args:
    batches: iterable of pytrees of numpy arrays, see `shard`.
    size: batches on the devices that have not been asked for.
  """
  queue: collections.deque = collections.deque()
  for batch in batches:
    queue.append(put(batch))
    if len(queue) > size:
      yield queue.popleft()
  yield from queue


def put(batch):
  """Returns a host's batch on its devices, split over them; see `shard`."""
  sharding = NamedSharding(Mesh(jax.local_devices(), (AXIS,)), PartitionSpec(AXIS))
  return jax.device_put(shard(batch), sharding)


def join(x) -> np.ndarray:
  """Returns an output of a step that is split over the devices, as one of the host."""
  x = np.asarray(x)
  return x.reshape((-1,) + x.shape[2:])


def check_batch_size(name: str, batch_size: int, *, num_parts: int = 1):
  """Raises UserError unless a global batch can be split over the devices of all hosts.

  Args:
    name: of the value, for the message.
    batch_size: images of a step.
    num_parts: in which every device computes its own part of them.
  """
  unit = jax.device_count() * num_parts
  if batch_size < 1 or batch_size % unit:
    parts = f' in {num_parts} parts each' if num_parts > 1 else ''
    raise errors.UserError(
      f'{name} is {batch_size}, to be split over {jax.device_count()} devices{parts}; '
      f'allowed: multiples of {unit}, from {unit} on'
    )


def on_host():
  """Returns a context in which arrays are made and computed on the host's CPU."""
  return jax.default_device(jax.local_devices(backend='cpu')[0])


def replicate(tree):
  """Returns `tree` with every array on every device of this host.

  As `data_parallel` returns it: starting from that very sharding is what makes the
  second step reuse the first's compilation.
  """
  return jax.device_put(tree, _replicated(jax.local_devices()))


def replicated_sharding() -> NamedSharding:
  """Returns the sharding of an array that is whole on every device of all hosts."""
  return _replicated(jax.devices())


def to_saveable(tree):
  """Returns a replicated tree in the form that Orbax saves once.

  One host: the copy of its first device, since of replicated arrays Orbax compiles a
  slicing program per leaf (18 s for B0 on four devices of a CPU). Several hosts: global
  arrays, which Orbax requires.
  """
  if jax.process_count() == 1:
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
  return multihost_utils.host_local_array_to_global_array(
    tree, Mesh(jax.devices(), (AXIS,)), PartitionSpec()
  )


def to_host_local(tree):
  """Returns arrays of all hosts as a replicated tree of this one."""
  return multihost_utils.global_array_to_host_local_array(
    tree, Mesh(jax.devices(), (AXIS,)), PartitionSpec()
  )


def _replicated(devices) -> NamedSharding:
  return NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec())


def sum_over_hosts(x: int) -> int:
  """Returns the sum of a number that every host has; all of them have to call."""
  return int(multihost_utils.process_allgather(np.asarray(x)).sum())


def sum_arrays_over_hosts(x: np.ndarray) -> np.ndarray:
  """Returns the sum of an array that every host has; all of them have to call."""
  return multihost_utils.process_allgather(x, tiled=False).reshape(-1, *x.shape).sum(0)


def max_over_hosts(x: int) -> int:
  """Returns the largest of a number that every host has; all of them have to call."""
  return int(multihost_utils.process_allgather(np.asarray(x)).max())


def texts_of_hosts(text: str) -> list[str]:
  """Returns a text of every host, in their order; all of them have to call."""
  data = np.frombuffer(text.encode(), np.uint8)
  size = max_over_hosts(len(data)) + 1  # Of an empty array, nothing is gathered.
  padded = np.zeros(size, np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded).reshape(-1, size)
  return [row.tobytes().rstrip(b'\0').decode() for row in rows]


def wait_for_hosts(name: str):
  """Waits until all hosts are here; `name` is that of the place."""
  multihost_utils.sync_global_devices(name)


def mean(tree):
  """Returns the means of all arrays over the devices; inside of a step."""
  return jax.lax.pmean(tree, AXIS)


def device_rng(rng: jax.Array, step) -> jax.Array:
  """Returns a key that differs between devices and between steps."""
  step_rng = jax.random.fold_in(rng, step)
  return jax.random.fold_in(step_rng, jax.lax.axis_index(AXIS))


def shared_rng(rng: jax.Array, step) -> jax.Array:
  """Returns a key that is the same on all devices, and none of `device_rng`'s."""
  return jax.random.fold_in(jax.random.fold_in(rng, step), jax.device_count())


def shuffle(rng: jax.Array, tree):
  """Returns a device's part of what all devices have, shuffled; inside of a step.

  Every device holds the arrays of all of them for a moment.

  Args:
    rng: the same key on all devices, see `shared_rng`.
    tree: arrays [B, ...], whose examples stay together.
  """
  gathered = jax.lax.all_gather(tree, AXIS, tiled=True)
  size = len(jax.tree.leaves(tree)[0])
  order = jax.random.permutation(rng, len(jax.tree.leaves(gathered)[0]))
  start = jax.lax.axis_index(AXIS) * size
  own = jax.lax.dynamic_slice_in_dim(order, start, size)
  return jax.tree.map(lambda x: x[own], gathered)


def statistics_scope(scope: str) -> dict:
  """Returns which devices share batch-norm statistics, as arguments of the model.

  Args:
    scope: a key of STATISTICS_SCOPES.

  Raises:
    UserError: an unknown scope.
  """
  errors.check_choice('model.bn_scope', scope, STATISTICS_SCOPES)
  groups = STATISTICS_SCOPES[scope](jax.device_count())
  return {
    'bn_axis_name': None if groups is None else AXIS,
    'bn_axis_index_groups': groups or None,
  }


def device_groups(num_devices: int) -> tuple[tuple[int, ...], ...] | None:
  """Returns the official TPU's groups of device indices; None: every device alone.

  That is its own batch up to 8 cores, beyond that groups of max(8, cores / 8)
  neighbours. Source: `BatchNormalization` in `utils.py` of the official code.
  """
  if num_devices <= 8:
    return None
  size = max(8, num_devices // 8)
  if num_devices % size:
    # `pmean` divides by the size of the first group, silently.
    raise errors.UserError(
      f"model.bn_scope is 'tpu_group', but {num_devices} devices make no even groups "
      f"of {size}; allowed: 'device', 'all', or a multiple of {size} devices"
    )
  return tuple(
    tuple(range(first, first + size)) for first in range(0, num_devices, size)
  )


# Name of `config.model.bn_scope` -> function of the number of devices that returns the
# groups of device indices which share batch statistics; None: every device alone; an
# empty tuple: all devices together.
STATISTICS_SCOPES = {
  'device': lambda num_devices: None,
  'tpu_group': device_groups,
  'all': lambda num_devices: (),
}


def join_hosts():
  """Makes this process one of several hosts, as their environment describes it.

  Raises:
    UserError: there is no such environment, or another host does not answer.
  """
  try:
    jax.distributed.initialize()
    preemption.relay_to_jax()
  except (ValueError, RuntimeError) as e:
    reason = str(e).splitlines()[0].rstrip('.')
    raise errors.UserError(
      f'--multi_host cannot join other hosts ({reason}); allowed: on a TPU pod, under '
      'Slurm or Open MPI'
    ) from e


def reached_preemption() -> bool:
  """Returns whether all hosts are to save and stop here, since one got a signal.

  All hosts have to call, equally often: JAX makes out the next call that none of them
  has made yet.
  """
  if not jax.distributed.is_initialized():
    return preemption.received() is not None
  return multihost_utils.reached_preemption_sync_point(next(_calls))


def stop_if_preempted():
  """Raises Preempted where `reached_preemption` holds."""
  if reached_preemption():
    raise preemption.Preempted(f'{preemption.cause()}: all that was done is saved')


def exit_with(message: str):
  """Ends the process with status 1 and the message; no host waits for it."""
  if jax.process_count() > 1:
    # An ordinary exit waits for the other hosts, which wait for this one's batches.
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
  sys.exit(message)
