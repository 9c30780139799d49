"""Times an evaluation against the network alone; prints lines of JSON.

  python benchmarks/evaluate.py --model efficientnet_b0 --size 224 --batch 32
  python benchmarks/evaluate.py --model efficientnet_tiny --size 32 --batch 64

One line for one branch and one for two. `images_per_sec` is that of the whole
evaluation of generated JPEGs, 375 x 500: decoding, transfer, all scores; an image
counts once for every branch. `decoded_images_per_sec` is that of the same evaluation of
batches that are decoded already. `forward_images_per_sec` is that of the compiled
forward pass on all devices, on a batch that lies there. `ratio` and `decoded_ratio` are
the first and the second over the third, medians of passes by turns: on a CPU the
decoding takes its time from the cores that the network computes on.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from advprop_jax import startup

if __name__ == '__main__':
  startup.prepare()

import jax
import numpy as np
from absl import logging

from advprop_jax import branches, evaluations, model_config, parallel, pixels, schema
from advprop_jax.evaluation import suites
from benchmarks import input_pipeline
from configs import default

CLASSES = tuple('abcdefghij')


def create_images(root: pathlib.Path, num_images: int):
  """Writes JPEGs of ten classes, <root>/<class>/<number>.jpg."""
  jpegs = input_pipeline.create_jpegs(min(num_images, input_pipeline.NUM_IMAGES))
  for i in range(num_images):
    folder = root / CLASSES[i % len(CLASSES)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{i}.jpg').write_bytes(jpegs[i % len(jpegs)])


def compare(args, root: pathlib.Path):
  """Yields the results for one branch and for two."""
  config = default.get_config()
  config.model.update(name=args.model, dtype='float32')
  config.data.update(
    name=f'classes:{root}',
    eval_split='all',
    image_size=args.size,
    eval_batch_size=args.batch,
    class_names=CLASSES,
  )
  config = schema.read(config)
  model = model_config.create_model(config, num_classes=len(CLASSES))
  image = np.zeros([args.batch, args.size, args.size, 3], np.uint8)
  variables = jax.jit(
    lambda key: model.init(key, pixels.to_unit(image[:1]), train=False)
  )(jax.random.key(0))
  cell = evaluations.open_cell(config, suites.Cell())
  evaluator = evaluations.Evaluators(config, model).get(
    cell, clean=True, attacked=False
  )
  forward = parallel.data_parallel(
    lambda variables, image: model.apply(variables, pixels.to_unit(image), train=False),
    split=(False, True),
    split_outputs=True,
  )
  (resident,) = parallel.prefetch([image])
  decoded = list(cell.batches)
  for names in (('clean',), ('clean', 'adv')):
    state = parallel.replicate(
      {
        'params': variables['params'],
        'norms': branches.fork(variables['norm'], names),
        'batch_stats': branches.fork(variables['batch_stats'], names),
      }
    )
    chosen = branches.variables(**state, branch='clean')
    num_steps = len(cell.batches) * len(names)

    def run_forward(chosen=chosen, num_steps=num_steps):
      under_way = None  # One, while the next is begun, as in the evaluation.
      for _ in range(num_steps):
        under_way, before = forward(chosen, resident), under_way
        jax.block_until_ready(before)
      jax.block_until_ready(under_way)

    def run_evaluation(state=state):
      evaluator(**state, batches=cell.batches)

    def run_decoded(state=state):
      evaluator(**state, batches=decoded)

    secs: dict = {run_forward: [], run_decoded: [], run_evaluation: []}
    for repeat in range(args.repeats + 1):
      for run, found in secs.items():
        start = time.perf_counter()
        run()
        if repeat:  # The first compiles.
          found.append(time.perf_counter() - start)
    num_images = len(cell.batches) * args.batch * len(names)
    alone, memory, whole = (num_images / statistics.median(x) for x in secs.values())
    yield {
      'model': args.model,
      'size': args.size,
      'batch': args.batch,
      'branches': len(names),
      'devices': jax.device_count(),
      'images_per_sec': round(whole, 1),
      'decoded_images_per_sec': round(memory, 1),
      'forward_images_per_sec': round(alone, 1),
      'ratio': round(whole / alone, 3),
      'decoded_ratio': round(memory / alone, 3),
    }


def main(argv=None):
  """Prints a line for each number of branches."""
  parser = argparse.ArgumentParser(description='Evaluation against the forward pass.')
  parser.add_argument('--model', default='efficientnet_b0')
  parser.add_argument('--size', type=int, default=224, help='Pixels.')
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--num-batches', type=int, default=8)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    create_images(root, args.batch * args.num_batches)
    for line in compare(args, root):
      print(json.dumps(line))


if __name__ == '__main__':
  main()
