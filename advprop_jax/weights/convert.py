r"""Makes an ordinary workdir of published weights.

  python -m advprop_jax.weights.convert --source=efficientnet-b0 \
      --name=efficientnet_b0 --workdir=runs/b0_advprop

The workdir has a checkpoint of step 0 with the one branch 'clean', a config with the
preprocessing that belongs to the weights, and a model card. It is evaluated, loaded,
exported and started from as a run of one's own.
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from absl import logging

from advprop_jax import branches, errors
from advprop_jax.weights import card, published, recipes
from advprop_jax.workdir import checkpoint, directory


def convert(source: str, name: str, workdir: str, **options) -> published.Network:
  """Writes a workdir that holds the weights of a source.

  Args:
    source: see `readers.read`.
    name: of the model, a key of `models.MODELS`.
    workdir: local directory that does not exist or is empty.
    **options: see `published.read_network`.

  Returns:
    What was converted.

  Raises:
    UserError: the source cannot be used, or the workdir; then there is no workdir.
  """
  with directory.new_directory(workdir, flag='--workdir') as path:
    network = published.read_network(source, name, **options)
    parts = {
      'params': network.variables['params'],
      'norms': {branches.CLEAN: network.variables['norm']},
      'batch_stats': {branches.CLEAN: network.variables['batch_stats']},
    }
    with checkpoint.Checkpointer(path / 'checkpoints') as checkpointer:
      checkpointer.save(
        0,
        {'model': jax.tree.map(jnp.asarray, parts)},
        config=network.config,
        examples_seen=0,
        fingerprint={},
      )
    directory.write_config(path, network.config)
    (path / card.ORIGIN).write_text(json.dumps(network.about, indent=2) + '\n')
    card.write_card(path, workdir=path)
  for warning in published.warnings(network):
    logging.warning('%s', warning)
  return network


def _parse(argv) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.weights.convert',
    description='Makes a workdir of published weights, which are local files.',
  )
  parser.add_argument('--source', required=True, help='Folder or file of the weights.')
  parser.add_argument(
    '--name', required=True, help='Of the model: efficientnet_b0, resnet_50, ...'
  )
  parser.add_argument('--workdir', required=True, help='Made; must not exist.')
  parser.add_argument(
    '--recipe',
    default='auto',
    dest='recipe_name',
    help='What they were trained with, which decides about the preprocessing: '
    f'{", ".join(recipes.RECIPES)}. Default: what path and names say, or advprop.',
  )
  parser.add_argument(
    '--class_names',
    type=pathlib.Path,
    help="A file, one name a line, in the order of the logits. Default: ImageNet's.",
  )
  parser.add_argument('--image_size', type=int, help="Pixels; default: the model's.")
  parser.add_argument('--activation', help='Default: what the source says, or ReLU.')
  parser.add_argument(
    '--channel_order', help='rgb or bgr, that the weights expect. Default: the recipe.'
  )
  parser.add_argument(
    '--averaged',
    action=argparse.BooleanOptionalAction,
    help='Take averages or plain weights where both are there. Default: the recipe.',
  )
  parser.add_argument(
    '--cast', action='store_true', help='Take values that are not float32, too.'
  )
  return parser.parse_args(argv)


def main(argv=None):
  """Runs the command; ends the process with one line if the input is at fault."""
  options = vars(_parse(argv))
  try:
    if options['class_names'] is not None:
      options['class_names'] = _read_lines(options['class_names'])
    network = convert(**options)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  print(f'{options["workdir"]} holds {published.describe(network)}')


def _read_lines(path: pathlib.Path) -> tuple[str, ...]:
  try:
    return tuple(x for x in path.read_text().splitlines() if x)
  except (OSError, UnicodeDecodeError) as e:
    raise errors.UserError(
      f'--class_names {path} cannot be read: {e}; allowed: a text file, one name a line'
    ) from e


if __name__ == '__main__':
  main()
