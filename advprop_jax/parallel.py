"""How devices share the work of a step: the only module to say pmap.

A step is written for one device: it sees its own part of the batch and averages or sums
over AXIS itself. `data_parallel` runs it on all devices. On JAX >= 0.8 `jax.pmap` is
`jit` of `shard_map`; `in_axes=None` and `out_axes=None` keep the state one replicated
array per leaf, without a leading device axis.
"""

import collections

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advprop_jax import errors

AXIS = 'batch'


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
