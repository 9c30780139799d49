"""Tests the corruptions against the published code's results, and loops of our own."""

import colorsys
import pathlib

import golden_corruptions
import numpy as np
import pytest
from scipy import ndimage

from advprop_jax import errors
from advprop_jax.evaluation import corruption_error
from advprop_jax.input import corruption_fields, corruption_ops, corruptions

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden_corruptions.npz')
SMALL = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
SEVERITIES = range(1, 6)
# Of the results, the share that may be one level off: sums in another order, which in
# a grey area of level 100 lie on either side of it.
SHARES = {('defocus_blur', 3): 0.08, ('saturate', 3): 0.08}


class OldRandom:
  """The numbers of `np.random.seed(seed)`, under the names of a Generator."""

  def __init__(self, seed):
    state = np.random.RandomState(seed)
    self.normal, self.uniform, self.poisson = state.normal, state.uniform, state.poisson
    self.integers = state.randint


def old_random(name, seed):
  if name == 'impulse_noise':  # scikit-image draws from a Generator.
    return np.random.default_rng(np.random.RandomState(seed).randint(1 << 30))
  return OldRandom(seed)


@pytest.mark.parametrize('name', [x for x in corruptions.CORRUPTIONS if x != 'frost'])
def test_results_are_those_of_the_published_code(name):
  image = golden_corruptions.image()
  every = golden_corruptions.EVERY
  for severity in SEVERITIES:
    rng = old_random(name, severity)
    result = corruptions.CORRUPTIONS[name](image, severity, rng)
    change = golden_corruptions.change(result, image)
    assert change == pytest.approx(GOLDEN[f'{name}_change'][severity - 1], rel=0.003)
    expected = GOLDEN[name][severity - 1].astype(int)
    difference = np.abs(expected - result[::every, ::every])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= SHARES.get((name, severity), 0.02)


def test_frost_changes_images_as_much_as_the_published_photographs():
  image = golden_corruptions.image()
  changes = [[] for _ in corruption_fields.FROSTS]
  for seed in range(40):
    pane = np.random.default_rng(seed).integers(5)  # The first that is drawn.
    results = [
      corruptions.frost(image, x, np.random.default_rng(seed)) for x in (1, 3, 5)
    ]
    changes[pane].append([golden_corruptions.change(x, image) for x in results])
  change = np.stack([np.mean(x, 0) for x in changes], -1)
  np.testing.assert_allclose(change, GOLDEN['frost_change'][::2], rtol=0.05)


def test_frost_is_added_to_a_darker_image(monkeypatch):
  ice = np.random.default_rng(1).integers(0, 256, SMALL.shape, np.uint8)
  monkeypatch.setattr(corruption_fields, 'frost', lambda shape, rng: ice)
  result = corruptions.frost(SMALL, 4, np.random.default_rng(0))
  expected = np.minimum(0.65 * SMALL + 0.7 * ice, 255)
  np.testing.assert_array_equal(result, expected.astype(np.uint8))


