"""Tests the scores of single examples against scikit-learn's."""

import jax
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from advprop_jax.evaluation import scores

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(64, 12)).astype(np.float32)
LABEL = RNG.integers(0, 12, 64).astype(np.int32)
PROBABILITY = np.asarray(jax.nn.softmax(LOGITS))
CLASSES = range(12)
EXPECTED = {
  'top1': metrics.accuracy_score(LABEL, LOGITS.argmax(-1)),
  'top5': metrics.top_k_accuracy_score(LABEL, LOGITS, k=5, labels=CLASSES),
  'loss': metrics.log_loss(LABEL, PROBABILITY, labels=CLASSES),
  'brier': metrics.brier_score_loss(
    LABEL, PROBABILITY, labels=CLASSES, scale_by_half=False
  ),
}


@pytest.mark.parametrize('name', scores.SCORES)
def test_means_are_those_of_scikit_learn(name):
  values = scores.SCORES[name](LOGITS, LABEL)
  assert values.shape == (64,) and values.dtype == np.float32
  np.testing.assert_allclose(values.mean(), EXPECTED[name], rtol=1e-5)


def test_of_fewer_than_five_classes_all_are_in_the_top_five():
  assert scores.top5(LOGITS[:, :3], LABEL % 3).all()


def calibration(logits, label, weight=None):
  weight = np.ones(len(label), np.float32) if weight is None else weight
  return np.asarray(scores.bins(np.asarray(logits, np.float32), label, weight))


def test_the_mean_of_two_is_as_published():
  """Source: google-research/robustness_metrics, `uncertainty_test.py`."""
  logits = np.log(np.array([[0.45, 0.55]], np.float32))
  label = np.array([1], np.int32)
  assert scores.ece(calibration(logits, label)) == pytest.approx(0.45)
  assert float(scores.loss(logits, label)[0]) == pytest.approx(-np.log(0.55))
  assert float(scores.brier(logits, label)[0]) == pytest.approx(0.405)


def test_bins_are_those_of_tensorflow():
  confidence = PROBABILITY.max(axis=1)
  index = tf.histogram_fixed_width_bins(confidence, [0.0, 1.0], scores.NUM_BINS).numpy()
  right = LOGITS.argmax(-1) == LABEL
  found = calibration(LOGITS, LABEL)
  expected = sum(
    np.sum(index == i)
    * abs(right[index == i].mean() - confidence[index == i].astype(float).mean())
    for i in set(index.tolist())
  )
  np.testing.assert_array_equal(found[0], np.bincount(index, minlength=15))
  assert scores.ece(found) == pytest.approx(expected / 64, rel=1e-5)


def test_certainty_is_in_the_last_bin():
  found = calibration([[100.0, 0.0], [0.0, 100.0]], np.array([0, 0], np.int32))
  assert found[0].tolist() == [0] * 14 + [2]
  assert scores.ece(found) == pytest.approx(0.5)


def test_what_does_not_count_is_in_no_bin_and_in_no_table():
  logits = LOGITS.copy()
  logits[3] = np.nan
  weight = np.ones(64, np.float32)
  weight[[3, 5]] = 0
  kept = np.delete(np.arange(64), [3, 5])
  for function in (scores.bins, scores.confusion):
    found = function(logits, LABEL, weight)
    expected = function(LOGITS[kept], LABEL[kept], np.ones(62, np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_table_of_confusions_is_scikit_learns():
  found = scores.confusion(LOGITS, LABEL, np.ones(64, np.float32))
  expected = metrics.confusion_matrix(LABEL, LOGITS.argmax(-1), labels=CLASSES)
  np.testing.assert_array_equal(found, expected)


def test_any_of_several_labels_is_right():
  logits = np.array([[3, 2, 1, 0, -1, -2, -3], [0, 1, 2, 3, 4, 5, 6]], np.float32)
  right = np.array([[0, 6, -1], [1, 0, -1]], np.int32)
  assert scores.top1_of_set(logits, right).tolist() == [1, 0]
  assert scores.top5_of_set(logits, right).tolist() == [1, 0]
  right[1, 0] = 2
  assert scores.top5_of_set(logits, right).tolist() == [1, 1]
  assert scores.top1_of_set(logits, np.full((2, 3), -1)).tolist() == [0, 0]
