"""Tests the augmentations against Pillow, TensorFlow's own ops and closed forms."""

import collections

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import scipy.stats
import tensorflow as tf

from advprop_jax.input import augment, augment_ops

LENGTHS = {
  'AutoAugment': augment.AUTOAUGMENT_LENGTHS,
  'RandAugment': augment.RANDAUGMENT_LENGTHS,
}


def noise(height=37, width=53, low=0, high=256):
  shape = (height, width, 3)
  return np.random.default_rng(0).integers(low, high, shape, dtype=np.uint8)


def photo(height=37, width=53):
  """Smooth shapes with flat parts and a little noise, another range in each channel.

  The width is odd on purpose, and the image is not square.
  """
  y, x = np.mgrid[:height, :width]
  waves = np.stack([np.sin(x / 9 + c) * np.cos(y / (5 + c)) for c in range(3)], axis=-1)
  image = np.clip(waves, -0.7, 0.7) * [60, 90, 120] + [90, 120, 150]
  return np.clip(image + noise(height, width, 0, 4), 0, 255).astype(np.uint8)


def run(name, image, argument=0.0, *args):
  result = augment_ops.OPS[name](tf.constant(image), tf.constant(argument), *args)
  assert result.dtype == tf.uint8 and result.shape == image.shape
  return result.numpy()


def pillow(image):
  return PIL.Image.fromarray(image)


def difference(a, b):
  return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


IMAGES = pytest.mark.parametrize(
  'image',
  [
    photo(),
    noise(),
    noise(low=100, high=103),  # Few values.
    np.full((20, 20, 3), 7, np.uint8),
    noise(6, 6),  # Fewer pixels than values.
  ],
  ids=['photo', 'noise', 'few', 'flat', 'small'],
)


@IMAGES
def test_equalize_is_pillows(image):
  expected = PIL.ImageOps.equalize(pillow(image))
  np.testing.assert_array_equal(run('Equalize', image), expected)


@IMAGES
def test_auto_contrast_is_pillows(image):
  expected = PIL.ImageOps.autocontrast(pillow(image))
  result = run('AutoContrast', image)
  # Truncated from float32, Pillow from float64: whole numbers can come out one lower.
  assert difference(result, expected) <= 1
  assert np.mean(result != expected) < 0.03


def test_auto_contrast_is_its_closed_form_in_float32():
  image = noise(low=20, high=221)
  low = image.min(axis=(0, 1)).astype(np.float32)
  scale = np.float32(255) / (image.max(axis=(0, 1)) - low)
  stretched = image.astype(np.float32) * scale + -low * scale
  expected = np.clip(stretched, 0, 255).astype(np.uint8)
  np.testing.assert_array_equal(run('AutoContrast', image), expected)


def test_auto_contrast_reaches_both_ends():
  result = run('AutoContrast', photo())
  np.testing.assert_array_equal(result.min(axis=(0, 1)), 0)
  np.testing.assert_array_equal(result.max(axis=(0, 1)), 255)


def test_invert_is_pillows():
  expected = PIL.ImageOps.invert(pillow(photo()))
  np.testing.assert_array_equal(run('Invert', photo()), expected)


@pytest.mark.parametrize('bits', range(1, 9))
def test_posterize_is_pillows(bits):
  expected = PIL.ImageOps.posterize(pillow(noise()), bits)
  np.testing.assert_array_equal(run('Posterize', noise(), float(bits)), expected)


def official_posterize(image, bits):
  """The official formula, in uint8."""
  shift = np.uint8((8 - bits) % 256)
  return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift).numpy()


def official_solarize(image, threshold):
  """The official formula, in uint8."""
  return np.where(image < np.uint8(threshold % 256), image, 255 - image)


ENDS = np.array([0, 1, 127, 128, 254, 255], np.uint8).repeat(3).reshape(1, 6, 3)


@pytest.mark.parametrize('bits', range(12))
def test_posterize_wraps_around_as_in_the_official_code(bits):
  expected = official_posterize(noise(), bits)
  np.testing.assert_array_equal(run('Posterize', noise(), float(bits)), expected)


@pytest.mark.parametrize('bits', [0, 11])
def test_one_bit_is_kept_of_what_posterize_cannot_do(bits):
  result = run('Posterize', ENDS, float(bits))
  assert result[0, :, 0].tolist() == [0, 0, 0, 128, 128, 128]


