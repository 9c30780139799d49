"""A trained network as an object: from images or files to classes, and to attacks."""

import concurrent.futures
import functools
import inspect
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import attacks, errors, pixels, registry, schema
from advprop_jax.evaluation import labels
from advprop_jax.input import cores
from advprop_jax.weights import files, inputs, preprocess

# Images at a time. More are no faster on a CPU: B0, 224 px, two cores, 4 to 64.
BATCH_SIZE = 16
MIN_SIDE = 256  # In pixels, see `Classifier._preprocess_one`.
EXIF_ORIENTATIONS = ('folders', 'all', 'none')  # As `images.create_recipe` has them.

# What an attack gets where the caller says nothing: SAT's evaluation, `PGD_EVAL` in
# configs/default.py. `step_size` is a quarter of epsilon.
ATTACK_ARGUMENTS: dict[str, Any] = {
  'epsilon': 4 / 255,
  'num_steps': 10,
  'targeted': False,
  'prob_start_from_clean': 0.0,
}


class Prediction(NamedTuple):
  """A class of an image, and how likely the network finds it."""

  name: str  # For people: 'tench', where `class_names` has 'n01440764'.
  probability: float  # 0 to 1, the softmax of the logits.
  # Of the class, in `Classifier.class_names`. It replaces a method of tuples.
  index: int  # type: ignore[assignment]


class FileResult(NamedTuple):
  """What became of an image file."""

  path: str
  predictions: list[Prediction] | None  # Best first; None if it cannot be read.
  problem: errors.UserError | None  # Why not.


