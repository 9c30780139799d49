"""Accuracy and loss, clean and under attack, through each branch, counted exactly.

For every branch b:

  {prefix}/{b}_top1, _top5, _loss           clean images
  {prefix}/{b}_pgd_top1, _pgd_top5, _pgd_loss   attacked through b, predicted through b

The clean branch is the model; the others are for study.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import branches, losses, parallel, pixels
from advprop_jax.attacks import gradient

_EVALUATION = 0x0E7A1  # Any number that training does not fold in.


class Pictures(NamedTuple):
  """A few examples before and after the attack through the clean branch, numpy."""

  image: np.ndarray  # float32 [N, H, W, 3] in [0, 1]
  adversarial: np.ndarray
  label: np.ndarray  # int32 [N]
  logits: np.ndarray  # float32 [N, K]
  adversarial_logits: np.ndarray


def make_eval_step(model):
  """Returns `step(variables, batch) -> (sums, logits)`, per device.

  Sums are over all devices and over the examples whose mask is set: 'count', 'loss',
  'top1', 'top5', float32 scalars. Logits are those of the device, float32 [B, K].
  """

  def step(variables, batch):
    image = pixels.to_unit(batch['image'])
    logits = model.apply(variables, image, train=False)
    label, mask = batch['label'], batch['mask'].astype(jnp.float32)
    k = min(5, logits.shape[-1])
    in_top = jax.lax.top_k(logits, k)[1] == label[:, None]
    values = {
      'count': jnp.ones_like(mask),
      'loss': losses.cross_entropy(logits, label),
      'top1': in_top[:, 0].astype(jnp.float32),
      'top5': in_top.any(axis=-1).astype(jnp.float32),
    }
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
    # Folded, or its first children would be keys of the training state.
    self._rng = jax.random.fold_in(jax.random.key(seed), _EVALUATION)

  def __call__(
    self,
    params,
    norms,
    batch_stats,
    *,
    batches,
    prefix: str,
    num_pictures: int,
    progress: Callable[[int], None] = lambda num_done: None,
  ) -> tuple[dict[str, float], Pictures]:
    """Evaluates every branch on every example.

    Args:
      params: shared weights, replicated.
      norms: {branch: scale and bias}.
      batch_stats: {branch: running statistics}.
      batches: sized iterable of {'image', 'label', 'mask'}, see `input/batches.py`.
      prefix: of the metrics' names, the split.
      num_pictures: how many examples of this host's first batch to return.
      progress: called with the number of batches done, after each.

    Returns:
      The metrics, and pictures of the clean branch.
    """
    totals, pictures = {}, None
    for index, batch in enumerate(batches):
      batch = parallel.shard(batch)
      for branch in norms:
        variables = branches.variables(params, norms, batch_stats, branch)
        sums, logits = self._eval_step(variables, batch)
        image = self._attack_step(variables, batch, self._rng, np.int32(index))
        attacked_sums, attacked_logits = self._eval_step(
          variables, {**batch, 'image': image}
        )
        _add(totals.setdefault(branch, {}), sums)
        _add(totals.setdefault(f'{branch}_pgd', {}), attacked_sums)
        if index == 0 and branch == branches.CLEAN:
          pictures = Pictures(
            image=pixels.to_unit(_first(batch['image'], num_pictures)),
            adversarial=_first(image, num_pictures),
            label=_first(batch['label'], num_pictures),
            logits=_first(logits, num_pictures),
            adversarial_logits=_first(attacked_logits, num_pictures),
          )
      progress(index + 1)
    metrics = {f'{prefix}/num_examples': totals[branches.CLEAN]['count']}
    for name, sums in totals.items():
      for quantity in ('top1', 'top5', 'loss'):
        metrics[f'{prefix}/{name}_{quantity}'] = sums[quantity] / sums['count']
    return metrics, pictures


def _add(totals, sums):
  """Adds a batch's sums to the running ones, in Python's double precision."""
  for quantity, value in sums.items():
    totals[quantity] = totals.get(quantity, 0.0) + float(value)


def _first(x, n: int) -> np.ndarray:
  """Returns the first n examples of an array stacked per device, [D, B, ...]."""
  x = np.asarray(x)
  return x.reshape((-1,) + x.shape[2:])[:n]