@pytest.mark.parametrize('threshold', [0, 1, 128, 204, 255])
def test_solarize_is_pillows(threshold):
  expected = PIL.ImageOps.solarize(pillow(noise()), threshold)
  np.testing.assert_array_equal(run('Solarize', noise(), float(threshold)), expected)


@pytest.mark.parametrize('threshold, as_if', [(256, 0), (435, 179), (716, 204)])
def test_solarize_wraps_around_as_in_the_official_code(threshold, as_if):
  expected = PIL.ImageOps.solarize(pillow(noise()), as_if)
  np.testing.assert_array_equal(official_solarize(noise(), threshold), expected)
  np.testing.assert_array_equal(run('Solarize', noise(), float(threshold)), expected)


def test_solarize_at_level_10_inverts_all():
  result = run('Solarize', ENDS, 256.0)
  assert result[0, :, 0].tolist() == [255, 254, 128, 127, 1, 0]


@pytest.mark.parametrize('addition', [0, 33, 110, 127, 187, 308])
def test_solarize_add_is_its_closed_form(addition):
  image = noise()
  added = np.clip(image.astype(int) + addition, 0, 255)
  expected = np.where(image < 128, added, image)
  np.testing.assert_array_equal(run('SolarizeAdd', image, float(addition)), expected)


# Levels 0, 1, 5, 6, 9 and the magnitudes 17 and 28.
FACTORS = pytest.mark.parametrize('factor', [0.1, 0.28, 1.0, 1.18, 1.72, 3.16, 5.14])


@FACTORS
def test_brightness_is_pillows(factor):
  expected = PIL.ImageEnhance.Brightness(pillow(noise())).enhance(factor)
  np.testing.assert_array_equal(run('Brightness', noise(), factor), expected)


@FACTORS
@pytest.mark.parametrize('image', [photo(), noise()], ids=['photo', 'noise'])
def test_color_is_pillows(image, factor):
  expected = np.asarray(PIL.ImageEnhance.Color(pillow(image)).enhance(factor))
  result = run('Color', image, factor)
  # Pillow rounds the grey value that TensorFlow truncates: they may lie 1 apart, and
  # the blend multiplies that. Where they agree, the results do.
  assert difference(result, expected) <= np.ceil(abs(1 - factor))
  grey = np.asarray(pillow(image).convert('L'))
  agree = grey == tf.image.rgb_to_grayscale(image).numpy()[..., 0]
  assert 0.3 < np.mean(agree) < 1
  np.testing.assert_array_equal(result[agree], expected[agree])


def test_the_grey_of_color_is_tensorflows_for_every_color():
  different = 0
  values = np.arange(256, dtype=np.uint8)
  for red in np.split(values, 16):
    colors = np.stack(np.meshgrid(red, values, values), axis=-1).reshape(4096, -1, 3)
    grey = tf.image.rgb_to_grayscale(colors)
    different += np.sum(augment_ops.color(colors, 0.0)[..., :1] != grey)
  # None here. A matrix product that rounds once where it should twice, as other
  # processors' do, can move a few dozen of 2**24.
  assert different < 100


