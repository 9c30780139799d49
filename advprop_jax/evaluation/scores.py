"""What is measured of an example, as tables; evaluation reports the means.

Calibration is measured over all examples: from the sums in NUM_BINS bins of confidence,
the largest probability.
"""

import jax
import jax.numpy as jnp
import numpy as np

from advprop_jax import losses

# Of equal width, from 0 to 1. Source: google-research/robustness_metrics,
# `metrics/uncertainty.py`.
NUM_BINS = 15


def top1(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns whether the largest logit is the label's, float32 [B]."""
  return _in_top(logits, label[:, None], 1)


def top5(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns whether the label's logit is among the five largest, float32 [B]."""
  return _in_top(logits, label[:, None], 5)


def loss(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the cross-entropy in nats without label smoothing, float32 [B]: the NLL."""
  return losses.cross_entropy(logits, label)


def brier(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the squared distance to the label's one-hot vector, float32 [B], 0 to 2."""
  right = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
  return jnp.square(jax.nn.softmax(logits) - right).sum(axis=-1)


# Name, as in 'val/clean_top1' -> function of logits, float32 [B, K], and label, int32
# [B], to one value per example, float32 [B].
SCORES = {'top1': top1, 'top5': top5, 'loss': loss, 'brier': brier}


def top1_of_set(logits: jax.Array, right: jax.Array) -> jax.Array:
  """Returns whether the largest logit is a right one, float32 [B]."""
  return _in_top(logits, right, 1)


def top5_of_set(logits: jax.Array, right: jax.Array) -> jax.Array:
  """Returns whether a right one is among the five largest logits, float32 [B]."""
  return _in_top(logits, right, 5)


# The same where several labels may be right, int32 [B, L], padded with -1. Source of
# the rule: google-research/reassessed-imagenet.
SET_SCORES = {'top1': top1_of_set, 'top5': top5_of_set}


def bins(logits: jax.Array, label: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns sums for calibration, float32 [3, NUM_BINS].

  They are, of the examples in each bin: their number, their confidence, how many are
  right.

  Args:
    logits: float32 [B, K].
    label: int32 [B].
    weight: float32 [B], 1 or 0 for an example that does not count.
  """
  confidence = jax.nn.softmax(logits).max(axis=-1)
  # What is not finite is in the last bin; its weight may be 0, and it is no number.
  confidence = jnp.where(jnp.isfinite(confidence), confidence, 1.0)
  index = jnp.clip((confidence * NUM_BINS).astype(jnp.int32), 0, NUM_BINS - 1)
  values = jnp.stack([weight, weight * confidence, weight * top1(logits, label)])
  return jnp.zeros([3, NUM_BINS]).at[:, index].add(values)


def confusion(logits: jax.Array, label: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns how often each class, by row, was taken for which, float32 [K, K].

  Args: as `bins` has them.
  """
  num_classes = logits.shape[-1]
  predicted = logits.argmax(axis=-1)
  return jnp.zeros([num_classes, num_classes]).at[label, predicted].add(weight)


def ece(sums: np.ndarray) -> float:
  """Returns the expected calibration error: by how far confidence misses accuracy.

  The mean over all examples of |accuracy - mean confidence| of their bin.

  Args:
    sums: [3, NUM_BINS], those of `bins` over all examples.
  """
  count, confidence, right = np.asarray(sums, np.float64)
  return float(np.abs(right - confidence).sum() / count.sum())


def _in_top(logits, right, k):
  k = min(k, logits.shape[-1])
  in_top = jax.lax.top_k(logits, k)[1][:, :, None] == right[:, None, :]
  return in_top.any(axis=(1, 2)).astype(jnp.float32)
