"""Scores of images, clean and under attack, through each branch, counted exactly.

For every branch b and every score s of `scores.py`:

  {b}_{s}       clean images
  {b}_pgd_{s}   attacked through b, predicted through b

and 'num_examples', which they are means of, and 'num_unlabelled', left out since they
have no label that counts. The clean branch is the model; the others are for study.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import branches, errors, parallel, pixels
from advprop_jax.attacks import gradient
from advprop_jax.evaluation import scores

# `key(seed)` is split into the keys of the initial weights and of the training run;
# folded, so that evaluation shares neither.
_EVALUATION = 0x0E7A1
NUM_PICTURES = 8  # Examples in the picture of the attack.


class Pictures(NamedTuple):
  """A few examples before and after the attack through the clean branch, numpy."""

  image: np.ndarray  # float32 [N, H, W, 3] in [0, 1]
  adversarial: np.ndarray
  label: np.ndarray  # int32 [N]
  logits: np.ndarray  # float32 [N, K]
  adversarial_logits: np.ndarray


class Details(NamedTuple):
  """What the mean scores of images through a branch hide, numpy."""

  bins: np.ndarray  # float64 [3, NUM_BINS], see `scores.bins`.
  confusion: np.ndarray  # int64 [K, K], see `scores.confusion`.


class Result(NamedTuple):
  """What was found on a set of images."""

  metrics: dict[str, float]
  pictures: Pictures | None  # Of the first examples of this host, if attacked.
  # By branch, '{b}' and '{b}_pgd'; empty where several labels of an image are right.
  details: dict[str, Details]


def make_step(
  model,
  attack: gradient.Attack | None,
  *,
  columns: np.ndarray | None = None,
  sets: np.ndarray | None = None,
  clean: bool = True,
):
  """Returns `step(variables, batch, rng) -> (sums, pictures)`, per device.

  A batch is that of `input/batches.py`, whose labels may be int32 [B, L] where several
  are right, padded with -1. Sums are over all devices, {'': clean images, '_pgd':
  attacked}, each {'count', 'unlabelled', a score of `scores.SCORES` or of SET_SCORES,
  ..., the fields of `Details`}, float32 over the examples whose mask is set. Pictures
  are the fields of `Pictures` and the mask, of the first examples of the device; None
  without an attack.

  Args:
    model: maps images to logits, float32 [B, K].
    attack: the one to withstand, through running statistics; None: none.
    columns: the logit of each label, int32 [D]: only these count; None: all do.
    sets: the logits that are right for each label, int32 [D, L]; see `LabelSpace`.
    clean: whether the scores of images that are not attacked are wanted.
  """

  def step(variables, batch, rng):
    def logits_fn(image):
      logits = model.apply(variables, image, train=False)
      return logits if columns is None else logits[:, columns]

    label, right = _labels(batch['label'], sets)

    def measure(logits):
      weight = batch['mask'].astype(jnp.float32)
      if right is None:
        values = {name: score(logits, label) for name, score in scores.SCORES.items()}
      else:
        values = {
          name: score(logits, right) for name, score in scores.SET_SCORES.items()
        }
      values['count'] = jnp.ones_like(weight)
      # `where`, not a product: a padded image may give a loss that is not finite.
      sums = {name: jnp.where(weight > 0, x, 0.0).sum() for name, x in values.items()}
      if right is None:
        sums['bins'] = scores.bins(logits, label, weight)
        sums['confusion'] = scores.confusion(logits, label, weight)
      is_unlabelled = (batch['label'] < 0).reshape([len(weight), -1]).all(axis=1)
      sums['unlabelled'] = is_unlabelled.astype(jnp.float32).sum()
      return jax.lax.psum(sums, parallel.AXIS)

    image = pixels.to_unit(batch['image'])
    sums: dict[str, Any] = {}
    shown: tuple = ()
    if clean:
      logits = logits_fn(image)
      sums[''] = measure(logits)
    if attack is not None:
      # By the example's position: the same on any number of devices, in any batch size.
      keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch['position'])
      adversarial = attack(logits_fn, image, label, keys)
      adversarial_logits = logits_fn(adversarial)
      sums['_pgd'] = measure(adversarial_logits)
      if not clean:  # For the pictures alone.
        logits = logits_fn(image[:NUM_PICTURES])
      shown = (image, adversarial, label, logits, adversarial_logits, batch['mask'])
      shown = tuple(x[:NUM_PICTURES] for x in shown)
    return sums, shown or None

  return step


def _labels(label, sets):
  """Returns a label for each example, int32 [B], and all right ones, [B, L] or None.

  An example without a label is masked; any label will do for its attack.
  """
  if sets is not None:
    right = jnp.asarray(sets)[jnp.maximum(label, 0)]
  elif label.ndim == 2:
    right = label
  else:
    return jnp.maximum(label, 0), None
  return jnp.maximum(right[:, 0], 0), right


class Evaluator:
  """Holds the compiled step, so that later evaluations do not compile again."""

  def __init__(
    self,
    model,
    attack: gradient.Attack | None,
    *,
    seed: int,
    **options,
  ):
    """Prepares the evaluation of a model.

    Args:
      model: see `make_step`.
      attack: likewise.
      seed: of the attack.
      **options: of `make_step`.
    """
    self._step = parallel.data_parallel(
      make_step(model, attack, **options),
      split=(False, True, False),
      split_outputs=(False, True),
    )
    self._rng = jax.random.fold_in(jax.random.key(seed), _EVALUATION)

  def __call__(
    self,
    params,
    norms,
    batch_stats,
    *,
    batches,
    progress: Callable[[int], None] = lambda num_done: None,
  ) -> Result:
    """Evaluates every branch on every example.

    Args:
      params: shared weights, replicated.
      norms: {branch: scale and bias}.
      batch_stats: {branch: running statistics}.
      batches: sized iterable of batches, see `input/batches.py`.
      progress: called with the number of batches begun, after each.

    Raises:
      UserError: no example counts.
    """
    pictures = None
    totals: dict[str, Any] = dict.fromkeys(norms)
    under_way: list = []

    def add_oldest():
      branch, sums = under_way.pop(0)
      # In double precision, as numbers of examples and sums over them need it.
      sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
      before = totals[branch]
      totals[branch] = sums if before is None else jax.tree.map(np.add, before, sums)

    for index, batch in enumerate(parallel.prefetch(batches)):
      for branch in norms:
        variables = branches.variables(params, norms, batch_stats, branch)
        sums, shown = self._step(variables, batch, self._rng)
        under_way.append((branch, sums))
        if index == 0 and branch == branches.CLEAN and shown is not None:
          *fields, mask = (parallel.join(x)[:NUM_PICTURES] for x in shown)
          if mask.any():  # Neither padding nor what cannot be decoded is shown.
            pictures = Pictures(*(x[mask] for x in fields))
        # At most one step is under way while the next is prepared: batches are large.
        if len(under_way) > 1:
          add_oldest()
      progress(index + 1)
    add_oldest()
    metrics: dict[str, float] = {}
    details: dict[str, Details] = {}
    for branch, by_kind in totals.items():
      for kind, total in by_kind.items():
        _describe(f'{branch}{kind}', total, metrics, details)
    return Result(metrics, pictures, details)


def _describe(name: str, total: dict, metrics: dict, details: dict):
  """Adds what the sums over all examples say to the metrics and the details."""
  count = float(total.pop('count'))
  if not count:
    raise errors.UserError(
      'no image can be evaluated: all are without a label, or cannot be decoded; '
      'allowed: a split with one at least'
    )
  metrics['num_examples'] = count
  metrics['num_unlabelled'] = float(total.pop('unlabelled'))
  if 'bins' in total:
    found = Details(total.pop('bins'), total.pop('confusion').astype(np.int64))
    details[name] = found
    metrics[f'{name}_ece'] = scores.ece(found.bins)
  for score, x in total.items():
    metrics[f'{name}_{score}'] = float(x) / count
