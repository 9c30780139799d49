"""A recipe for tests: nothing is drawn but crop and flip, small and without borders."""

from advprop_jax.input import preprocess

RECIPE = preprocess.Recipe(
  image_size=8,
  crop_padding=0,
  resize_method='bicubic_tf1',
  image_dtype='uint8',
  max_megapixels=45.0,
  exif_orientation=False,
  crop_area=(0.08, 1.0),
  flip=True,
  augment_fn=None,
  plain_image=False,
)


def split(defaults: dict, options: dict) -> dict:
  """Returns the arguments of batches of images: those of a recipe go into one."""
  options = {**defaults, **options}
  recipe = {k: options.pop(k) for k in RECIPE._fields if k in options}
  return {**options, 'recipe': RECIPE._replace(**recipe)}
