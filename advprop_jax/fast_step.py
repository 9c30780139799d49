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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from advprop_jax import losses, parallel, pixels, update
from advprop_jax.attacks import balls
from advprop_jax.branches import ADV, CLEAN

NOISE = 'noise'  # In the names of metrics: images at the attack's start.


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
  frozen: tuple[str, ...] = (),
  skip_nonfinite: bool = False,
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
    frozen: patterns of what `tx` does not train, see `layer_rates.freeze`.
    skip_nonfinite: see `update.make_step`.
  """
  c = components

  def loss_fn(params, norm, image, label, batch_stats, rng, smoothing, mode):
    """Returns the summed loss, new statistics and metrics."""
    logits, updated = model.apply(
      {'params': params, 'norm': norm, 'batch_stats': batch_stats},
      image,
      **mode,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    (total, (metrics,)) = losses.weighted_sum(
      logits, [label], [len(label)], label_smoothing=smoothing
    )
    return total, (updated['batch_stats'], metrics)

  def learn(params, norm, images, labels, stats, rng, **mode):
    """Returns ((gradients of params, norm, images), (new statistics, metrics))."""
    grad_fn = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)
    mode = {'train': True, **mode}
    return grad_fn(params, norm, images, labels, stats, rng, label_smoothing, mode)

  def gradients(trained, batch_stats, batch, rng):
    """Returns (gradients, {branch: new running statistics}, metrics) of one device."""
    params, norms = trained['params'], trained['norms']
    noise_rng, *rngs = jax.random.split(rng['device'], 4)
    image, label = pixels.to_unit(batch['image']), batch['label']
    num_adv = c.num_attacked(len(label))
    num_clean = len(label) - num_adv
    stats, metrics, passes = dict(batch_stats), {}, []

    # 1. The clean part, through its own norm.
    (of_params, of_norm, _), (stats[CLEAN], metrics[CLEAN]) = learn(
      params,
      norms[CLEAN],
      image[:num_clean],
      label[:num_clean],
      stats[CLEAN],
      rngs[0],
    )
    passes.append(_Pass(CLEAN, CLEAN, 1.0, num_clean, of_params, of_norm))

    # 2. The attack. Its backward pass is one for the images, and, reused, the weights.
    center, adv_label = image[num_clean:], label[num_clean:]
    start = center + balls.noise_linf(noise_rng, center, c.epsilon)
    attacked = (params, norms[ADV], start, adv_label, stats[ADV], rngs[1])
    running = c.statistics == 'running'
    if c.reuse_gradient:
      (of_params, of_norm, ascent), (stats[ADV], metrics[NOISE]) = learn(
        *attacked, use_running_average=running
      )
      passes.append(_Pass(NOISE, ADV, c.noise_weight, num_adv, of_params, of_norm))
    else:
      # As in `streams.py`: no smoothed label, no dropout, no new statistics. (In this
      # case the released code moves the running statistics, too.)
      ascent, (_, metrics[NOISE]) = jax.grad(loss_fn, argnums=2, has_aux=True)(
        *attacked, 0.0, {'train': False, 'use_running_average': running}
      )
    adversarial = start + c.step_size * jnp.sign(ascent)
    adversarial = balls.project_linf(adversarial, center, c.epsilon)
    if c.shuffle_over_devices:
      adversarial, adv_label = parallel.shuffle(rng['shared'], (adversarial, adv_label))

    # 3. The attacked part, through the norm that it was attacked through.
    (of_params, of_norm, _), (stats[ADV], metrics[ADV]) = learn(
      params, norms[ADV], adversarial, adv_label, stats[ADV], rngs[2]
    )
    passes.append(_Pass(ADV, ADV, c.adversarial_weight, num_adv, of_params, of_norm))

    # 4. Each gradient is a weighted mean over the images behind it.
    count = _count(passes)
    grads = {'params': _weighted_sum(passes, 'of_params', count), 'norms': {}}
    for branch in norms:
      own = [x for x in passes if x.branch == branch]
      divisor = _count(own) if c.own_counts else count
      grads['norms'][branch] = _weighted_sum(own, 'of_norm', divisor)
    result = {
      f'{n}_{key}': x for n, found in metrics.items() for key, x in found.items()
    }
    result['loss'] = sum(
      x.weight * x.num_images * metrics[x.name]['loss'] / count for x in passes
    )
    return grads, stats, result

  return update.make_step(
    gradients,
    tx,
    ema_decay=ema_decay,
    accumulate_steps=accumulate_steps,
    frozen=frozen,
    skip_nonfinite=skip_nonfinite,
  )


class _Pass(NamedTuple):
  """A forward and a backward pass that trains."""

  name: str
  branch: str
  weight: float  # Of an image.
  num_images: int
  of_params: Any  # Gradients of the summed loss.
  of_norm: Any


def _count(passes: list[_Pass]) -> float:
  """Returns the weight of all their images."""
  return sum(x.weight * x.num_images for x in passes)


def _weighted_sum(passes: list[_Pass], field: str, divisor: float):
  """Returns sum(weight * gradient) / divisor."""
  trees = [getattr(x, field) for x in passes]
  return jax.tree.map(
    lambda *leaves: (
      sum(x.weight * leaf for x, leaf in zip(passes, leaves, strict=True)) / divisor
    ),
    *trees,
  )
