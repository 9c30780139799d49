"""Fast AdvProp, in one step: adversarial examples for a fifth more than vanilla.

The batch is split. Most of it is clean and goes through the norm 'clean', a fifth is
attacked and goes through the norm 'adv', and the attack's own backward pass is used
twice:

  clean images    -> norm 'clean'                       -> gradients, weight 1
  images + noise  -> norm 'adv', in training mode       -> gradients, weight 1/2, and
                                                           the images' own gradients
  one step along their sign, shuffled over the devices
                  -> norm 'adv'                         -> gradients, weight 1/2

Of N images that is 1.2 N forward and backward passes, where AdvProp with one step has
3 N. Each gradient is divided by the weight of the images behind it.

Source: Mei et al. 2022 (Fast AdvProp), section 4, and its released update
(`imagenet.py` of meijieru/fast_advprop).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from advprop_jax import losses, parallel, pixels, update
from advprop_jax.attacks import balls
from advprop_jax.branches import ADV, CLEAN


class Components(NamedTuple):
  """What Fast AdvProp is made of; each can be changed alone."""

  adversarial_share: float  # Of a device's images that are attacked, not clean.
  epsilon: float  # Radius of the ball, in pixel units of [0, 1].
  step_size: float  # Length of the attack's one step, in the same units.
  statistics: str  # The attack goes through 'batch' or 'running' ones of its norm.
  reuse_gradient: bool  # Whether the attack's backward pass trains, too.
  # Whether attacked images change devices before they are learnt from, so that a norm's
  # statistics do not give away how they were made.
  shuffle_over_devices: bool
  # Of an image with noise, relative to a clean one; without reuse it is 0.
  noise_weight: float
  adversarial_weight: float  # Of an attacked image, relative to a clean one.
  # Divide the gradient of a norm by the weight of the images that it has seen;
  # otherwise everything is divided by the weight of all.
  own_counts: bool

  def num_attacked(self, num_images: int) -> int:
    """Returns how many images of a device's batch are attacked."""
    return round(self.adversarial_share * num_images)


def make_fast_step(
  model,
  tx: optax.GradientTransformation,
  components: Components,
  *,
  label_smoothing: float,
  ema_decay: float,
  accumulate_steps: int = 1,
):
  """Returns `step(state, batch) -> (state, metrics)`, for `parallel.data_parallel`.

  Batch and metrics are those of `train_step.make_train_step`; the streams are called
  'clean', 'noise' and 'adv'.

  Args:
    model: maps images to logits, float32 [B, K].
    tx: optimizer of {'params': ..., 'norms': {branch: ...}}.
    components: see there.
    label_smoothing: see `losses.cross_entropy`; the reused gradient has it, too.
    ema_decay: see `optim.ema_update`.
    accumulate_steps: parts that the batch is computed in, see `update.accumulate`.
  """
  c = components

  def loss_fn(params, norm, image, label, batch_stats, rng, mode):
    """Returns the summed loss, new c.statistics and metrics."""
    logits, updated = model.apply(
      {'params': params, 'norm': norm, 'batch_stats': batch_stats},
      image,
      **mode,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    (total, (metrics,)) = losses.weighted_sum(
      logits, [label], [len(label)], label_smoothing=label_smoothing
    )
    return total, (updated['batch_stats'], metrics)

  grad_fn = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)
  train = {'train': True}
  # Without reuse the attack is that of `streams.py`: no dropout, no new statistics.
  # There the released code moves the running statistics, too.
  attack_mode = {
    'train': c.reuse_gradient,
    'use_running_average': c.statistics == 'running',
  }

  def gradients(trained, batch_stats, batch, rng):
    """Returns (gradients, {branch: new running statistics}, metrics) of one device."""
    params, norms = trained['params'], trained['norms']
    noise_rng, *rngs = jax.random.split(rng['device'], 4)
    image, label = pixels.to_unit(batch['image']), batch['label']
    num_adv = c.num_attacked(len(label))
    num_clean = len(label) - num_adv
    clean_label, adv_label = label[:num_clean], label[num_clean:]

    # 1. The clean part, through its own norm.
    (clean, clean_norm, _), (clean_stats, clean_metrics) = grad_fn(
      params,
      norms[CLEAN],
      image[:num_clean],
      clean_label,
      batch_stats[CLEAN],
      rngs[0],
      train,
    )

    # 2. The attack: one backward pass, for the images and for the weights.
    center = image[num_clean:]
    start = center + balls.noise_linf(noise_rng, center, c.epsilon)
    (noise, noise_norm, ascent), (noise_stats, noise_metrics) = grad_fn(
      params, norms[ADV], start, adv_label, batch_stats[ADV], rngs[1], attack_mode
    )
    adversarial = start + c.step_size * jnp.sign(ascent)
    adversarial = balls.project_linf(adversarial, center, c.epsilon)
    if c.shuffle_over_devices:
      adversarial, adv_label = parallel.shuffle(rng['shared'], (adversarial, adv_label))

    # 3. The attacked part, through the norm that it was attacked through.
    adv_stats = noise_stats if c.reuse_gradient else batch_stats[ADV]
    (adv, adv_norm, _), (adv_stats, adv_metrics) = grad_fn(
      params, norms[ADV], adversarial, adv_label, adv_stats, rngs[2], train
    )

    # 4. Each gradient is a weighted mean over the images behind it.
    weights = (1.0, c.noise_weight, c.adversarial_weight)
    adv_count = num_adv * (c.noise_weight + c.adversarial_weight)
    count = num_clean + adv_count
    totals = [
      metrics['loss'] * n
      for metrics, n in (
        (clean_metrics, num_clean),
        (noise_metrics, num_adv),
        (adv_metrics, num_adv),
      )
    ]
    grads = {
      'params': _weighted_mean((clean, noise, adv), weights, count),
      'norms': {
        CLEAN: _weighted_mean(
          [clean_norm], [1.0], num_clean if c.own_counts else count
        ),
        ADV: _weighted_mean(
          (noise_norm, adv_norm), weights[1:], adv_count if c.own_counts else count
        ),
      },
    }
    metrics = {
      f'{name}_{key}': x
      for name, values in [
        (CLEAN, clean_metrics),
        ('noise', noise_metrics),
        (ADV, adv_metrics),
      ]
      for key, x in values.items()
    }
    metrics['loss'] = _weighted_mean(totals, weights, count)
    return grads, {CLEAN: clean_stats, ADV: adv_stats}, metrics

  return update.make_step(
    gradients, tx, ema_decay=ema_decay, accumulate_steps=accumulate_steps
  )


def _weighted_mean(trees, weights, count: float):
  """Returns sum(weight * tree) / count."""
  return jax.tree.map(
    lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)) / count,
    *trees,
  )
