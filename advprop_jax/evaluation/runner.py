"""Scores of images, clean and under attack, through each branch, counted exactly.

For every branch b and every score s of `scores.py`:

  {b}_{s}       clean images
  {b}_pgd_{s}   attacked through b, predicted through b

and 'num_examples', which they are means of, and 'num_unlabelled', left out since they
have no label. The clean branch is the model; the others are for study.
"""

from collections.abc import Callable
from typing import NamedTuple

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


class Result(NamedTuple):
  """What was found on a set of images."""

  metrics: dict[str, float]
  pictures: Pictures | None  # Of the first examples of this host, if attacked.


def make_step(model, attack: gradient.Attack | None, *, columns: np.ndarray | None):
  """Returns `step(variables, batch, rng) -> (sums, pictures)`, per device.

  A batch is that of `input/batches.py`. Sums are over all devices, {'': clean images,
  '_pgd': attacked}, each {'count', 'unlabelled', a score of `scores.SCORES`, ...},
  float32 scalars over the examples whose mask is set. Pictures are the fields
  of `Pictures` and the mask, of the first examples of the device; None without an
  attack.

  Args:
    model: maps images to logits, float32 [B, K].
    attack: the one to withstand, through running statistics; None: none.
    columns: the logit of each label, int32 [D]: only these count; None: all do.
  """

  def step(variables, batch, rng):
    def logits_fn(image):
      logits = model.apply(variables, image, train=False)
      return logits if columns is None else logits[:, columns]

    # An example without a label is masked; any label will do for its attack.
    label = jnp.maximum(batch['label'], 0)

    def measure(logits):
      mask = batch['mask'].astype(jnp.float32)
      values = {name: score(logits, label) for name, score in scores.SCORES.items()}
      values['count'] = jnp.ones_like(mask)
      # `where`, not a product: a padded image may give a loss that is not finite.
      sums = {name: jnp.where(mask > 0, x, 0.0).sum() for name, x in values.items()}
      sums['unlabelled'] = (batch['label'] < 0).astype(jnp.float32).sum()
      return jax.lax.psum(sums, parallel.AXIS)

    image = pixels.to_unit(batch['image'])
    logits = logits_fn(image)
    sums = {'': measure(logits)}
    if attack is None:
      return sums, None
    # By the example's position: the same on any number of devices, in any batch size.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch['position'])
    adversarial = attack(logits_fn, image, label, keys)
    adversarial_logits = logits_fn(adversarial)
    sums['_pgd'] = measure(adversarial_logits)
    shown = (image, adversarial, label, logits, adversarial_logits, batch['mask'])
    return sums, tuple(x[:NUM_PICTURES] for x in shown)

  return step


class Evaluator:
  """Holds the compiled step, so that later evaluations do not compile again."""

  def __init__(
    self,
    model,
    attack: gradient.Attack | None,
    *,
    seed: int,
    columns: np.ndarray | None = None,
  ):
    """Prepares the evaluation of a model; see `make_step`. `seed` is the attack's."""
    self._step = parallel.data_parallel(
      make_step(model, attack, columns=columns),
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
    sums: dict[str, list] = {branch: [] for branch in norms}
    under_way: list = []
    for index, batch in enumerate(parallel.prefetch(batches)):
      for branch in norms:
        variables = branches.variables(params, norms, batch_stats, branch)
        batch_sums, shown = self._step(variables, batch, self._rng)
        sums[branch].append(batch_sums)
        if index == 0 and branch == branches.CLEAN and shown is not None:
          *fields, mask = (_first(x, NUM_PICTURES) for x in shown)
          if mask.any():  # Neither padding nor what cannot be decoded is shown.
            pictures = Pictures(*(x[mask] for x in fields))
        # At most one step is under way while the next is prepared: batches are large.
        under_way = [*under_way[-1:], batch_sums]
        jax.block_until_ready(under_way[0])
      progress(index + 1)
    metrics: dict[str, float] = {}
    for branch, of_batches in sums.items():
      for kind, totals in _add(jax.device_get(of_batches)).items():
        count = totals.pop('count')
        if not count:
          raise errors.UserError(
            'no image can be evaluated: all are without a label, or cannot be decoded; '
            'allowed: a split with one at least'
          )
        metrics['num_examples'] = count
        metrics['num_unlabelled'] = totals.pop('unlabelled')
        for score, total in totals.items():
          metrics[f'{branch}{kind}_{score}'] = total / count
    return Result(metrics, pictures)


def _add(trees):
  """Returns the sums of equal trees of numbers, in Python's double precision."""
  return jax.tree.map(lambda *x: sum(map(float, x)), *trees)


def _first(x, n: int) -> np.ndarray:
  """Returns the first n examples of an array stacked per device, [D, B, ...]."""
  x = np.asarray(x)
  return x.reshape((-1,) + x.shape[2:])[:n]
