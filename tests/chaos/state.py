"""What a run has come to, so that two of them can be compared bit for bit.

The arrays are read as Orbax alone reads them, without a template and without our code.
"""

import hashlib
import json
import pathlib
import re

SPENT = re.compile(r'secs/|device_hours|lost_|train/images_per_sec|train/mfu')


def steps(workdir) -> list[int]:
  """Returns the steps of the checkpoints of a workdir, oldest first."""
  names = [x.name for x in pathlib.Path(workdir, 'checkpoints').glob('*')]
  return sorted(int(name) for name in names if name.isdigit())


def results(workdir) -> list:
  """Returns what results.jsonl holds: steps, and all numbers but those of time."""
  found = []
  for line in pathlib.Path(workdir, 'results.jsonl').read_text().splitlines():
    values = {k: x for k, x in json.loads(line).items() if not SPENT.match(k)}
    if len(values) > 1:  # A step alone: of a line of times.
      found.append(values)
  return found


def damaged_files(path: pathlib.Path) -> list[str]:
  """Returns the files of a checkpoint that its SHA256SUMS does not tell as they are."""
  found = []
  for line in (path / 'SHA256SUMS').read_text().splitlines():
    digest, _, name = line.partition('  ')
    if digest.startswith('#'):
      continue
    file = path / name
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
      found.append(name)
  return found


def digests(tree) -> dict[str, str]:
  """Returns a digest for the name of every array: of its type, shape and bytes."""
  import jax
  import numpy as np

  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    x = np.asarray(x)
    content = f'{x.dtype} {x.shape} '.encode() + x.tobytes()
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    found[name] = hashlib.sha256(content).hexdigest()
  return found


def arrays(path: pathlib.Path) -> dict[str, str]:
  """Returns the digests of a checkpoint's arrays."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  found = {}
  for item in ('model', 'ema', 'training'):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      tree = reader.metadata(path / item).item_metadata.tree
      args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      found[item] = reader.restore(
        path / item, args=ocp.args.PyTreeRestore(restore_args=args)
      )
  return digests(found)


def run(words: list[str]):
  """Prints the state of a run's newest checkpoint: a program of the zygote."""
  newest = steps(words[0])[-1]
  path = pathlib.Path(words[0], 'checkpoints', str(newest))
  position = json.loads((path / 'data/metadata').read_text())
  told = {
    'step': newest,
    **arrays(path),
    **{key: position[key] for key in ('examples_seen', 'fingerprint', 'since')},
    'metrics': json.loads((path / 'metrics/metrics').read_text()),
  }
  print(json.dumps(told), flush=True)
