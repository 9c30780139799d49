r"""Writes one page about one or several runs: tables, charts, adversarial examples.

  python -m advprop_jax.evaluation.report runs/A runs/B --out=report.html
  python -m advprop_jax.evaluation.report runs/A --format=md

The page needs no other file and asks no server. jinja2, since it escapes what users
have called their runs and classes.
"""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

import jinja2

from advprop_jax import errors
from advprop_jax.evaluation import page, robust_panels, run_files, tables
from advprop_jax.evaluation.run_files import Run


def create_report(workdirs: Iterable[str], format_name: str = 'html') -> str:
  """Returns the report on some runs.

  Args:
    workdirs: local directories, as they were given to main.py.
    format_name: a key of FORMATS.

  Raises:
    UserError: a directory holds no run, or a damaged one.
  """
  errors.check_choice('--format', format_name, FORMATS)
  return FORMATS[format_name](run_files.read_runs(workdirs))


def _as_html(runs: Sequence[Run]) -> str:
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  template = pathlib.Path(__file__).with_name('report.html').read_text('utf-8')
  return environment.from_string(template).render(page.describe(runs))


def _as_markdown(runs: Sequence[Run]) -> str:
  parts = [tables.to_markdown(tables.create_table(runs))]
  parts += robust_panels.to_markdown(runs)
  parts += [f'{suite}: {note}' for suite, note in page.notes(runs)]
  parts += [f'{x["run"]}: {x["what"]}: `{x["command"]}`' for x in page.missing(runs)]
  return '\n\n'.join(parts) + '\n'


FORMATS = {'html': _as_html, 'md': _as_markdown}


def main(argv=None):
  """Runs the command; ends the process with one line if the input is at fault."""
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.evaluation.report',
    description='Writes a page about one or several runs.',
  )
  parser.add_argument('workdirs', metavar='WORKDIR', nargs='+', help='of a run')
  parser.add_argument('--format', default='html', help=' or '.join(FORMATS))
  parser.add_argument(
    '--out', default='', metavar='FILE', help='default: report.html; of md: stdout'
  )
  options = parser.parse_args(argv)
  out = options.out or ('report.html' if options.format == 'html' else '')
  try:
    text = create_report(options.workdirs, options.format)
    if out:
      _write(pathlib.Path(out).expanduser(), text)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  print(f'wrote {out}' if out else text, end='\n' if out else '')


def _write(path: pathlib.Path, text: str):
  """Writes a file that takes the place of an old one when it is whole."""
  new = path.with_name(f'{path.name}.{os.getpid()}.new')
  try:
    # Paths that are no UTF-8 can be named, too.
    new.write_text(text, 'utf-8', errors='backslashreplace')
    new.replace(path)
  except OSError as e:
    with contextlib.suppress(OSError):  # Mostly it is not there.
      new.unlink()
    raise errors.UserError(
      f'cannot write to --out {path}: {e.strerror or e}; allowed: a file in a '
      'directory that exists and that you may write to'
    ) from e


if __name__ == '__main__':
  main()
