"""AdvProp, in one step: attack, the gradient of one joint loss, one update.

A training method is a list of streams, and the step is the same for all of them:

  vanilla               clean image           -> norm 'clean'
  AdvProp               clean image           -> norm 'clean'
                        attack through 'adv'  -> norm 'adv'
  adversarial training  clean image           -> norm 'clean'
   (Kurakin et al.)     attack through 'clean' -> norm 'clean'
  smooth adv. training  attack through 'clean' -> norm 'clean'

Fast AdvProp, whose attack leaves gradients for the update, is in `fast_step.py`.

Source: Xie et al. 2020 (AdvProp), algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from advprop_jax import branches, losses, update
from advprop_jax.streams import Stream


def make_train_step(
  model,
  tx: optax.GradientTransformation,
  streams: tuple[Stream, ...],
  *,
  attacked_model=None,
  label_smoothing: float,
  ema_decay: float,
  accumulate_steps: int = 1,
  frozen: tuple[str, ...] = (),
  skip_nonfinite: bool = False,
):
  """Returns `step(state, batch) -> (state, metrics)`, for `parallel.data_parallel`.

  A batch holds the streams' images, [B, H, W, 3] as in `pixels.py`, and their labels,
  int32 [B], of one device. Metrics are float32 scalars, means over all devices, and
  those of `update.make_step`.

  Args:
    model: maps images to logits, float32 [B, K]; see `models.create_model`.
    tx: optimizer of {'params': ..., 'norms': {branch: ...}}.
    streams: what is trained on; every norm of the state has one or more.
    attacked_model: the same network with other derivatives; None: `model` itself.
    label_smoothing: see `losses.cross_entropy`; the attacks' own losses have none.
    ema_decay: see `optim.ema_update`.
    accumulate_steps: parts that the batch is computed in, see `update.accumulate`.
    frozen: patterns of what `tx` does not train, see `layer_rates.freeze`.
    skip_nonfinite: see `update.make_step`.
  """
  attacked = model if attacked_model is None else attacked_model
  groups = {x.branch: [y for y in streams if y.branch == x.branch] for x in streams}

  def gradients(trained, batch_stats, batch, rng):
    """Returns (gradients, {branch: new running statistics}, metrics) of one device."""
    params, norms = trained['params'], trained['norms']
    attack_rng, dropout_rng = jax.random.split(rng['device'])

    # 1. Attack, each stream through its own norm, and leave that norm as it is.
    images = {}
    for i, stream in enumerate(streams):
      variables = branches.variables(params, norms, batch_stats, stream.branch)
      stream_rng = jax.random.fold_in(attack_rng, i)
      images[stream.name] = stream.make_images(attacked, variables, batch, stream_rng)

    # 2. The joint loss's gradient, norm by norm: each sees its own streams only, as one
    # batch, and what it adds to the gradient of the shared weights is summed up.
    def loss_fn(params, norm, x):
      logits, updated = model.apply(
        {'params': params, 'norm': norm, 'batch_stats': x['batch_stats']},
        jnp.concatenate(x['images']),
        train=True,
        rngs={'dropout': x['rng']},
        mutable=['batch_stats'],
      )
      loss, metrics = losses.weighted_sum(
        logits, x['labels'], x['weights'], label_smoothing=label_smoothing
      )
      return loss, (updated['batch_stats'], metrics)

    inputs = {
      branch: {
        'images': [images[stream.name] for stream in group],
        'labels': [batch[stream.label_key] for stream in group],
        'weights': [jnp.float32(stream.weight) for stream in group],
        'batch_stats': batch_stats[branch],
        'rng': jax.random.fold_in(dropout_rng, i),
      }
      for i, (branch, group) in enumerate(groups.items())
    }
    grads, aux = branches.sum_gradients(loss_fn, params, norms, inputs)
    metrics: dict = {}
    for branch, group in groups.items():
      for stream, values in zip(group, aux[branch][1], strict=True):
        metrics |= {f'{stream.name}_{name}': x for name, x in values.items()}
    metrics['loss'] = sum(s.weight * metrics[f'{s.name}_loss'] for s in streams)
    return grads, {branch: aux[branch][0] for branch in groups}, metrics

  # 3. Update the shared weights and all norms together.
  return update.make_step(
    gradients,
    tx,
    ema_decay=ema_decay,
    accumulate_steps=accumulate_steps,
    frozen=frozen,
    skip_nonfinite=skip_nonfinite,
  )
