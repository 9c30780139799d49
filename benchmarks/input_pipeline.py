r"""Times the host's part of training, on generated JPEGs; prints lines of JSON.

  python benchmarks/input_pipeline.py              # all, some minutes
  python benchmarks/input_pipeline.py --measure=pipeline --sizes=224,600
  python benchmarks/input_pipeline.py --measure=ops
  python benchmarks/input_pipeline.py --measure=resume
  python benchmarks/input_pipeline.py --measure=read

pipeline  images per second of one core, from JPEG bytes to batches, with and without
          augmentation; beside it the floor: tf.io.decode_jpeg of the whole image and
          the same resize, no crop, flip, shuffling, random numbers, care for bad files
ops       microseconds per image of every augmentation op, one core
resume    seconds from a data set of ImageNet's size to the first batch of a step
read      undecoded records a second of files like ImageNet's, all cores, from the disk
          and from the operating system's memory: ours, one file after the other as
          before, and the bytes alone by as many threads
"""

import argparse
import concurrent.futures
import functools
import io
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from advprop_jax.input import (
  augment,
  augment_ops,
  batches,
  datasets,
  order,
  preprocess,
)
from advprop_jax.input.datasets import prepared

# ImageNet's usual shape; with this quality and noise 97 KB a file on average.
HEIGHT, WIDTH, QUALITY = 375, 500, 96
NUM_IMAGES = 64
BATCH_SIZE = 32
# Of the stream that is timed: NUM_IMAGES alone would be a new window every other batch.
NUM_RECORDS, SHUFFLE_BUFFER_SIZE = 64 * NUM_IMAGES, 16 * NUM_IMAGES
# How an image of a batch is made; each measure has a size and an augmentation.
RECIPE = preprocess.Recipe(
  image_size=224,
  crop_padding=32,
  resize_method='bicubic_tf1',
  image_dtype='uint8',
  max_megapixels=45.0,
  exif_orientation=False,
  crop_area=(0.08, 1.0),
  flip=True,
  augment_fn=None,
  plain_image=False,
)
# The published run: 1,281,167 images, 2,048 a step.
TRAIN_IMAGES, NUM_SHARDS, TRAIN_BATCH = 1_281_167, 1024, 2048

AUGMENTATIONS = {
  'crop': None,
  'autoaugment': augment.autoaugment,
  # B7's and B8's setting.
  'randaugment': functools.partial(augment.randaugment, num_layers=2, magnitude=28),
}


def create_jpegs(count: int) -> list[bytes]:
  """Returns photo-like JPEGs: smooth at large, noisy at small scale."""
  rng = np.random.default_rng(0)
  jpegs = []
  for _ in range(count):
    image = np.zeros([HEIGHT, WIDTH, 3])
    for cells, strength in ((4, 60), (16, 30), (64, 15), (WIDTH, 6)):
      coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
      image += tf.image.resize(coarse, [HEIGHT, WIDTH], 'bicubic').numpy()
    buffer = io.BytesIO()
    pixels = np.clip(image + 120, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, 'JPEG', quality=QUALITY)
    jpegs.append(buffer.getvalue())
  return jpegs


def in_memory(jpegs: list[bytes]) -> datasets.Dataset:
  """Returns a data set of these images, repeated up to NUM_RECORDS, label 0."""
  return datasets.Dataset(
    name='generated',
    class_names=('none',),
    spans_fn={'train': [datasets.Span('', 0, NUM_RECORDS)]}.get,
    read_fn=lambda spans: spans.flat_map(
      lambda span: tf.data.Dataset.from_tensor_slices(jpegs).repeat().take(span.take)
    ),
    parse_fn=lambda record: (record, tf.constant(0, tf.int64), tf.constant('')),
  )


def floor(jpegs: list[bytes], size: int):
  """Returns batches of whole images, decoded and resized, by one thread."""

  def example(encoded):
    return preprocess.resize(tf.io.decode_jpeg(encoded, 3), size, 'bicubic_tf1')

  options = tf.data.Options()
  options.autotune.enabled = False
  options.threading.max_intra_op_parallelism = 1
  batches = tf.data.Dataset.from_tensor_slices(jpegs).repeat().map(example, 1)
  return batches.batch(BATCH_SIZE).prefetch(2).with_options(options).as_numpy_iterator()


