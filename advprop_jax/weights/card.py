"""Writes the model card: what a network is, how good it was measured, and its files.

  python -m advprop_jax.weights.card --workdir=runs/b0

writes that of a workdir, anew with the results that are there by now.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from advprop_jax import errors, json_files
from advprop_jax.evaluation import labels, shapes
from advprop_jax.workdir import directory, restore

CARD = 'README.md'
ORIGIN = 'origin.json'  # What a conversion knows of the source; see `convert.py`.
# Of a workdir these are the network; the others grow with every evaluation.
NETWORK_FILES = ('checkpoints', 'config.json', ORIGIN)


def write_card(
  path: pathlib.Path,
  *,
  workdir: pathlib.Path,
  export: str = '',
  source: Mapping[str, Any] | None = None,
):
  """Writes README.md into a workdir, or into an export of it.

  Args:
    path: what the card describes, whose files are listed.
    workdir: of the network, local.
    export: what the export is, a paragraph; '': `path` is the workdir itself.
    source: of an export, {'step', 'branch', 'averaged'}: only results of these weights
      are shown; None: the newest step's config and all results.

  Raises:
    UserError: the workdir has no checkpoint.
  """
  steps = directory.saved_steps(str(workdir))
  if not steps:
    raise errors.UserError(
      f'{workdir} has no checkpoint; allowed: a --workdir that was trained in, or '
      'converted to'
    )
  with restore.Reader(workdir / 'checkpoints') as reader:
    step = steps[-1] if source is None else source['step']
    config, branch_names = reader.describe(step)
  origin_file = workdir / ORIGIN
  try:
    origin = json_files.read_object(origin_file)
  except FileNotFoundError:
    origin = {}
  except json_files.UnreadableError as e:
    raise errors.UserError(
      f'{origin_file} {e}; allowed: what a conversion has written, or no such file'
    ) from e
  parts = [
    f'# {config["model"]["name"]}',
    export or f'A checkpoint of advprop_jax; branches: {", ".join(branch_names)}.',
    _table(
      ('', ''), [*_network(config), *(_origin(origin) if origin else _recipe(config))]
    ),
    '## Preprocessing',
    ('The first paragraph says which of this is inside. ' if export else '')
    + _preprocessing(config),
    '## Results',
    _results(workdir, config, source),
    '## Files',
    f'SHA-256; `sha256sum --check {CARD}` compares them.',
    '```\n' + '\n'.join(_sums(path, () if export else NETWORK_FILES)) + '\n```',
  ]
  text = '\n\n'.join(parts) + '\n'
  try:
    (path / CARD).write_text(text)
  except OSError as e:
    raise errors.UserError(
      f'cannot write {path / CARD}: {e.strerror or e}; allowed: a directory that you '
      'may create files in'
    ) from e


def _network(config: Mapping[str, Any]):
  """Yields rows on what the network is."""
  data, model = config['data'], config['model']
  names = [labels.display_name(x) for x in data.get('class_names', ())]
  shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
  yield 'Data', data['name']
  yield 'Classes', f'{len(names)}: {shown}'
  yield 'Activation', model['activation']
  yield 'Norms', f'momentum {model["bn_momentum"]}, epsilon {model["bn_epsilon"]}'


def _origin(origin: Mapping[str, Any]):
  """Yields rows on where converted weights come from."""
  sums = '; '.join(f'{name}: {value}' for name, value in origin['files'].items())
  yield 'Trained elsewhere', f'{origin["recipe"]} ({origin["recipe_reason"]})'
  if remark := origin.get('remark'):
    yield 'Remark', remark
  yield 'Converted from', f'{origin["names"]} names; SHA-256 of {sums}'
  yield 'Licence of the weights', origin['licence']
  if origin['channel_order'] == 'bgr':
    yield 'Channels', 'published for BGR; the first kernel was turned, for RGB'
  if origin['without_average']:
    yield 'Not averaged', ', '.join(origin['without_average'])


def _recipe(config: Mapping[str, Any]):
  """Yields rows on how a network was trained here."""
  if 'streams' not in config:  # Converted weights.
    yield 'Trained elsewhere', f'unknown where: {ORIGIN} is not there'
    return
  streams = [
    f'{x["name"]}: {"attacked" if x["attack"] is not None else "clean"} images through '
    f"norm '{x['branch']}', weight {x['weight']}"
    for x in config['streams']
  ]
  optim = config['optim']
  yield 'Streams', '; '.join(streams)
  if config['method']['name'] != 'streams':
    yield 'Method', _values(config['method'])
  yield 'Attack', _values(config['attack'])
  yield 'Epochs', config['num_epochs']
  yield 'Batch size', config['data']['batch_size']
  yield 'Augmentation', _values(config['data']['augmentation'])
  yield 'Optimizer', _values(optim['optimizer'])
  yield 'Learning rate, for each 256 images', _values(optim['schedule'])
  yield 'Averages', f'decay {optim["ema_decay"]}'
  licence = 'as whoever trained them says'
  if start := config.get('init_from'):
    yield 'Started from', start
    licence += f'; that of {start} holds as well'
  yield 'Licence of the weights', licence


def _preprocessing(config: Mapping[str, Any]) -> str:
  """Returns what images need, in words; the same as `metadata` has in numbers."""
  size, padding = config['data']['image_size'], config['data']['crop_padding']
  return (
    f'The central {size}/{size + padding} of the shorter side, square, resized to '
    f'{size} x {size} by {config["data"]["resize_method"]}; RGB in [0, 1]; then '
    f'(x - mean) / std with mean {_numbers(config["model"]["mean"])} and std '
    f'{_numbers(config["model"]["std"])}. With another mean and std the network '
    'predicts badly, without any error.'
  )


def _results(
  workdir: pathlib.Path, config: Mapping[str, Any], source: Mapping[str, Any] | None
) -> str:
  """Returns a table of the evaluations in results.jsonl, the last of a kind.

  Args:
    workdir: of the network.
    config: of its training, which has the attack of evaluations within it.
    source: see `write_card`.
  """
  in_training = config.get('eval', {}).get('attack', {})
  rows = {}
  for line in _lines(workdir / 'results.jsonl'):
    for key, value in line.items():
      place, _, score = key.rpartition('/')
      if (
        score.endswith(('_top1', '_mce'))
        and not place.startswith('train')
        and (value is None or shapes.is_number(value))
        and (source is None or _is_of(line, score, source, config))
      ):
        attack = line.get('attack', in_training) if '_pgd_' in score else None
        attack = attack if isinstance(attack, dict) else {}
        if value is None:
          number = 'not finite'
        else:  # An mCE is in percent already.
          number = f'{value:.1f}' if score.endswith('_mce') else f'{100 * value:.2f} %'
        row = (place, score, number, line['step'], _values(attack))
        rows[place, score] = row
  if not rows:
    return 'None was measured yet: `python main.py --mode=evaluate --workdir=...`.'
  return _table(('images', 'score', 'measured', 'step', 'attack'), rows.values())


def _is_of(line, score: str, source: Mapping[str, Any], config) -> bool:
  """Returns whether a result is one of the weights that were exported."""
  # Evaluations within a training are of the averages, where they are kept.
  keeps_averages = config.get('optim', {}).get('ema_decay', 0) > 0
  branch = re.sub('_((pgd_)?top1|(relative_)?mce)$', '', score)
  return (line['step'], branch, line.get('averaged', keeps_averages)) == (
    source['step'],
    source['branch'],
    source['averaged'],
  )


def _lines(path: pathlib.Path) -> Iterable[dict[str, Any]]:
  """Returns the lines of results."""
  try:
    return [x for x in json_files.read_lines(path) if shapes.is_number(x.get('step'))]
  except json_files.UnreadableError as e:
    raise errors.UserError(f'{path} {e}; allowed: a file as main.py writes it') from e


def _values(section: Mapping[str, Any]) -> str:
  """Returns 'pgd, epsilon 0.0157, num_steps 10' of a section of a config."""
  values = [
    f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
    for key, value in section.items()
    if key != 'name'
  ]
  return ', '.join([section['name'], *values] if 'name' in section else values)


def _numbers(values) -> str:
  return ', '.join(f'{x:g}' for x in values)


def _table(titles, rows) -> str:
  lines = [titles, ['---'] * len(titles), *rows]
  return '\n'.join(f'| {" | ".join(map(_cell, row))} |' for row in lines)


def _cell(x) -> str:
  """Returns a text that ends neither the cell nor the line that it stands in."""
  return ' '.join(str(x).split()).replace('|', '\\|')


def _sums(path: pathlib.Path, names: Iterable[str]) -> Iterable[str]:
  """Yields 'sum  file' for every file, but the card, in some or all of a directory."""
  roots = [path / name for name in names] or [path]
  files = [x for root in roots for x in ([root] if root.is_file() else root.rglob('*'))]
  for file in sorted(x for x in files if x.is_file() and x != path / CARD):
    yield f'{directory.sha256(file)}  {file.relative_to(path)}'


def main(argv=None):
  """Runs the command; ends the process with one line if the input is at fault."""
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.weights.card',
    description='Writes the model card of a workdir, with the results so far.',
  )
  parser.add_argument('--workdir', required=True)
  options = parser.parse_args(argv)
  try:
    local = directory.local(options.workdir, flag='--workdir')
    workdir = pathlib.Path(directory.last_run(str(local)))
    write_card(workdir, workdir=workdir)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  print(workdir / CARD)


if __name__ == '__main__':
  main()