def test_panes_of_frost_differ_and_have_the_colours_of_the_photographs():
  """And any size: beyond a pane its other side follows."""
  side = corruption_fields.FROST_SIDE
  colours = set()
  for seed in range(20):
    pane = corruption_fields.frost((side + 3, side + 7), np.random.default_rng(seed))
    np.testing.assert_array_equal(pane[:3], pane[side:])
    np.testing.assert_array_equal(pane[:, :7], pane[:, side:])
    mean, std = pane.mean((0, 1)), pane.mean(-1).std()
    (frost,) = {x for x in corruption_fields.FROSTS if np.allclose(x[0], mean, atol=2)}
    assert std == pytest.approx(frost[1], rel=0.1)
    colours.add(frost)
  assert len(colours) == len(set(corruption_fields.FROSTS))


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (8, 8), (16, 24), (32, 32)])
@pytest.mark.parametrize('name', corruptions.CORRUPTIONS)
def test_every_size_is_corrupted(name, shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  original = image.copy()
  for severity in SEVERITIES:
    result = corruptions.CORRUPTIONS[name](image, severity, np.random.default_rng(1))
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    again = corruptions.CORRUPTIONS[name](image, severity, np.random.default_rng(1))
    np.testing.assert_array_equal(result, again)
  np.testing.assert_array_equal(image, original)


def test_black_and_dry_images_are_no_division_by_zero():
  black = np.zeros((9, 9, 3), np.uint8)
  for name in ('fog', 'brightness', 'saturate', 'spatter'):
    for severity in SEVERITIES:
      corruptions.CORRUPTIONS[name](black, severity, np.random.default_rng(0))
  dry = corruption_fields.water_drops(np.zeros((9, 9), np.uint8))
  np.testing.assert_array_equal(dry, np.zeros((9, 9), np.float32))


@pytest.mark.parametrize(
  'name',
  [
    # The others are not monotonic as published, either.
    x
    for x in corruptions.CORRUPTIONS
    if x not in ('elastic_transform', 'fog', 'frost', 'pixelate', 'saturate', 'snow')
  ],
)
def test_a_higher_severity_changes_more(name):
  image = golden_corruptions.image()[::4, ::4]

  def change(severity):
    rng = np.random.default_rng(2)
    return golden_corruptions.change(
      corruptions.CORRUPTIONS[name](image, severity, rng), image
    )

  changes = [change(x) for x in (1, 3, 5)]
  assert changes == sorted(set(changes))


def test_the_tables_agree():
  assert list(corruptions.SEVERITIES) == list(corruptions.CORRUPTIONS)
  assert {len(x) for x in corruptions.SEVERITIES.values()} == {
    corruptions.NUM_SEVERITIES
  }
  in_mean, extra = set(corruption_error.ALEXNET), set(corruption_error.EXTRA)
  assert len(in_mean) == 15 and len(extra) == 4
  assert set(corruptions.CORRUPTIONS) == in_mean | extra
  assert corruption_error.SEVERITIES[-1] == corruptions.NUM_SEVERITIES


def test_fog_over_a_dim_image_keeps_its_highest_level():
  dim = SMALL // 4
  result = corruptions.fog(dim, 3, np.random.default_rng(0))
  cloud = corruption_fields.plasma(24, 1.7, np.random.default_rng(0))
  assert cloud.shape == (32, 32)
  fogged = dim / 255 + 2.5 * cloud[:16, :24, None]
  expected = fogged * (63 / 255) / (63 / 255 + 2.5)
  np.testing.assert_array_equal(result, (255 * expected).astype(np.uint8))


def test_edges_are_those_of_opencv():
  edges = corruption_fields.edges(golden_corruptions.liquid())
  assert 0.05 < edges.mean() < 0.5
  np.testing.assert_array_equal(edges, GOLDEN['edges'])


@pytest.mark.parametrize('severity', [0, 6, -1])
def test_an_unknown_severity_is_one_line(severity):
  with pytest.raises(errors.UserError, match=f'severity {severity} .*allowed: 1 to 5$'):
    corruptions.fog(SMALL, severity, np.random.default_rng(0))


@pytest.mark.parametrize('reach', [1, 3])
def test_glass_takes_pixels_one_after_the_other(reach):
  height, width = shape = (12, 17)
  sources = corruption_ops.glass_sources(shape, reach, np.random.default_rng(0))
  rng = np.random.default_rng(0)
  expected = np.arange(height * width).reshape(shape)
  for y in range(height - reach, reach, -1):
    for x in range(width - reach, reach, -1):
      right, down = rng.integers(-reach, reach, size=2)
      expected[y, x] = expected[y + down, x + right]
  np.testing.assert_array_equal(sources, expected.ravel())


def test_the_border_of_a_disk_is_smoothed_as_by_opencv():
  disk = corruption_ops._disk(10, 0.5)
  np.testing.assert_allclose(disk, GOLDEN['disk'], atol=1e-9)


def test_an_oblong_disk_blur_is_a_correlation():
  image = SMALL / 255
  for radius in (3, 10):
    disk = corruption_ops._disk(radius, 0.5).astype(float)
    expected = ndimage.correlate(image, disk[..., None], mode='mirror')
    result = corruption_ops.disk_blur(image, radius, 0.5)
    np.testing.assert_allclose(result, expected, atol=1e-9)


@pytest.mark.parametrize('angle', [-120, -90, 20])
def test_an_oblong_motion_blur_is_a_sum_over_a_line(angle):
  radius, std = 9, 4
  weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * std**2))
  expected = np.zeros(SMALL.shape)
  for i, weight in enumerate(weights / weights.sum()):
    down, right = i * np.sin(np.deg2rad(angle)), i * np.cos(np.deg2rad(angle))
    rows = np.arange(16) + int(np.ceil(down - 0.5))
    columns = np.arange(24) + int(np.ceil(right - 0.5))
    expected += weight * SMALL[rows.clip(0, 15)][:, columns.clip(0, 23)]
  result = corruption_ops.motion_blur(SMALL, radius, std, angle)
  np.testing.assert_allclose(result, expected - 0.5, atol=0.51)


