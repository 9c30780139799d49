"""Losses per example, so that the caller chooses how to reduce them."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
  logits: jax.Array, label: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
  """Returns the softmax cross-entropy of each example, float32 [B].

  Args:
    logits: float32 [B, K].
    label: int32 [B], in [0, K).
    label_smoothing: share of the target spread evenly over all K classes, the true one
      included. Source: the official recipe, 0.1 (`softmax_cross_entropy`, TensorFlow).
  """
  hard = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  if not label_smoothing:
    return hard
  uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
  return (1.0 - label_smoothing) * hard + label_smoothing * uniform


def weighted_sum(logits, labels, weights, *, label_smoothing: float):
  """Returns the weighted sum of the mean losses of consecutive parts of a batch.

  Args:
    logits: float32 [B, K].
    labels: of every part, int32 [B_i]; they add up to B.
    weights: of every part's mean loss, float32 [].
    label_smoothing: see `cross_entropy`.

  Returns:
    (loss, [{'loss': mean loss, 'top1': accuracy} of every part]).
  """
  loss, metrics, start = 0.0, [], 0
  for label, weight in zip(labels, weights, strict=True):
    part = logits[start : start + len(label)]
    start += len(label)
    mean = cross_entropy(part, label, label_smoothing=label_smoothing).mean()
    loss += weight * mean
    metrics.append({'loss': mean, 'top1': (part.argmax(-1) == label).mean()})
  return loss, metrics
