"""The recipe of ResNets on ImageNet, for the configs of both papers."""

from configs import default

# Word of an argument -> name of the model.
SIZES = {
  '50': 'resnet_50',
  '101': 'resnet_101',
  '152': 'resnet_152',
  '200': 'resnet_200',
  'x50_32x4d': 'resnext_50_32x4d',
  'x50_32x8d': 'resnext_50_32x8d',
  'x152_32x8d': 'resnext_152_32x8d',
}


def get_config(size: str):
  """Returns the recipe of cihangxie/SmoothAdversarialTraining, `ResNet/`.

  100 epochs of SGD with Nesterov's momentum, 0.1 for 256 images, times 0.1 after 30, 60
  and 90; weight decay 1e-4 on kernels; colour jitter and lighting noise; no averages.
  Its batch is stated nowhere: 32 images a GPU. 1,024 is our choice. Images are resized
  by TensorFlow's bicubic; there by OpenCV's, whose weights are others.
  """
  config = default.get_config()
  config.num_epochs = 100.0
  config.data.update(batch_size=1024, resize_method='bicubic')
  config.data.augmentation = default.COLOR_JITTER
  config.model = dict(default.RESNET, name=SIZES[size])
  config.optim.optimizer = dict(default.SGD, decay_biases=False)
  config.optim.schedule = default.MILESTONES
  config.optim.ema_decay = 0.0
  return config
