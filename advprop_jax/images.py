"""From a config to its images: the data set, what is done to them, who reads which."""

import jax

from advprop_jax import errors, registry, schema
from advprop_jax.input import augment, datasets, order, preprocess


def open_dataset(config, *, label_key: str = 'label') -> datasets.Dataset:
  """Opens the data set of a config; `label_key` as in `datasets.open_dataset`."""
  return datasets.open_dataset(
    config.data.name,
    data_dir=config.data.data_dir or None,
    holdout_share=config.data.holdout_share,
    label_key=label_key,
  )


def open_to_evaluate(
  config, split: str, name: str | None = None, *, label_key: str = 'label'
) -> datasets.Dataset:
  """Opens the data set of a config, or another one from the same place, for a split.

  What is held out of the training is asked of it only if the split depends on that:
  other data than those of the training need not have these splits.
  """
  names = datasets.split_names(split)
  depends = any(x in names for x in datasets.HOLDOUT_SPLITS)
  share = config.data.holdout_share if depends and not name else 0.0
  data = schema.Section(
    config.data | {'name': name or config.data.name, 'holdout_share': share}
  )
  return open_dataset(schema.Section(config | {'data': data}), label_key=label_key)


def create_recipe(
  config,
  dataset: datasets.Dataset,
  *,
  image_keys: tuple[str, ...] = ('image',),
  border: int = 0,
  resize: bool = True,
) -> preprocess.Recipe:
  """Returns what a config does to an image of a data set.

  Args:
    config: see `schema.read`.
    dataset: whose images.
    image_keys: what a training batch is asked for.
    border: see `preprocess.Recipe`.
    resize: likewise.
  """
  turned = {'all': True, 'folders': datasets.is_folder(dataset.name), 'none': False}
  choice = config.data.exif_orientation
  errors.check_choice('data.exif_orientation', choice, turned)
  return preprocess.Recipe(
    image_size=config.data.image_size,
    crop_padding=config.data.crop_padding,
    resize_method=config.data.resize_method,
    image_dtype='uint8',
    max_megapixels=config.data.max_megapixels,
    exif_orientation=turned[choice],
    crop_area=config.data.crop_area,
    flip=config.data.flip,
    augment_fn=registry.create(
      'data.augmentation', augment.AUGMENTATIONS, config.data.augmentation
    ),
    plain_image=preprocess.PLAIN_IMAGE in image_keys,
    border=border,
    resize=resize,
  )


def hosts() -> order.Hosts:
  """Returns which of the hosts this is, to read its share of the images."""
  return order.Hosts(index=jax.process_index(), count=jax.process_count())
