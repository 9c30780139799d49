"""The command `advprop`: what a trained network says of image files.

`pip install .` makes the command; in a checkout `python -m advprop_jax.cli` is the same.
"""

import argparse
import json
import math
import sys
import time
import typing
from collections.abc import Iterable, Iterator

from advprop_jax import errors, startup

if typing.TYPE_CHECKING:
  from advprop_jax.weights.classifier import FileResult

PROGRESS_SECS = 5.0  # Between two lines about the progress; none comes before.


def run():
  """Runs the command line of this process, and ends it."""
  startup.prepare()  # Before anything heavy is imported.
  sys.exit(main())


def main(argv: list[str] | None = None) -> int:
  """Runs a command line, and returns the exit status.

  Args:
    argv: its words, without the name of the program; None: those of the process.
  """
  args = create_parser().parse_args(argv)
  import jax  # `--help` needs not wait for it.

  try:
    return args.run(args)
  except errors.UserError as e:
    message = str(e)
  except jax.errors.JaxRuntimeError as e:
    if not (description := errors.describe_device_error(e, 'a smaller --batch_size')):
      raise
    message = description
  print(f'error: {message}', file=sys.stderr)
  return 1


def create_parser() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  parser = argparse.ArgumentParser(
    'advprop',
    description='Uses trained networks.',
    epilog='In a checkout, without installing: python -m advprop_jax.cli',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  predict = commands.add_parser(
    'predict',
    help='classify image files',
    description='Classifies image files (JPEG, PNG, BMP, WebP). A file that cannot be '
    'read is named on stderr and ends nothing but the exit status 0: it is then 1.',
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  predict.set_defaults(run=_predict)
  predict.add_argument('workdir', metavar='WORKDIR', help='directory of the run')
  predict.add_argument(
    'paths', metavar='FILE_OR_FOLDER', nargs='+', help='of a folder, all images in it'
  )
  predict.add_argument('--top', type=int, default=5, help='how many classes')
  predict.add_argument(
    '--format', choices=WRITERS, default='table', help='of the output'
  )
  predict.add_argument('--output', metavar='FILE', help='write here, not to stdout')
  predict.add_argument('--step', default='newest', help='newest, best, or a step')
  predict.add_argument('--branch', default='clean', help='whose norms to use')
  predict.add_argument('--batch_size', type=int, default=32, help='images at a time')
  return parser


def _predict(args) -> int:
  """Runs `advprop predict`."""
  import advprop_jax
  from advprop_jax.weights import files

  paths = files.find(args.paths)
  with _open(args.output) as output:
    model = advprop_jax.load(args.workdir, step=args.step, branch=args.branch)
    results = model.predict_files(paths, args.top, batch_size=args.batch_size)
    num_bad = 0

    def good(results: Iterable['FileResult']) -> Iterator['FileResult']:
      nonlocal num_bad
      for result in results:
        if result.problem is None:
          yield result
        else:
          num_bad += 1
          print(f'error: {result.problem}', file=sys.stderr)

    for text in WRITERS[args.format](good(_with_progress(results, len(paths)))):
      output.write(text)
  return 1 if num_bad else 0