class Classifier:
  """A network with one branch of its norms, its preprocessing and its classes.

  Images are uint8 [B, H, W, 3], RGB, of any size: of them the crop is taken, and
  resized, that the network is evaluated on. Or they are of a float type in [0, 1] and
  go to the network as they are; see `pixels.py`.

  Attributes:
    module: the Flax module.
    variables: what `module.apply` expects, {'params', 'norm', 'batch_stats'}.
    config: the checkpoint's, sections of plain values; not all keys of
      configs/default.py need be there.
    class_names: one for each logit, K of them.
    step: of training, at which the weights were saved.
    averaged: whether the weights are averages over the training.
    branch: whose norms these are.
    branch_names: of the checkpoint.
    precision: makes the context that `module` is to be traced in, JAX's precision of
      products; `apply` has it already.
  """

  def __init__(
    self,
    module: nn.Module,
    variables: dict[str, Any],
    config: schema.Section,
    *,
    precision: str | None,
    step: int,
    averaged: bool,
    branch: str,
    branch_names: tuple[str, ...],
    device: jax.Device | None,
  ):
    """Keeps what `load.load` has found.

    Args: see the class, and
      precision: of products in float32, see `model_config.matmul_precision`.
      device: where images go to; None: JAX's choice.

    Raises:
      UserError: the config has an unknown way to preprocess images.
    """
    data = config.data
    errors.check_choice('data.resize_method', data.resize_method, preprocess.METHODS)
    exif_orientation = data.get('exif_orientation', 'folders')
    errors.check_choice('data.exif_orientation', exif_orientation, EXIF_ORIENTATIONS)
    self.module, self.variables, self.config = module, variables, config
    self.class_names: tuple[str, ...] = data.class_names
    self.step, self.averaged = step, averaged
    self.branch, self.branch_names = branch, branch_names
    self._device = device
    self._turned = exif_orientation != 'none'  # Files are the user's own, as folders.
    # A setting of JAX while it traces, here of this network alone.
    self.precision = functools.partial(jax.default_matmul_precision, precision)
    self._preprocess = jax.jit(
      functools.partial(
        preprocess.preprocess,
        image_size=data.image_size,
        crop_padding=data.crop_padding,
        resize_method=data.resize_method,
      )
    )
    self._logits = jax.jit(self.apply)
    self._attacked = jax.jit(self._attack, static_argnames='section')

  def __repr__(self):
    return (
      f'<{self.config.model["name"]}, {len(self.class_names)} classes, step '
      f'{self.step}, branch {self.branch!r} of {", ".join(self.branch_names)}>'
    )

  def __call__(self, images) -> jax.Array:
    """Returns the logits of images, float32 [B, K].

    Raises:
      UserError: they are none, see the class, or too small for the network.
    """
    return self._run(self._crop(images))

  def apply(self, variables, image: jax.Array) -> jax.Array:
    """Returns logits, float32 [B, K]: a pure function, to differentiate and to export.

    Args:
      variables: as `self.variables`.
      image: float32 [B, H, W, 3] in [0, 1].
    """
    with self.precision():
      logits: Any = self.module.apply(variables, image, train=False)
    return logits

  def preprocess(self, images) -> jax.Array:
    """Returns the crop of images that the network is evaluated on, uint8 [B, S, S, 3].

    Raises:
      UserError: they are not uint8 [B, H, W, 3].
    """
    image = self._check(images)
    if image.dtype != jnp.uint8:
      raise errors.UserError(
        f'images to preprocess are {image.dtype}; allowed: uint8 in 0 to 255; others '
        'go to the network as they are'
      )
    return self._preprocess(image)

  def predict(self, images, top: int = 5, *, batch_size: int = BATCH_SIZE):
    """Returns the likeliest classes of one image or of several, best first.

    Args:
      images: an array [H, W, 3] or [B, H, W, 3], see the class; or the path of a file,
        a folder, whose images are taken in the order of their paths, or a list of
        paths.
      top: how many classes; all, if there are fewer.
      batch_size: images that are computed at a time.

    Returns:
      A list of `Prediction`; of several images, a list of such lists.

    Raises:
      UserError: a file cannot be read, or it is no array of images.
    """
    inputs.check_count('top', top)
    inputs.check_count('batch_size', batch_size)
    if isinstance(images, str | os.PathLike):
      results = self._predict_readable([images], top, batch_size)
      return results if os.path.isdir(images) else results[0]
    if isinstance(images, list | tuple) and all(
      isinstance(x, str | os.PathLike) for x in images
    ):
      return self._predict_readable(images, top, batch_size)
    images = inputs.as_array(images)
    if images.ndim == 3:
      return self._best(self(images[None]), top)[0]
    images = self._check(images)
    size = min(batch_size, len(images))
    predictions: list[list[Prediction]] = []
    for start in range(0, len(images), size):
      batch = images[start : start + size]
      logits = self(inputs.fill(batch, size))[: len(batch)]
      predictions += self._best(logits, top)
    return predictions

  def predict_files(
    self,
    paths: Iterable[str | os.PathLike],
    top: int = 5,
    *,
    batch_size: int = BATCH_SIZE,
  ) -> Iterator[FileResult]:
    """Yields what becomes of each file, batch by batch; one that is bad ends nothing.

    Args: see `predict`; a folder among the paths stands for the images in it.

    Raises:
      UserError: a folder has no images. It is raised before the first is asked for.
    """
    inputs.check_count('top', top)
    inputs.check_count('batch_size', batch_size)
    return self._predict_files(files.find(paths), top, batch_size)

  def _predict_files(self, found: list[str], top: int, batch_size: int):
    size = min(batch_size, len(found))
    with concurrent.futures.ThreadPoolExecutor(cores.count()) as pool:
      for start in range(0, len(found), size or 1):
        batch = found[start : start + size]
        images = list(pool.map(self._read, batch))
        good = [x for x in images if not isinstance(x, errors.UserError)]
        predictions = []
        if good:
          crops = jax.device_put(inputs.fill(np.stack(good), size), self._device)
          predictions = self._best(self._run(crops)[: len(good)], top)
        for path, image in zip(batch, images, strict=True):
          if isinstance(image, errors.UserError):
            yield FileResult(path, None, image)
          else:
            yield FileResult(path, predictions.pop(0), None)

  def attack(
    self, images, label=None, *, name: str = 'pgd', seed: int = 0, **arguments
  ) -> jax.Array:
    """Returns adversarial images, float32 [B, S, S, 3] in [0, 1].

    What an image becomes does not depend on the others of its batch, but on its place.
    A program is compiled for every new set of arguments.

    Args:
      images: see the class; of float images the result has their own size.
      label: the class to move away from, int [B] or one for all; None: what the network
        predicts. With `targeted=True` the attack moves towards a random other class.
      name: a key of `attacks.ATTACKS`.
      seed: of its random numbers.
      **arguments: of the attack, see `attacks/table.py`. Of those of `gradient.py`:
        `epsilon` (4 / 255 if it is not given), `step_size` (epsilon / 4), `num_steps`
        (10), ... All are in units of pixels in [0, 1].

    Raises:
      UserError: an unknown attack or argument, or a value outside of its range.
    """
    errors.check_choice('attack', name, attacks.ATTACKS)
    given = {key: inputs.as_number(key, x) for key, x in arguments.items()}
    schema.check_section('attack', given)
    defaults = {**ATTACK_ARGUMENTS, **given}
    defaults.setdefault('step_size', defaults['epsilon'] / 4)
    takes = inspect.signature(attacks.ATTACKS[name]).parameters
    needs = {k for k, x in takes.items() if x.default is inspect.Parameter.empty}
    section = {key: x for key, x in defaults.items() if key in needs or key in given}
    image = pixels.to_unit(self._crop(images))
    label = (
      self._run(image).argmax(-1)
      if label is None
      else inputs.check_label(
        label, num_images=len(image), num_classes=len(self.class_names)
      )
    )
    with self.precision():
      return self._attacked(
        self.variables,
        image,
        label,
        jax.random.key(seed),
        section=tuple({'name': name, **section}.items()),
      )

  def _attack(self, variables, image, label, rng, *, section):
    attack = registry.create(
      'the attack', attacks.ATTACKS, dict(section), num_classes=len(self.class_names)
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(len(image)))
    return attack(functools.partial(self.apply, variables), image, label, keys)

  def _run(self, image) -> jax.Array:
    """Returns the logits of what goes to the network, crops of bytes or floats."""
    image = pixels.to_unit(image)  # Before: one program for both.
    with self.precision():
      return self._logits(self.variables, image)

  def _crop(self, images) -> jax.Array:
    """Returns what goes to the network: crops of bytes, and floats as they are."""
    image = self._check(images)
    return self._preprocess(image) if image.dtype == jnp.uint8 else image

  def _check(self, images) -> jax.Array:
    """Returns an array of images, on the device; UserError if it is none."""
    images = inputs.check_images(images)
    if isinstance(images, jax.core.Tracer):
      return images
    return jax.device_put(images, self._device)

  def _best(self, logits: jax.Array, top: int) -> list[list[Prediction]]:
    """Returns the likeliest classes by logits, float32 [B, K]."""
    found = np.asarray(logits, np.float64)
    exponentials = np.exp(found - found.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return [
      [
        Prediction(labels.display_name(self.class_names[i]), float(x[i]), int(i))
        for i in np.argsort(-x, kind='stable')[:top]
      ]
      for x in probabilities
    ]

  def _predict_readable(self, paths, top: int, batch_size: int):
    predictions = []
    for result in self.predict_files(paths, top, batch_size=batch_size):
      if result.problem is not None:
        raise result.problem
      predictions.append(result.predictions)
    return predictions

  def _read(self, path: str) -> np.ndarray | errors.UserError:
    """Returns the crop of a file, uint8 [S, S, 3], or what is wrong with it."""
    try:
      image = files.read(path, exif_orientation=self._turned)
    except errors.UserError as e:
      return e
    return self._preprocess_one(image)

  def _preprocess_one(self, image: np.ndarray) -> np.ndarray:
    """Returns the crop of an image, uint8 [S, S, 3]; few programs for all sizes."""
    height, width, _ = image.shape
    sides = [max(MIN_SIDE, 1 << (n - 1).bit_length()) for n in (height, width)]
    padded = np.zeros([*sides, 3], np.uint8)
    padded[:height, :width] = image
    padded = jax.device_put(padded, self._device)
    return np.asarray(self._preprocess(padded, shape=(height, width)))
