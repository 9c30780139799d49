"""The command `advprop`: what a trained network says of image files.

`pip install .` makes the command; in a checkout it is `python -m advprop_jax.cli`.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from advprop_jax import errors, startup

if typing.TYPE_CHECKING:
  from advprop_jax.weights.classifier import FileResult

PROGRESS_SECS = 5.0  # Between two lines of progress; a shorter run has none.


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
  import jax  # `--help` need not wait for it.

  try:
    return args.run(args)
  except errors.UserError as e:
    message: str | None = str(e)
  except jax.errors.JaxRuntimeError as e:
    message = errors.describe_device_error(e, allowed='a smaller --batch_size')
    if message is None:
      raise
  print(f'error: {message}', file=sys.stderr)
  return 1


def create_parser() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  parser = argparse.ArgumentParser(
    'advprop',
    description='Uses trained networks.',
    epilog='In a checkout that is not installed: python -m advprop_jax.cli',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  predict = commands.add_parser(
    'predict',
    help='classify image files',
    description='Classifies JPEG, PNG, BMP and WebP files. One that cannot be read is '
    'named on stderr, the others are classified, and the exit status is 1.',
    epilog='In a checkout that is not installed: python -m advprop_jax.cli predict',
  )
  predict.set_defaults(run=predict_files)
  predict.add_argument('workdir', metavar='WORKDIR', help='directory of a run')
  predict.add_argument(
    'paths', metavar='FILE_OR_FOLDER', nargs='+', help='of a folder, all images in it'
  )

  def add_option(name, default, **options):
    options['help'] += f'; default: {default}'
    predict.add_argument(name, default=default, **options)

  add_option('--top', 5, type=int, metavar='N', help='classes to name')
  add_option('--format', 'table', choices=FORMATS, help='of the output')
  add_option('--output', '-', metavar='FILE', help='where to write; -: stdout')
  add_option('--step', 'newest', help='of the checkpoint: newest, best or a number')
  add_option('--branch', 'clean', help='whose norms to use')
  add_option('--batch_size', 16, type=int, metavar='N', help='images at a time')
  return parser


def predict_files(args) -> int:
  """Runs `advprop predict`, and returns the exit status."""
  from advprop_jax.weights import files, load

  paths = files.find(args.paths)
  model = load.load(
    args.workdir,
    step=args.step,
    branch=args.branch,
    averaged=None,
    dtype=None,
    device=None,
  )
  results = model.predict_files(paths, args.top, batch_size=args.batch_size)
  form = FORMATS[args.format]
  num_good = 0
  with _open(args.output) as output:
    output.write(form.start)
    for result in _with_progress(results, len(paths), args.batch_size):
      if result.problem is None:
        output.write((form.between if num_good else '') + form.describe(result))
        num_good += 1
      else:
        print(f'error: {result.problem}', file=sys.stderr)
    output.write(form.end)
  return 0 if num_good == len(paths) else 1


@contextlib.contextmanager
def _open(path: str):
  """Opens a file to write, or stdout; a path that is no UTF-8 can be written, too.

  A file that is there is replaced when all is written, and kept after an error.
  """
  encoding_errors = 'backslashreplace'
  if path == '-':
    sys.stdout.reconfigure(errors=encoding_errors)  # type: ignore[union-attr]
    yield sys.stdout
    return
  from advprop_jax.workdir import directory

  # /dev/null and pipes are written to as they are; nothing can take their place.
  is_special = os.path.exists(path) and not os.path.isfile(path)
  final = path if is_special else os.path.realpath(path)  # Of a link, what it means.
  new = None
  try:
    if not is_special:
      folder, name = os.path.split(final)
      handle, new = tempfile.mkstemp(prefix=f'{name}.', dir=folder)
      os.close(handle)
      exists = os.path.exists(final)
      os.chmod(new, os.stat(final).st_mode if exists else directory.usual_mode(0o666))
    with open(new or final, 'w', encoding='utf-8', errors=encoding_errors) as file:
      yield file
    if new:
      os.replace(new, final)
      new = None
  except OSError as e:
    raise errors.UserError(
      f'cannot write to --output {path}: {e.strerror}; allowed: a file in a directory '
      'that you may write to'
    ) from e
  finally:
    if new:
      os.remove(new)


def _with_progress(
  results: Iterable['FileResult'], num_files: int, batch_size: int
) -> Iterator['FileResult']:
  """Yields the results, and tells on stderr how many are left, and for how long."""
  start = last = time.monotonic()
  for num_done, result in enumerate(results, 1):
    yield result
    if num_done % batch_size or num_done == num_files:  # They come batch by batch.
      continue
    now = time.monotonic()
    if now - last >= PROGRESS_SECS:
      rate = num_done / (now - start)
      minutes, secs = divmod(round((num_files - num_done) / rate), 60)
      print(
        f'{num_done} of {num_files} images, {rate:.1f} images/s, '
        f'{minutes} min {secs:02} s left',
        file=sys.stderr,
      )
      last = now


class Format(NamedTuple):
  """How predictions are written."""

  describe: Callable[['FileResult'], str]
  start: str = ''
  between: str = ''
  end: str = ''


def _as_table(result: 'FileResult') -> str:
  lines = [
    f'{100 * probability:8.2f} %  {name}'
    for name, probability, _ in result.predictions or ()
  ]
  return '\n'.join([result.path, *lines]) + '\n'


def _as_json(result: 'FileResult') -> str:
  predictions = [
    {'class': name, 'probability': probability, 'index': index}
    for name, probability, index in result.predictions or ()
  ]
  return json.dumps({'path': result.path, 'predictions': predictions})


# Of JSON it is one list, with a line for every file.
FORMATS = {
  'table': Format(_as_table),
  'json': Format(_as_json, start='[\n', between=',\n', end='\n]\n'),
}


if __name__ == '__main__':
  run()
