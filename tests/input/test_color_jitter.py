"""Tests colour jitter against Pillow, and the noise of its light by its statistics."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import tensorflow as tf

from advprop_jax.input import color_jitter

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
NONE = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'lighting': 0.0}


@pytest.fixture(scope='module')
def jitter():
  """Returns f(seed, amounts) -> uint8 image, of NOISE."""

  @tf.function(reduce_retracing=True)
  def call(seed, brightness, contrast, saturation, lighting):
    return color_jitter.color_jitter(
      tf.constant(NOISE),
      tf.stack([seed, 0]),
      brightness=brightness,
      contrast=contrast,
      saturation=saturation,
      lighting=lighting,
    )

  def run(seed, **amounts):
    values = {k: tf.constant(v, tf.float32) for k, v in {**NONE, **amounts}.items()}
    return call(tf.constant(seed), **values).numpy()

  return run


@pytest.mark.parametrize('factor', [0.6, 1.0, 1.4])
@pytest.mark.parametrize(
  'ours, theirs',
  [
    (lambda x, f: x * f, PIL.ImageEnhance.Brightness),
    (color_jitter.scale_saturation, PIL.ImageEnhance.Color),
  ],
)
def test_every_op_is_that_of_pillow(ours, theirs, factor):
  image = tf.constant(NOISE, tf.float32)
  result = np.clip(ours(image, tf.constant(factor)).numpy(), 0, 255)
  expected = np.asarray(theirs(PIL.Image.fromarray(NOISE)).enhance(factor), np.float32)
  # Pillow rounds the grey image, and its mean, before.
  assert np.abs(result - expected).max() <= 1.5


def test_contrast_is_about_the_mean_of_each_channel():
  image = tf.constant(NOISE, tf.float32)
  result = color_jitter.scale_contrast(image, tf.constant(0.6)).numpy()
  means = NOISE.mean((0, 1))
  np.testing.assert_allclose(result.mean((0, 1)), means, rtol=1e-5)
  np.testing.assert_allclose(result.std((0, 1)), 0.6 * NOISE.std((0, 1)), rtol=1e-5)


def test_values_are_cut_off_and_fractions_dropped(jitter):
  """One factor explains every value: x <= factor * NOISE < x + 1, or 255."""
  num_cut = 0
  for seed in range(20):
    result = jitter(seed, brightness=0.4).astype(float)
    below = (result < 255) & (NOISE > 0)
    low = (result[below] / NOISE[below]).max()
    high = ((result[below] + 1) / NOISE[below]).min()
    assert low <= high + 1e-6
    cut = result == 255
    assert (NOISE[cut] * high >= 255 - 1e-3).all()
    num_cut += np.count_nonzero(cut & (NOISE < 250))
  assert num_cut > 1000


def test_without_amounts_nothing_changes(jitter):
  np.testing.assert_array_equal(jitter(0), NOISE)


def test_a_seed_draws_the_same_and_another_one_another(jitter):
  amounts = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'lighting': 0.1}
  np.testing.assert_array_equal(jitter(1, **amounts), jitter(1, **amounts))
  assert (jitter(1, **amounts) != jitter(2, **amounts)).any()


def test_factors_are_even_in_their_range(jitter):
  dark = NOISE < 150  # No value is cut off at 255.
  factors = [
    jitter(seed, brightness=0.4)[dark].mean() / NOISE[dark].mean()
    for seed in range(300)
  ]
  assert 0.59 < min(factors) < 0.65 and 1.35 < max(factors) < 1.41
  np.testing.assert_allclose(np.std(factors), 0.8 / np.sqrt(12), rtol=0.1)


def test_light_has_the_covariance_of_the_principal_components():
  amounts = 0.1 * np.random.default_rng(0).standard_normal((2000, 3)).astype('f')
  black = tf.zeros([1, 1, 3])
  shifts = np.stack(
    [color_jitter.add_light(black, tf.constant(a)).numpy().ravel() for a in amounts]
  )
  components = np.array(color_jitter.PRINCIPAL_COMPONENTS)
  expected = components @ np.diag(np.square(color_jitter.PRINCIPAL_STD)) @ components.T
  np.testing.assert_allclose(np.cov(shifts.T), 25.5**2 * expected, rtol=0.1, atol=0.1)
  # They are orthonormal: rounded to four digits in the source.
  np.testing.assert_allclose(components.T @ components, np.eye(3), atol=1e-3)
