"""Losses per example, so that the caller chooses how to reduce them."""

import jax
import jax.numpy as jnp
import optax

_TINY = 1e-12


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


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the logit of the true class less the largest other one, float32 [B].

  Negative where an example is misclassified; what Square lowers.
  """
  is_true = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  others = jnp.where(is_true, -jnp.inf, logits).max(-1)
  return _logit(logits, label) - others


def dlr(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the difference of logits ratio of each example, float32 [B].

  It does not change if the logits are scaled or shifted; positive where an example is
  misclassified. Needs 3 classes. Source: Croce and Hein 2020 (AutoAttack), equation 6;
  1e-12 as in the authors' code.
  """
  largest = jax.lax.top_k(logits, 3)[0]
  return -margin(logits, label) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(logits: jax.Array, label: jax.Array, target: jax.Array) -> jax.Array:
  """Returns the DLR of each example towards a class, float32 [B].

  Needs 4 classes. Source: Croce and Hein 2020 (AutoAttack), equation 7.
  """
  largest = jax.lax.top_k(logits, 4)[0]
  scale = largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + _TINY
  return -(_logit(logits, label) - _logit(logits, target)) / scale


def _logit(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the logit of a class of each example, [B]."""
  return jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]


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