def measure_pipeline(args):
  """Prints images per second of the floor and of each augmentation, at each size."""
  use_one_core()
  jpegs = create_jpegs(NUM_IMAGES)
  print(f'{np.mean([len(x) for x in jpegs]):.0f} bytes an image', file=sys.stderr)
  batches.NUM_PARALLEL_EXAMPLES = 1
  for size in args.sizes:
    best = dict.fromkeys(['floor', *AUGMENTATIONS], 0.0)
    for repeat in range(args.repeats):
      for name in best:
        rate = measure_stream(create_stream(name, jpegs, size), args.batches)
        best[name] = max(best[name], rate)
      print(f'{size} px, pass {repeat + 1} of {args.repeats}', file=sys.stderr)
    for name, rate in best.items():
      line = {'measure': 'pipeline', 'size': size, 'what': name}
      line |= {'images_per_sec': rate, 'ratio_to_floor': rate / best['floor']}
      if AUGMENTATIONS.get(name):
        line['cost_on_top_of_crop'] = best['crop'] / rate - 1
      print(json.dumps(line), flush=True)


def create_stream(name: str, jpegs: list[bytes], size: int):
  """Returns an iterator of batches; it computes ahead, so there should be only one."""
  if name == 'floor':
    return floor(jpegs, size)
  return batches.train_batches(
    in_memory(jpegs),
    split='train',
    batch_size=BATCH_SIZE,
    recipe=RECIPE._replace(image_size=size, augment_fn=AUGMENTATIONS[name]),
    seed=0,
    shuffle_window=SHUFFLE_BUFFER_SIZE,
    max_bad_share=0.0,
    start_example=0,
    hosts=order.ONE_HOST,
  )


def measure_stream(stream, num_batches: int) -> float:
  """Returns images per second, once what was computed ahead has been used up."""
  for _ in range(batches.PREFETCHED_BATCHES + 2):
    next(stream)
  start = time.perf_counter()
  for _ in range(num_batches):
    next(stream)
  return num_batches * BATCH_SIZE / (time.perf_counter() - start)


def measure_ops(args):
  """Prints the microseconds of every augmentation op, at each size."""
  use_one_core()
  (jpeg,) = create_jpegs(1)
  for size in args.sizes:
    image = preprocess.to_bytes(
      preprocess.resize(tf.io.decode_jpeg(jpeg, 3), size, 'bicubic_tf1')
    )
    count = 50 * args.batches * 224**2 // max(size, 224) ** 2
    for name, op in augment_ops.OPS.items():
      # A level that no op makes an exception of.
      argument = augment.argument_of(name, 3.0, **augment.RANDAUGMENT_LENGTHS)
      more = {'center': [0.5, 0.5]} if name == 'Cutout' else {}
      call = functools.partial(op, **more)
      none = time_map(lambda image, argument: image, image, argument, count, args)
      secs = time_map(call, image, argument, count, args)
      micros = (secs - none) / count * 1e6  # Without what tf.data itself takes.
      print(json.dumps({'measure': 'ops', 'size': size, 'op': name, 'micros': micros}))


def time_map(op, image, argument, count, args) -> float:
  """Returns the seconds of the fastest pass over `count` calls."""
  options = tf.data.Options()
  options.threading.max_intra_op_parallelism = 1
  # As elements, not as constants, which would be computed with once and for all.
  elements = tf.data.Dataset.from_tensors((image, tf.constant(argument, tf.float32)))
  results = elements.repeat(count).map(op, 1).with_options(options)
  secs = []
  for _ in range(args.repeats + 1):  # The first is a warm-up.
    start = time.perf_counter()
    for _ in results:
      pass
    secs.append(time.perf_counter() - start)
  return min(secs[1:])


def measure_resume(args):
  """Prints the seconds to the first batch at step 0 and at a late one, all cores."""
  with tempfile.TemporaryDirectory() as data_dir:
    write_imagenet(data_dir, TRAIN_IMAGES, NUM_SHARDS, links=True)
    for step in (0, args.step):
      start = time.perf_counter()
      dataset = datasets.open_dataset('imagenet2012', data_dir=data_dir)
      stream = batches.train_batches(
        dataset,
        split='train',
        batch_size=TRAIN_BATCH,
        recipe=RECIPE._replace(augment_fn=augment.autoaugment),
        seed=0,
        shuffle_window=16384,
        max_bad_share=0.0,
        start_example=step * TRAIN_BATCH,
        hosts=order.ONE_HOST,
      )
      next(stream)
      secs = time.perf_counter() - start
      line = {'measure': 'resume', 'step': step, 'secs_to_first_batch': secs}
      print(json.dumps({**line, 'batch_size': TRAIN_BATCH}), flush=True)
      del stream