@pytest.mark.parametrize('factor', [1.0, 1.3, 4.5])
def test_an_oblong_zoom_is_that_of_scipy(factor):
  rows, columns = int(np.ceil(16 / factor)), int(np.ceil(24 / factor))
  top, left = (16 - rows) // 2, (24 - columns) // 2
  crop = SMALL[top : top + rows, left : left + columns].astype(float)
  expected = ndimage.zoom(crop, (factor, factor, 1), order=1)
  top, left = (expected.shape[0] - 16) // 2, (expected.shape[1] - 24) // 2
  expected = expected[top : top + 16, left : left + 24]
  result = corruption_ops.zoom(SMALL.astype(float), factor)
  np.testing.assert_allclose(result, expected, atol=1e-9)


def test_colours_change_as_in_the_standard_library():
  image = np.concatenate([SMALL[0], [[9, 9, 9], [0, 0, 0], [8, 9, 8]]])[None] / 255
  result = corruption_ops.change_hsv(
    image, value=lambda v: v + 0.3, saturation=lambda s: 2 * s + 0.1
  )
  for pixel, changed in zip(image[0], result[0], strict=True):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    hsv = hue, min(2 * saturation + 0.1, 1), min(value + 0.3, 1)
    np.testing.assert_allclose(changed, colorsys.hsv_to_rgb(*hsv), atol=1e-9)


@pytest.mark.parametrize('std', [0.3, 2.4, 170.8])
def test_fields_are_smoothed_as_by_scipy(std):
  field = np.random.default_rng(0).uniform(-1, 1, (16, 24))
  expected = ndimage.gaussian_filter(field, std, mode='reflect', truncate=3)
  np.testing.assert_allclose(corruption_ops.smooth(field, std), expected, atol=1e-12)


def test_an_oblong_affine_map_moves_its_three_points():
  y, x = np.indices((60, 90), np.float32)
  result = corruption_ops.random_affine(
    np.stack([x, y], -1), 5.0, np.random.default_rng(0)
  )
  points = np.array([45, 30]) + 20 * np.array([[1, 1], [1, -1], [-1, -1]])
  moved = points + np.random.default_rng(0).uniform(-5, 5, (3, 2))
  at = moved[:, ::-1].T[:, None]
  np.testing.assert_allclose(
    corruption_ops.sample(result, at, 'mirror')[0], points, 1e-4
  )


def test_distances_are_the_shortest_ways_in_opencvs_steps():
  is_edge = np.random.default_rng(0).uniform(size=(30, 45)) < 0.004
  assert 3 < is_edge.sum() < 15
  unit = corruption_fields.DISTANCE_UNIT
  steps = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}
  expected = np.where(is_edge, 0, 20 * unit)
  for _ in range(45):  # One step after the other, until none is shorter.
    for y in range(-2, 3):
      for x in range(-2, 3):
        length = steps.get((min(abs(y), abs(x)), max(abs(y), abs(x))))
        if length:
          padded = np.pad(expected, 2, constant_values=20 * unit)
          before = padded[2 - y : 32 - y, 2 - x : 47 - x]
          expected = np.minimum(expected, before + round(length * unit))
  result = corruption_fields.edge_distance(is_edge)
  np.testing.assert_array_equal(result, (expected / unit).astype(np.float32))
