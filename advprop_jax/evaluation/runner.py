"""Scores of images, clean and under attack, through each branch, counted exactly.

For every branch b and every score s of `scores.py`:

  {suite}/{b}_{s}       clean images
  {suite}/{b}_pgd_{s}   attacked through b, predicted through b

The clean branch is the model; the others are for study.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import branches, parallel, pixels
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


def make_eval_step(model):
  """Returns `step(variables, batch) -> (sums, logits)`, per device.

  Sums are over all devices and over the examples whose mask is set: 'count' and those
  of `scores.SCORES`, float32 scalars. Logits are those of the device, float32 [B, K].
  """

  def step(variables, batch):
    image = pixels.to_unit(batch['image'])
    logits = model.apply(variables, image, train=False)
    label, mask = batch['label'], batch['mask'].astype(jnp.float32)
    values = {name: score(logits, label) for name, score in scores.SCORES.items()}
    values['count'] = jnp.ones_like(mask)
    # `where`, not a product: a padded image may give a loss that is not finite.
    sums = {name: jnp.where(mask > 0, x, 0.0).sum() for name, x in values.items()}
    return jax.lax.psum(sums, parallel.AXIS), logits

  return step


def make_attack_step(model, attack: gradient.Attack):
  """Returns `step(variables, batch, rng, index) -> adversarial image`, per device.

  The attack sees running statistics; `index` numbers the batches, so that each has
  random numbers of its own.
  """

  def step(variables, batch, rng, index):
    def logits_fn(image):
      return model.apply(variables, image, train=False)

    rng = parallel.device_rng(rng, index)
    return attack(logits_fn, pixels.to_unit(batch['image']), batch['label'], rng)

  return step


class Evaluator:
  """Holds the compiled steps, so that later evaluations do not compile again."""

  def __init__(self, model, attack: gradient.Attack, *, seed: int):
    """Prepares evaluation of `model`; `attack` is the one to withstand."""
    self._eval_step = parallel.data_parallel(
      make_eval_step(model), split=(False, True), split_outputs=(False, True)
    )
    self._attack_step = parallel.data_parallel(
      make_attack_step(model, attack),
      split=(False, True, False, False),
      split_outputs=True,
    )
    self._rng = jax.random.fold_in(jax.random.key(seed), _EVALUATION)

  def __call__(
    self,
    params,
    norms,
    batch_stats,
    *,
    batches,
    suite: str,
    attacked: bool = True,
    progress: Callable[[int], None] = lambda num_done: None,
  ) -> tuple[dict[str, float], Pictures | None]:
    """Evaluates every branch on every example.

    Args:
      params: shared weights, replicated.
      norms: {branch: scale and bias}.
      batch_stats: {branch: running statistics}.
      batches: sized iterable of {'image', 'label', 'mask'}, see `input/batches.py`.
      suite: first part of the metrics' names.
      attacked: whether the images are evaluated under attack as well.
      progress: called with the number of batches done, after each.

    Returns:
      The metrics; and, if attacked, pictures of the clean branch, of the first examples
      of this host, else None.
    """
    totals: dict[str, dict[str, float]] = {}
    pictures = None
    for index, batch in enumerate(batches):
      batch = parallel.shard(batch)
      for branch in norms:
        variables = branches.variables(params, norms, batch_stats, branch)
        sums, logits = self._eval_step(variables, batch)
        _add(totals.setdefault(branch, {}), sums)
        if not attacked:
          continue
        image = self._attack_step(variables, batch, self._rng, np.int32(index))
        attacked_sums, attacked_logits = self._eval_step(
          variables, {**batch, 'image': image}
        )
        _add(totals.setdefault(f'{branch}_pgd', {}), attacked_sums)
        if index == 0 and branch == branches.CLEAN:
          pictures = Pictures(
            image=pixels.to_unit(_first(batch['image'], NUM_PICTURES)),
            adversarial=_first(image, NUM_PICTURES),
            label=_first(batch['label'], NUM_PICTURES),
            logits=_first(logits, NUM_PICTURES),
            adversarial_logits=_first(attacked_logits, NUM_PICTURES),
          )
      progress(index + 1)
    metrics = {f'{suite}/num_examples': totals[branches.CLEAN]['count']}
    for name, sums in totals.items():
      for score in scores.SCORES:
        metrics[f'{suite}/{name}_{score}'] = sums[score] / sums['count']
    return metrics, pictures


def _add(totals, sums):
  """Adds a batch's sums to the running ones, in Python's double precision."""
  for quantity, value in sums.items():
    totals[quantity] = totals.get(quantity, 0.0) + float(value)


def _first(x, n: int) -> np.ndarray:
  """Returns the first n examples of an array stacked per device, [D, B, ...]."""
  x = np.asarray(x)
  return x.reshape((-1,) + x.shape[2:])[:n]
