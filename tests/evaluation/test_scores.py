"""Tests the scores of single examples against scikit-learn's."""

import jax
import numpy as np
import pytest
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
}


@pytest.mark.parametrize('name', scores.SCORES)
def test_means_are_those_of_scikit_learn(name):
  values = scores.SCORES[name](LOGITS, LABEL)
  assert values.shape == (64,) and values.dtype == np.float32
  np.testing.assert_allclose(values.mean(), EXPECTED[name], rtol=1e-5)


def test_of_fewer_than_five_classes_all_are_in_the_top_five():
  assert scores.top5(LOGITS[:, :3], LABEL % 3).all()