def measure_read(args):
  """Prints the records per second of each way to read, from disk and from memory."""
  with tempfile.TemporaryDirectory() as data_dir:
    num_images = args.shards * TRAIN_IMAGES // NUM_SHARDS
    write_imagenet(data_dir, num_images, args.shards, links=False)
    dataset = datasets.open_dataset('imagenet2012', data_dir=data_dir)
    spans = dataset.spans('train')
    ways = {
      'the bytes alone': lambda: read_bytes(spans),
      'one file after the other': lambda: count_records(one_by_one(spans)),
      'ours': lambda: count_records(order.in_order(dataset, spans)),
    }
    for where in ('disk', 'memory'):
      best = dict.fromkeys(ways, 0.0)
      for _ in range(args.repeats):
        for name, read in ways.items():  # In turn: the machine's speed changes.
          if where == 'disk':
            forget(spans)
          start = time.perf_counter()
          read()
          best[name] = max(best[name], num_images / (time.perf_counter() - start))
      for name, rate in best.items():
        line = {'measure': 'read', 'from': where, 'what': name}
        line['records_per_sec'] = rate
        line['ratio_to_one_file'] = rate / best['one file after the other']
        print(json.dumps(line), flush=True)


def read_bytes(spans: list[datasets.Span]):
  """Reads whole files and drops their bytes, as many at a time as the data do."""

  def read(span):
    with open(span.path, 'rb', buffering=0) as f:
      buffer = bytearray(prepared.READ_BYTES)
      while f.readinto(buffer):
        pass

  with concurrent.futures.ThreadPoolExecutor(prepared.FILES_AT_A_TIME) as pool:
    list(pool.map(read, spans))


def one_by_one(spans: list[datasets.Span]) -> tf.data.Dataset:
  """Returns the records, read by one thread, as the training stream once did."""
  paths = tf.data.Dataset.from_tensor_slices([span.path for span in spans])
  return paths.flat_map(
    lambda path: tf.data.TFRecordDataset(path, buffer_size=prepared.READ_BYTES)
  )


def count_records(records: tf.data.Dataset) -> int:
  """Reads all records, by windows as the training stream does; returns their number."""
  options = tf.data.Options()
  options.autotune.enabled = False
  windows = records.batch(1024).prefetch(1).with_options(options)
  return sum(int(window.shape[0]) for window in windows)


def forget(spans: list[datasets.Span]):
  """Tells the operating system to drop the files from its memory."""
  for span in spans:
    with open(span.path, 'rb') as f:
      os.fsync(f.fileno())
      os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_imagenet(data_dir: str, num_images: int, num_shards: int, *, links: bool):
  """Writes an imagenet2012, of generated images again and again.

  Args:
    data_dir: where tensorflow-datasets finds it.
    num_images: of the training split.
    num_shards: into which it is cut.
    links: whether shards of the same length are one file.
  """
  folder = pathlib.Path(data_dir, 'imagenet2012', '5.1.0')
  folder.mkdir(parents=True)
  builder = tfds.builder('imagenet2012', data_dir=data_dir)
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name='imagenet2012',
    split='train',
    filetype_suffix='tfrecord',
  )
  short, extra = divmod(num_images, num_shards)
  lengths = [short + (i < extra) for i in range(num_shards)]
  jpegs = create_jpegs(NUM_IMAGES)
  paths = {}
  for i, length in enumerate(lengths):
    path = template.sharded_filepath(shard_index=i, num_shards=num_shards)
    if length in paths and links:
      os.link(paths[length], path)
      continue
    paths[length] = path
    with tf.io.TFRecordWriter(str(path)) as writer:
      for n in range(length):
        writer.write(create_record(jpegs[n % NUM_IMAGES], n))
  split = tfds.core.SplitInfo(
    name='train', shard_lengths=lengths, num_bytes=0, filename_template=template
  )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=builder.info.features,
    split_infos=[split],
    filename_template=template,
  )


def create_record(jpeg: bytes, n: int) -> bytes:
  """Returns a record as tensorflow-datasets writes them for ImageNet."""

  def feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  label = tf.train.Feature(int64_list=tf.train.Int64List(value=[n % 1000]))
  features = {'image': feature(jpeg), 'file_name': feature(b'n_%d.JPEG' % n)}
  features = tf.train.Features(feature=features | {'label': label})
  return tf.train.Example(features=features).SerializeToString()


def use_one_core():
  """Keeps this process on one of its cores; to be called before TensorFlow computes."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


MEASURES = {
  'resume': measure_resume,  # These two first: the others stay on one core.
  'read': measure_read,
  'pipeline': measure_pipeline,
  'ops': measure_ops,
}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('--measure', default='all', choices=['all', *MEASURES], help='what is timed')
  add(
    '--sizes',
    default=[224, 600],
    type=lambda text: [int(size) for size in text.split(',')],
    help='of the images, pixels, with commas between',
  )
  add('--batches', type=int, default=8, help=f'of {BATCH_SIZE} images, in one pass')
  add('--repeats', type=int, default=5, help='passes; the fastest counts')
  add('--shards', type=int, default=16, help='to read, of 0.12 GB')
  add('--step', type=int, default=100_000, help='to resume at')
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  for name, measure in MEASURES.items():
    if args.measure in ('all', name):
      measure(args)


if __name__ == '__main__':
  main()