@FACTORS
def test_contrast_blends_with_the_constant_of_the_official_code(factor):
  for height, width, constant in [(37, 53, 7), (300, 300, 255)]:  # H W / 256.
    image = noise(height, width)
    # float32 and its roundings, as in Pillow's and TensorFlow's blend.
    blend = constant + np.float32(factor) * (image.astype(np.float32) - constant)
    expected = np.clip(blend, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(run('Contrast', image, factor), expected)


@FACTORS
@pytest.mark.parametrize('image', [photo(), noise()], ids=['photo', 'noise'])
def test_sharpness_is_pillows(image, factor):
  expected = PIL.ImageEnhance.Sharpness(pillow(image)).enhance(factor)
  # Pillow rounds the smoothed value that the official code truncates.
  bound = np.ceil(abs(1 - factor))
  assert difference(run('Sharpness', image, factor), expected) <= bound


@pytest.mark.parametrize('image', [photo(), noise()], ids=['photo', 'noise'])
def test_sharpness_smooths_as_tensorflows_convolution(image):
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / np.float32(13)
  kernel = np.tile(kernel[:, :, None, None], [1, 1, 3, 1])
  pixels = tf.cast(image, tf.float32)[None]
  smoothed = tf.nn.depthwise_conv2d(pixels, kernel, [1, 1, 1, 1], 'VALID')
  expected = image.copy()  # The border stays.
  expected[1:-1, 1:-1] = smoothed[0].numpy().astype(np.uint8)
  np.testing.assert_array_equal(run('Sharpness', image, 0.0), expected)


def transforms(name, argument, height, width):
  """Returns x = a x' + b y' + c and y = d x' + e y' + f, reading at (x, y), as a..f."""
  match name:
    case 'ShearX':
      return 1, argument, 0, 0, 1, 0
    case 'ShearY':
      return 1, 0, 0, argument, 1, 0
    case 'TranslateX':
      return 1, 0, argument, 0, 1, 0
    case 'TranslateY':
      return 1, 0, 0, 0, 1, argument
    case 'Rotate':  # (x, y) = center + R ((x', y') - center).
      cos, sin = np.cos(np.deg2rad(argument)), np.sin(np.deg2rad(argument))
      x, y = (width - 1) / 2, (height - 1) / 2
      return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


GEOMETRIC = pytest.mark.parametrize(
  'name, argument',
  [
    ('Rotate', 27.0),
    ('Rotate', -6.0),
    ('Rotate', 84.0),
    ('ShearX', 0.27),
    ('ShearX', -0.84),
    ('ShearY', 0.12),
    ('ShearY', -0.51),
    ('TranslateX', 17.0),
    ('TranslateX', -170.0),
    ('TranslateY', 225.0),
    ('TranslateY', -25.0),
  ],
)


@GEOMETRIC
def test_geometric_ops_are_pillows(name, argument):
  image = noise(200, 301)
  a, b, c, d, e, f = transforms(name, argument, 200, 301)
  # Pillow's coordinates are of pixel corners, ours of their centers.
  c, f = c + 0.5 - 0.5 * (a + b), f + 0.5 - 0.5 * (d + e)
  expected = pillow(image).transform(
    (301, 200),
    PIL.Image.Transform.AFFINE,
    (a, b, c, d, e, f),
    PIL.Image.Resampling.NEAREST,
    fillcolor=(128, 128, 128),
  )
  different = np.any(run(name, image, argument) != np.asarray(expected), axis=-1)
  # Where a coordinate lies halfway between two pixels, roundings decide.
  assert np.mean(different) < 0.004


@GEOMETRIC
def test_geometric_ops_are_tensorflows(name, argument):
  image = noise(200, 301)
  matrix = [*transforms(name, argument, 200, 301), 0, 0]
  expected = tf.raw_ops.ImageProjectiveTransformV3(
    images=image[None],
    transforms=tf.constant([matrix], tf.float32),
    output_shape=[200, 301],
    interpolation='NEAREST',
    fill_mode='CONSTANT',
    fill_value=128.0,
  )[0]
  different = np.any(run(name, image, argument) != expected.numpy(), axis=-1)
  # A few of 60,200: the coordinate -1/2 counts as inside here, and as outside there.
  assert np.mean(different) < 1e-4


@pytest.mark.parametrize('side', [40, 41])
def test_rotating_by_right_angles_is_numpys(side):
  image = noise(side, side)
  for turns in (-1, 0, 1, 2):
    expected = np.rot90(image, turns)  # Counter-clockwise.
    np.testing.assert_array_equal(run('Rotate', image, 90.0 * turns), expected)


@pytest.mark.parametrize('pixels', [5, -5, 0, 100])
def test_translating_rolls_and_fills(pixels):
  image = noise()
  for axis, name in enumerate(['TranslateY', 'TranslateX']):
    length = image.shape[axis]
    expected = np.roll(np.moveaxis(image, axis, 0), -pixels, axis=0)
    source = np.arange(length) + pixels
    expected[(source < 0) | (source >= length)] = 128
    expected = np.moveaxis(expected, 0, axis)
    np.testing.assert_array_equal(run(name, image, float(pixels)), expected)


@pytest.mark.parametrize('half_side', [0, 5, 12, 112])
@pytest.mark.parametrize('center', [(0.0, 0.0), (0.5, 0.3), (0.99, 0.999999)])
def test_cutout_fills_a_square_cut_off_at_the_border(half_side, center):
  image = noise()
  row, column = int(center[0] * 37), int(center[1] * 53)
  expected = image.copy()
  expected[
    max(row - half_side, 0) : row + half_side,
    max(column - half_side, 0) : column + half_side,
  ] = 128
  result = run('Cutout', image, float(half_side), tf.constant(center))
  np.testing.assert_array_equal(result, expected)


# Transcribed from `policy_v0` of the official code, a second time and by other means.
OFFICIAL_POLICY = """
Equalize 0.8 1, ShearY 0.8 4
Color 0.4 9, Equalize 0.6 3
Color 0.4 1, Rotate 0.6 8
Solarize 0.8 3, Equalize 0.4 7
Solarize 0.4 2, Solarize 0.6 2
Color 0.2 0, Equalize 0.8 8
Equalize 0.4 8, SolarizeAdd 0.8 3
ShearX 0.2 9, Rotate 0.6 8
Color 0.6 1, Equalize 1 2
Invert 0.4 9, Rotate 0.6 0
Equalize 1 9, ShearY 0.6 3
Color 0.4 7, Equalize 0.6 0
Posterize 0.4 6, AutoContrast 0.4 7
Solarize 0.6 8, Color 0.6 9
Solarize 0.2 4, Rotate 0.8 9
Rotate 1 7, TranslateY 0.8 9
ShearX 0 0, Solarize 0.8 4
ShearY 0.8 0, Color 0.6 4
Color 1 0, Rotate 0.6 2
Equalize 0.8 4, Equalize 0 8
Equalize 1 4, AutoContrast 0.6 2
ShearY 0.4 7, SolarizeAdd 0.6 7
Posterize 0.8 2, Solarize 0.6 10
Solarize 0.6 8, Equalize 0.6 1
Color 0.8 6, Rotate 0.4 5
"""


def test_the_policy_is_the_official_one():
  ours = [
    ', '.join(f'{name} {probability} {level}' for name, probability, level in pair)
    for pair in augment.AUTOAUGMENT_POLICY
  ]
  theirs = [
    ', '.join(f'{n} {float(p)} {m}' for n, p, m in map(str.split, pair))
    for pair in (line.split(', ') for line in OFFICIAL_POLICY.strip().splitlines())
  ]
  assert ours == theirs


def test_the_policy_has_the_shape_and_the_counts_of_the_published_one():
  policy = augment.AUTOAUGMENT_POLICY
  assert np.shape(policy) == (25, 2, 3)
  ops = [op for pair in policy for op in pair]
  assert all(probability in np.arange(11) / 10 for _, probability, _ in ops)
  assert all(level in range(11) for _, _, level in ops)
  assert collections.Counter(name for name, _, _ in ops) == {
    'Equalize': 12,
    'Color': 9,
    'Solarize': 8,
    'Rotate': 7,
    'ShearY': 4,
    'AutoContrast': 2,
    'Posterize': 2,
    'ShearX': 2,
    'SolarizeAdd': 2,
    'Invert': 1,
    'TranslateY': 1,
  }


# By hand: AutoAugment at the levels 3 and 9, RandAugment at the magnitudes 17 and 28.
@pytest.mark.parametrize(
  'name, level_3, level_9, magnitude_17, magnitude_28',
  [
    ('AutoContrast', 0, 0, 0, 0),
    ('Equalize', 0, 0, 0, 0),
    ('Invert', 0, 0, 0, 0),
    ('Rotate', 9, 27, 51, 84),
    ('Posterize', 1, 3, 6, 11),
    ('Solarize', 76, 230, 435, 716),
    ('Color', 0.64, 1.72, 3.16, 5.14),
    ('Contrast', 0.64, 1.72, 3.16, 5.14),
    ('Brightness', 0.64, 1.72, 3.16, 5.14),
    ('Sharpness', 0.64, 1.72, 3.16, 5.14),
    ('ShearX', 0.09, 0.27, 0.51, 0.84),
    ('ShearY', 0.09, 0.27, 0.51, 0.84),
    ('TranslateX', 75, 225, 170, 280),
    ('TranslateY', 75, 225, 170, 280),
    ('Cutout', 30, 90, 68, 112),
    ('SolarizeAdd', 33, 99, 187, 308),
  ],
)
def test_levels_become_arguments(name, level_3, level_9, magnitude_17, magnitude_28):
  found = [
    augment.argument_of(name, level, **LENGTHS[method])
    for method, level in [
      ('AutoAugment', 3),
      ('AutoAugment', 9),
      ('RandAugment', 17),
      ('RandAugment', 28),
    ]
  ]
  expected = [level_3, level_9, magnitude_17, magnitude_28]
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_levels_at_the_ends_of_the_policy_become_arguments():
  lengths = augment.AUTOAUGMENT_LENGTHS
  assert augment.argument_of('Posterize', 2, **lengths) == 0
  assert augment.argument_of('Solarize', 10, **lengths) == 256
  assert augment.argument_of('Color', 0, **lengths) == 0.1


def draw_many(draw, num_seeds):
  """Returns what `draw` returns, stacked over seeds."""
  seeds = tf.data.Dataset.range(num_seeds).map(lambda i: draw(tf.stack([i, 7])))
  return [np.stack(drawn) for drawn in zip(*seeds.as_numpy_iterator(), strict=True)]


def check_frequency(happened, probability):
  """Checks the mean of independent events to 5 standard deviations.

  The seeds are fixed: the bound is not to flicker, but to be met by a right sampler.
  """
  deviation = np.sqrt(probability * (1 - probability) / len(happened))
  assert abs(np.mean(happened) - probability) <= 5 * deviation


def test_autoaugment_draws_sub_policies_ops_and_signs_by_their_probabilities():
  sub_policies, chosen, arguments = draw_many(augment.draw_autoaugment, 10_000)
  names = np.array(['', *augment._AUTOAUGMENT_OPS])[chosen]
  signs_of = collections.defaultdict(list)
  for index, pair in enumerate(augment.AUTOAUGMENT_POLICY):
    here = sub_policies == index
    check_frequency(here, 1 / 25)
    applied = names[here] != ''
    for layer, (name, probability, level) in enumerate(pair):
      check_frequency(applied[:, layer], probability)
      assert set(names[here, layer]) <= {'', name}
      found = arguments[here, layer]
      expected = augment.argument_of(name, level, **augment.AUTOAUGMENT_LENGTHS)
      np.testing.assert_allclose(np.abs(found), expected, rtol=1e-6)
      if expected != 0:
        signs_of[name].extend(found < 0)
    # The two draws of a pair are independent.
    check_frequency(applied.all(axis=1), pair[0][1] * pair[1][1])
  for name, negative in signs_of.items():
    check_frequency(negative, 0.5 if name in augment.SIGNED_OPS else 0.0)


def slow_op(name, image, level, sign):
  """Applies an op of AutoAugment by Pillow and the official formulas."""
  share = level / 10

  def move(*matrix):
    return image.transform(
      image.size, PIL.Image.Transform.AFFINE, matrix, fillcolor=(128,) * 3
    )

  def by_value(fn, argument):
    return pillow(fn(np.asarray(image), argument))

  def solarize_add(x, addition):
    return np.where(x < 128, np.minimum(x.astype(int) + addition, 255), x).astype('u1')

  return {
    'Equalize': lambda: PIL.ImageOps.equalize(image),
    'AutoContrast': lambda: PIL.ImageOps.autocontrast(image),
    'Invert': lambda: PIL.ImageOps.invert(image),
    'Color': lambda: PIL.ImageEnhance.Color(image).enhance(share * 1.8 + 0.1),
    'Posterize': lambda: by_value(official_posterize, int(share * 4)),
    'Solarize': lambda: by_value(official_solarize, int(share * 256)),
    'SolarizeAdd': lambda: by_value(solarize_add, int(share * 110)),
    'Rotate': lambda: image.rotate(sign * share * 30, fillcolor=(128,) * 3),
    'ShearX': lambda: move(1, sign * share * 0.3, 0, 0, 1, 0),
    'ShearY': lambda: move(1, 0, 0, sign * share * 0.3, 1, 0),
    'TranslateY': lambda: move(1, 0, 0, 0, 1, sign * share * 250),
  }[name]()


def test_images_are_distributed_as_those_of_pillow_and_the_official_formulas():
  """2,000 draws of each; of a dark image inversions are seen in the mean."""
  dark = (photo(16, 20) // 3).astype(np.uint8)
  rng = np.random.default_rng(0)
  theirs = []
  for _ in range(2000):
    image = pillow(dark)
    for name, probability, level in augment.AUTOAUGMENT_POLICY[rng.integers(25)]:
      if rng.random() < probability:
        image = slow_op(name, image, level, rng.choice([-1, 1]))
    theirs.append(np.asarray(image))
  seeds = tf.data.Dataset.range(2000).map(lambda i: tf.stack([i, 3]))
  ours = seeds.map(lambda seed: augment.autoaugment(tf.constant(dark), seed))
  ours = np.stack(list(ours.as_numpy_iterator()))
  for statistic in (np.mean, np.std):
    values = [statistic(x, axis=(1, 2, 3)) for x in (ours, np.stack(theirs))]
    # Wide, since Pillow rounds otherwise: most images come out of few policies alike.
    edges = np.linspace(0, 255, 30)
    counts = np.array([np.histogram(x, edges)[0] for x in values])
    counts = counts[:, counts.sum(axis=0) >= 20]
    p_value = scipy.stats.chi2_contingency(counts).pvalue
    assert p_value > 1e-3, (statistic.__name__, p_value)


def test_randaugment_draws_ops_signs_and_centers_uniformly():
  def draw(seed):
    return augment.draw_randaugment(seed, 2, 17)

  chosen, arguments, centers = draw_many(draw, 10_000)
  names = list(augment_ops.OPS)
  assert len(names) == 16
  for index, name in enumerate(names):
    here = chosen == index
    for layer in range(2):
      check_frequency(here[:, layer], 1 / 16)
    expected = augment.argument_of(name, 17, **augment.RANDAUGMENT_LENGTHS)
    np.testing.assert_allclose(np.abs(arguments[here]), expected, rtol=1e-6)
    negative = 0.5 if name in augment.SIGNED_OPS else 0.0
    check_frequency(arguments[here] < 0, negative)
  check_frequency(chosen[:, 0] == chosen[:, 1], 1 / 16)  # Independent.
  check_frequency((centers < 0.25).all(axis=-1).ravel(), 1 / 16)
  assert np.all((centers >= 0) & (centers < 1))


def test_autoaugment_applies_what_it_draws_in_order():
  image = tf.constant(photo())
  seen = set()
  for index in range(60):
    seed = tf.constant([index, 0])
    expected = image
    _, chosen, arguments = augment.draw_autoaugment(seed)
    for op, argument in zip(chosen.numpy(), arguments, strict=True):
      if op:
        name = augment._AUTOAUGMENT_OPS[op - 1]
        expected = augment_ops.OPS[name](expected, argument)
        seen.add(name)
    np.testing.assert_array_equal(augment.autoaugment(image, seed), expected)
  assert len(seen) >= 9  # Of 11.


@pytest.mark.parametrize('num_layers, magnitude', [(1, 10), (2, 17), (3, 28)])
def test_randaugment_applies_what_it_draws_in_order(num_layers, magnitude):
  image = tf.constant(photo())
  seen = set()
  for index in range(40):
    seed = tf.constant([index, 0])
    expected = image
    drawn = augment.draw_randaugment(seed, num_layers, magnitude)
    for op, argument, center in zip(*drawn, strict=True):
      name = list(augment_ops.OPS)[op]
      extra = [center] if name == 'Cutout' else []
      expected = augment_ops.OPS[name](expected, argument, *extra)
      seen.add(name)
    result = augment.randaugment(
      image, seed, num_layers=num_layers, magnitude=magnitude
    )
    np.testing.assert_array_equal(result, expected)
  assert len(seen) >= 13  # Of 16.


def randaugment(image, seed):
  return augment.randaugment(image, seed, num_layers=2, magnitude=28)


@pytest.mark.parametrize('fn', [augment.autoaugment, randaugment])
@pytest.mark.parametrize('static', [True, False])
def test_images_are_a_function_of_their_seeds(fn, static):
  image = photo(24, 35)
  shape = image.shape if static else (None, None, 3)

  def augmented(index):
    example = tf.ensure_shape(tf.py_function(lambda: image, [], tf.uint8), shape)
    result = fn(example, tf.stack([index, 1]))
    assert result.shape.as_list() == list(shape)
    return result

  indices = tf.data.Dataset.range(60)
  runs = [
    list(indices.map(augmented, num_parallel_calls=calls).as_numpy_iterator())
    for calls in (1, 4)
  ]
  np.testing.assert_array_equal(*runs)
  for index in range(0, 60, 3):
    eager = fn(tf.constant(image), tf.constant([index, 1], tf.int64))
    np.testing.assert_array_equal(runs[0][index], eager)
  assert len(np.unique(runs[0], axis=0)) > 20
