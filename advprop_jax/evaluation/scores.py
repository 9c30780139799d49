"""What is measured of an example, as a table; evaluation reports the means."""

import jax
import jax.numpy as jnp

from advprop_jax import losses


def top1(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns whether the largest logit is the label's, float32 [B]."""
  return _in_top(logits, label, 1)


def top5(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns whether the label's logit is among the five largest, float32 [B]."""
  return _in_top(logits, label, 5)


def loss(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the cross-entropy without label smoothing, float32 [B]."""
  return losses.cross_entropy(logits, label)


# Name, as in 'val/clean_top1', -> function of logits, float32 [B, K], and label, int32
# [B], to one value per example, float32 [B].
SCORES = {'top1': top1, 'top5': top5, 'loss': loss}


def _in_top(logits, label, k):
  k = min(k, logits.shape[-1])
  in_top = jax.lax.top_k(logits, k)[1] == label[:, None]
  return in_top.any(axis=-1).astype(jnp.float32)
