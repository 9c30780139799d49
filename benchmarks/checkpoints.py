"""Times what the checksums of a checkpoint cost; prints one line of JSON.

  python benchmarks/checkpoints.py --model efficientnet_b0

The state of AdvProp's training is saved, then compared with its checksums and restored,
by turns, each with the files read from the disk anew (`--warm`: from memory).
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
from etils import epath

from advprop_jax import models, parallel
from advprop_jax.workdir import checkpoint, checksums, restore
from benchmarks import training


def forget(folder: epath.Path):
  """Drops the files of a folder from the memory of the system."""
  os.sync()  # What is not written yet stays.
  for path in pathlib.Path(folder).rglob('*'):
    if path.is_file():
      with path.open('rb') as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(args, folder: str) -> dict:
  """Returns the line's keys and values."""
  model = models.create_model(args.model)
  _, create_state = training.create_training(
    model, 'advprop', pgd_steps=1, image_size=args.size
  )
  state = create_state()
  start = time.perf_counter()
  with checkpoint.Checkpointer(f'{folder}/checkpoints') as checkpointer:
    checkpointer.save(
      1, parallel.replicate(state).parts, config={}, examples_seen=0, fingerprint={}
    )
  save_secs = time.perf_counter() - start
  path = epath.Path(folder) / 'checkpoints' / '1'
  start = time.perf_counter()
  checksums.seal(path)
  seal_secs = time.perf_counter() - start
  template = jax.eval_shape(create_state).parts
  times: dict[str, list[float]] = {'check': [], 'restore': []}
  for _ in range(args.repeats):
    for what in times:
      if not args.warm:
        forget(path)
      with restore.Reader(f'{folder}/checkpoints', whole=[1]) as reader:
        start = time.perf_counter()
        if what == 'check':
          report = checksums.check(path)
        else:
          jax.block_until_ready(reader.restore(1, template)[0])
        times[what].append(time.perf_counter() - start)
  check_secs, restore_secs = (min(x) for x in times.values())
  return {
    'model': args.model,
    'megabytes': round(report.num_bytes / 1e6, 1),
    'files': report.num_files,
    'save_secs': round(save_secs, 3),
    'seal_secs': round(seal_secs, 3),
    'check_secs': round(check_secs, 3),
    'restore_secs': round(restore_secs, 3),
    'check_over_restore': round(check_secs / restore_secs, 3),
    'seal_over_save': round(seal_secs / save_secs, 3),
  }


def main(arguments=None):
  parser = argparse.ArgumentParser(description='What checksums cost.')
  parser.add_argument('--model', default='efficientnet_b0')
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--warm', action='store_true', help='leave the files in memory')
  args = parser.parse_args(arguments)
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(measure(args, folder)))


if __name__ == '__main__':
  main()
