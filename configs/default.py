"""The schema: every key that the code reads, with its unit, its source and a value.

The values are AdvProp's with EfficientNet-B0 on ImageNet. The other files change
values, never keys. Batch sizes are global: over all devices of all hosts.
"""

import ml_collections

# What is trained on, as data: every stream is a source of images, what is done to them,
# the branch of batch norms they go through, and the weight of their loss.
#   image_key  the batch's key of the images: 'image'
#   label_key  the batch's key of their labels: 'label'
#   attack  None, or {}: the values of `config.attack`, through `branch`; what stands in
#           the braces replaces them: {'epsilon': 2 / 255, 'num_steps': 3}
#   branch  name of a branch; 'clean' is the one that is evaluated and released
#   weight  of the stream's mean loss in the sum
CLEAN = dict(
  name='clean',
  image_key='image',
  label_key='label',
  attack=None,
  branch='clean',
  weight=1.0,
)
ADV = dict(CLEAN, name='adv', attack={}, branch='adv')

VANILLA = (CLEAN,)
ADVPROP = (CLEAN, ADV)  # Source: AdvProp, algorithm 1: the losses are summed, 1 : 1.
ADVERSARIAL_TRAINING = (CLEAN, dict(ADV, branch='clean'))  # Source: AdvProp, fig. 5.


def get_config():
  config = ml_collections.ConfigDict()
  config.seed = 0
  # Passes over the training split. Source: the official EfficientNet recipe.
  config.num_epochs = 350.0
  config.log_every_steps = 100  # But at least ten times in a run.

  config.data = data = ml_collections.ConfigDict()
  # A tensorflow-datasets name, 'digits', or 'folder:<path>' with <split>/<class>/*.jpg.
  data.name = 'imagenet2012'
  data.data_dir = ''  # Where it is prepared; empty: ~/tensorflow_datasets.
  data.train_split = 'train'
  data.eval_split = 'validation'
  data.image_size = 224  # Pixels, square.
  data.batch_size = 2048
  data.eval_batch_size = 1024
  data.shuffle_window = 16384  # Undecoded examples per host.
  # Share of the image's area that a random crop covers; the official recipe's.
  data.crop_area = (0.08, 1.0)
  data.flip = True  # Mirror half of the training images.
  # 'autoaugment' (policy v0), 'randaugment' or 'none'. Source: AdvProp, experiments.
  data.augmentation = 'autoaugment'
  data.randaugment_layers = 2  # Source of both: flags of the official code.
  data.randaugment_magnitude = 10
  # Evaluation crops image_size / (image_size + crop_padding) of the shorter side.
  data.crop_padding = 32
  # TensorFlow 1's bicubic, the official one; or 'bicubic', 'bilinear': preprocess.py.
  data.resize_method = 'bicubic_tf1'
  # Of images on their way to the devices: 'uint8', 'bfloat16' or 'float32'.
  data.image_dtype = 'uint8'
  data.max_bad_share = 0.01  # Images that cannot be decoded; more end the run.

  config.model = model = ml_collections.ConfigDict()
  model.name = 'efficientnet_b0'
  model.drop_connect_rate = 0.2  # Source: the official code, for every size.
  model.activation = 'swish'
  # (x - mean) / std on pixels in [0, 1]. AdvProp: x * 2 / 255 - 1 on [0, 255].
  model.mean = (0.5, 0.5, 0.5)
  model.std = (0.5, 0.5, 0.5)
  model.dtype = 'bfloat16'  # Or 'float32': of the arithmetic; all state is float32.
  # Whether the backward pass computes every block again, to need less memory; on the
  # CPU it changes nothing. Figures: benchmarks/README.md.
  model.remat_blocks = False
  model.bn_momentum = 0.99  # Weight of the old running value. Source: official code.
  model.bn_epsilon = 1e-3
  # Devices that share statistics: 'device', 'tpu_group' (the official rule) or 'all'.
  model.bn_scope = 'tpu_group'

  config.streams = ADVPROP

  # In pixel units of [0, 1]: the paper's epsilon 1 is 1 / 255.
  config.attack = attack = ml_collections.ConfigDict()
  attack.epsilon = 1 / 255  # Source: AdvProp, experiments; 1 suits B0-B2 best.
  attack.step_size = 1 / 255  # Source: AdvProp, experiments.
  attack.num_steps = 1  # Source: AdvProp: epsilon + 1, except 1 for epsilon 1.
  attack.targeted = True  # At a random wrong class. Source: Fast AdvProp, 3.2.2.
  # Else from noise in the ball. Source: the first author's released attack code.
  attack.prob_start_from_clean = 0.2
  # 'running' or 'batch' statistics in the attacked norms. Source: Fast AdvProp.
  attack.statistics = 'running'

  config.optim = optim = ml_collections.ConfigDict()
  # Source of the values: `main.py` and `utils.py` of the official EfficientNet code.
  optim.name = 'rmsprop'  # TensorFlow 1's; or 'sgd', with Nesterov momentum.
  optim.learning_rate = 0.016  # At the peak, for each 256 images of the batch.
  optim.momentum = 0.9
  optim.rmsprop_decay = 0.9  # Weight of the old mean square.
  optim.rmsprop_epsilon = 1e-3  # Inside the square root.
  optim.warmup_epochs = 5.0  # Linear from 0.
  # 'staircase': times decay_rate every decay_epochs, counted from the first step.
  # 'cosine': half a cosine to 0, from the end of the warm-up.
  optim.schedule = 'staircase'
  optim.decay_epochs = 2.4
  optim.decay_rate = 0.97
  optim.weight_decay = 1e-5  # Of all but the norms: wd / 2 * |w|^2 in the loss.
  optim.label_smoothing = 0.1
  optim.ema_decay = 0.9999  # Of weights and statistics; 0: none is kept.

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_epochs = 10.0
  evaluation.num_pictures = 8  # Examples in the picture of the attack.
  # Untargeted, from noise. Source: the evaluation of Smooth Adversarial Training.
  evaluation.attack = ml_collections.ConfigDict()
  evaluation.attack.epsilon = 4 / 255
  evaluation.attack.step_size = 1 / 255
  evaluation.attack.num_steps = 10

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  checkpoint.every_epochs = 1.0
  checkpoint.keep_last = 2  # Besides the best by val/clean_top1.
  return config.lock()
