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
