r"""Takes a plain network out of a workdir: one branch, for programs that are not ours.

  python -m advprop_jax.weights.export --workdir=runs/b0_advprop --output=exports/b0 \
      --format=stablehlo

The directory receives the network, metadata.json (classes, preprocessing, source) and a
model card with the SHA-256 of every file.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax

from advprop_jax import errors
from advprop_jax.evaluation import labels
from advprop_jax.weights import card, classifier, formats, load, namings
from advprop_jax.workdir import directory

METADATA = 'metadata.json'
LOADING = {  # How each format is read.
  'stablehlo': '`jax.export.deserialize(bytearray(file.read())).call(images)`',
  'savedmodel': (
    "`tf.saved_model.load(path).signatures['serving_default'](image=images)['logits']`"
  ),
  'safetensors': '`safetensors.numpy.load_file(path)`',
}


def export(
  workdir: str,
  output: str,
  *,
  format_name: str,
  step: str = 'newest',
  branch: str = 'clean',
  averaged: bool | None = None,
  fold_norms: bool = False,
  with_preprocessing: bool = False,
) -> dict[str, Any]:
  """Writes one branch of a checkpoint, for any number and size of images.

  Args:
    workdir: local directory that was trained in, or converted to.
    output: local directory that does not exist or is empty.
    format_name: a key of formats.FORMATS.
    step: 'newest', 'best' or a step.
    branch: of norms.
    averaged: see `load`.
    fold_norms: whether norms are put into the convolutions, see `fold.py`.
    with_preprocessing: whether the network takes uint8 [B, H, W, 3] as files have it,
      and crops and resizes; else float32 [B, H, W, 3] in [0, 1].

  Returns:
    What metadata.json holds.

  Raises:
    UserError: there is no such checkpoint, the output exists, or the format cannot do
      what is asked for.
  """
  errors.check_choice('--format', format_name, formats.FORMATS)
  if format_name == 'safetensors' and with_preprocessing:
    raise errors.UserError(
      '--with_preprocessing is for functions, and safetensors hold weights alone; '
      f'allowed: {METADATA} says what images need; or --format=stablehlo or savedmodel'
    )
  local = directory.local(workdir, flag='--workdir')
  run = pathlib.Path(directory.last_run(str(local)))
  with directory.new_directory(output, flag='--output') as path:
    model = load.load(
      # Elsewhere nobody knows of bfloat16: what is measured in float32 stays so.
      workdir,
      step=step,
      branch=branch,
      averaged=averaged,
      dtype='float32',
      device=None,
    )
    about = {
      'format': format_name,
      **metadata(model, fold_norms=fold_norms, with_preprocessing=with_preprocessing),
    }
    about['normalisation']['inside'] = format_name != 'safetensors'
    if format_name == 'safetensors':
      is_timms = not fold_norms and namings.timm_computes(model.module)
      about['names'] = 'timm' if is_timms else 'advprop_jax'
    about['source']['checkpoint_sha256'] = directory.sha256(
      run / 'checkpoints' / str(model.step)
    )
    formats.FORMATS[format_name](path, model, about)
    (path / METADATA).write_text(json.dumps(about, indent=2) + '\n')
    card.write_card(path, workdir=run, export=_describe(about), source=about['source'])
  return about


def metadata(
  model: classifier.Classifier, *, fold_norms: bool, with_preprocessing: bool
) -> dict[str, Any]:
  """Returns what a program must know to use a network; JSON values."""
  config = model.config
  size, padding = config.data.image_size, config.data.crop_padding
  return {
    'model': config.model.name,
    'network': {key: x for key, x in config.model.items() if key != 'name'},
    'class_names': list(model.class_names),
    'display_names': [labels.display_name(x) for x in model.class_names],
    'input': {
      'shape': ['batch', 'height', 'width', 3],
      'dtype': 'uint8' if with_preprocessing else 'float32',
      'range': [0, 255] if with_preprocessing else [0, 1],
      'channels': 'rgb',
    },
    'output': {'shape': ['batch', len(model.class_names)], 'is': 'logits, float32'},
    'preprocessing': {
      'inside': with_preprocessing,
      'image_size': size,
      'crop': f'central square, {size}/{size + padding} of the shorter side',
      'crop_padding': padding,
      'resize_method': config.data.resize_method,
    },
    'normalisation': {
      'inside': True,  # Of safetensors not: weights alone.
      'mean': list(config.model.mean),
      'std': list(config.model.std),
    },
    'norms': {'folded': fold_norms, 'epsilon': config.model.bn_epsilon},
    'source': {
      'step': model.step,
      'branch': model.branch,
      'averaged': model.averaged,
    },
    'jax': jax.__version__,
  }


def _describe(about: dict[str, Any]) -> str:
  """Returns what an export is, and what images still need, in a paragraph."""
  source = about['source']
  norms = 'its norms in the convolutions' if about['norms']['folded'] else 'with norms'
  weights = 'averaged' if source['averaged'] else 'plain'
  text = (
    f"The branch '{source['branch']}' of step {source['step']} ({weights} weights), "
    f'{norms}, as {about["format"]}; {LOADING[about["format"]]}. '
  )
  crop, normalise = 'crop and resize', '(x - mean) / std'
  if about['preprocessing']['inside']:
    return text + (
      f'It takes bytes, uint8 [batch, height, width, 3], RGB; {crop} and {normalise} '
      'are inside, nothing else is to be done.'
    )
  if about['normalisation']['inside']:
    return text + (
      'It takes float32 [batch, height, width, 3] in [0, 1], RGB; inside is '
      f'{normalise}, to be done before: {crop}.'
    )
  return text + (
    f'Names: of {about["names"]}. To be done before: {crop}, and {normalise} on RGB in '
    '[0, 1].'
  )


def _parse(argv) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m advprop_jax.weights.export',
    description='Takes one branch out of a workdir, for other programs.',
  )
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--output', required=True, help='Made; must not exist.')
  parser.add_argument(
    '--format', required=True, dest='format_name', help=', '.join(formats.FORMATS)
  )
  parser.add_argument('--step', default='newest', help='newest, best, or a step.')
  parser.add_argument('--branch', default='clean', help='Of norms; default: clean.')
  parser.add_argument(
    '--averaged',
    action=argparse.BooleanOptionalAction,
    help='Averaged weights, or those of the step. Default: averaged if there are any.',
  )
  parser.add_argument(
    '--fold_norms', action='store_true', help='Put the norms into the convolutions.'
  )
  parser.add_argument(
    '--with_preprocessing',
    action='store_true',
    help='Take bytes of any size, and crop and resize them.',
  )
  return parser.parse_args(argv)


def main(argv=None):
  """Runs the command; ends the process with one line if the input is at fault."""
  options = vars(_parse(argv))
  try:
    about = export(**options)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
  print(f'{options["output"]} holds: {_describe(about)}')


if __name__ == '__main__':
  main()
