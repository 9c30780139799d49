"""Tests that a corrupted batch depends on its examples alone, whatever its size."""

import numpy as np
import pytest

from advprop_jax import errors
from advprop_jax.input import corrupted_batches, corruptions

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)


def split(batch_size, *, num_padding=2):
  """Returns batches of IMAGES, position 3 of which is masked, and padding."""
  image = np.concatenate([IMAGES, np.zeros((num_padding, 8, 8, 3), np.uint8)])
  position = np.concatenate([np.arange(10), np.full(num_padding, -1)]).astype(np.int32)
  batch = {
    'image': image,
    'label': position % 3,
    'mask': (position >= 0) & (position != 3),
    'position': position,
  }
  for x in batch.values():
    x.flags.writeable = False  # As TensorFlow's arrays are.
  return [
    {key: x[i : i + batch_size] for key, x in batch.items()}
    for i in range(0, len(image), batch_size)
  ]


def joined(batches):
  batches = list(batches)
  return {key: np.concatenate([x[key] for x in batches]) for key in batches[0]}


def corrupted(batches, name='shot_noise', severity=3, seed=5):
  return corrupted_batches.corrupt_batches(batches, name, severity, seed=seed)


@pytest.mark.parametrize('name', ['shot_noise', 'frost', 'glass_blur'])
def test_the_batch_size_changes_nothing(name):
  whole = joined(corrupted(split(12), name))
  for batch_size in (1, 3, 4):
    batches = corrupted(split(batch_size), name)
    assert len(batches) == 12 // batch_size
    for _ in range(2):  # Passes.
      result = joined(batches)
      for key, x in whole.items():
        np.testing.assert_array_equal(result[key], x)
  # Another host has the later ones alone.
  later = joined(corrupted(split(4)[1:], name))
  np.testing.assert_array_equal(later['image'], whole['image'][4:])


def test_examples_are_corrupted_and_what_is_masked_is_not():
  original = joined(split(12))
  result = joined(corrupted(split(12)))
  changed = (result['image'] != original['image']).any((1, 2, 3))
  np.testing.assert_array_equal(changed, original['mask'])
  for key in ('label', 'mask', 'position'):
    np.testing.assert_array_equal(result[key], original[key])


def test_random_numbers_are_of_seed_name_severity_and_position(monkeypatch):
  seen = []

  def spy(image, severity, rng):
    seen.append(rng.integers(1 << 60))
    return image

  monkeypatch.setitem(corruptions.CORRUPTIONS, 'fog', spy)
  monkeypatch.setitem(corruptions.CORRUPTIONS, 'snow', spy)
  for case in [('fog', 1, 0), ('snow', 1, 0), ('fog', 2, 0), ('fog', 1, 1)]:
    joined(corrupted(split(12), *case))
  assert len(set(seen)) == len(seen) == 4 * 9


def test_an_error_in_a_thread_comes_out(monkeypatch):
  def fail(image, severity, rng):
    raise MemoryError('too large')

  monkeypatch.setitem(corruptions.CORRUPTIONS, 'fog', fail)
  with pytest.raises(MemoryError, match='too large'):
    joined(corrupted(split(3), 'fog'))


def test_float_images_are_no_bytes():
  (batch,) = split(12)
  batch['image'] = batch['image'] / np.float32(255)
  with pytest.raises(TypeError, match='images are float32; allowed: uint8'):
    joined(corrupted([batch]))


def test_a_pass_that_is_given_up_leaves_no_thread():
  before = set(corrupted_batches.futures.thread._threads_queues)
  batches = iter(corrupted(split(1)))
  next(batches)
  batches.close()
  assert set(corrupted_batches.futures.thread._threads_queues) == before


@pytest.mark.parametrize(
  ('name', 'severity', 'message'),
  [
    ('fogg', 1, "unknown corruption 'fogg'; did you mean 'fog'.*allowed: brightness, "),
    ('fog', 0, 'severity 0 of a corruption is unknown; allowed: 1 to 5'),
  ],
)
def test_what_is_unknown_is_refused_at_once(name, severity, message):
  with pytest.raises(errors.UserError, match=message) as e:
    corrupted(split(4), name, severity)
  assert '\n' not in str(e.value)
