"""The schema: every key that the code reads, with its unit, its source and a value.

The values are AdvProp's with EfficientNet-B0 on ImageNet. What comes in kinds, each
with keys of its own, is a named section: a config takes one whole,

  config.optim.schedule = dict(default.COSINE, learning_rate=0.25)

and the command line then knows that section's keys and no others. Otherwise files
change values, never keys. Batch sizes are global: over all devices of all hosts.
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
ADV: dict = dict(CLEAN, name='adv', attack={}, branch='adv')

VANILLA = (CLEAN,)
ADVPROP = (CLEAN, ADV)  # Source: AdvProp, algorithm 1: the losses are summed, 1 : 1.
ADVERSARIAL_TRAINING = (CLEAN, dict(ADV, branch='clean'))  # Source: AdvProp, fig. 5.

# Models, `config.model`; the names: models/__init__.py.
EFFICIENTNET = dict(
  name='efficientnet_b0',
  drop_connect_rate=0.2,  # Source: the official code, for every size.
  activation='swish',
  # (x - mean) / std on pixels in [0, 1]. AdvProp: x * 2 / 255 - 1 on [0, 255].
  mean=(0.5, 0.5, 0.5),
  std=(0.5, 0.5, 0.5),
  # Of the arithmetic, 'bfloat16' or 'float32'; all state is float32. 'float32' means
  # that on every device: TPUs and recent GPUs are told not to multiply in less.
  dtype='bfloat16',
  # Whether the backward pass computes every block again, to need less memory; on the
  # CPU it changes nothing. Figures: benchmarks/README.md.
  remat_blocks=False,
  # Whether a CPU computes by formulations of its own, which are faster. False leaves
  # plain operations everywhere: for forward-mode derivatives, exports, comparisons.
  cpu_kernels=True,
  bn_momentum=0.99,  # Weight of the old running value. Source: official code.
  # Devices that share statistics: 'device', 'tpu_group' (the official rule) or 'all'.
  bn_scope='tpu_group',
)

# Attacks, `config.attack`, `config.eval.attack`, in pixel units of [0, 1]: the paper's
# epsilon 1 is 1 / 255.
PGD = dict(
  name='pgd',
  epsilon=1 / 255,  # Source: AdvProp, experiments; 1 suits B0-B2 best.
  step_size=1 / 255,  # Source: AdvProp, experiments.
  num_steps=1,  # Source: AdvProp: epsilon + 1, except 1 for epsilon 1.
  targeted=True,  # At a random wrong class. Source: Fast AdvProp, 3.2.2.
  # Else from noise in the ball. Source: the first author's released attack code.
  prob_start_from_clean=0.2,
  # 'running' or 'batch' statistics in the attacked norms. Source: Fast AdvProp.
  statistics='running',
)
# Source: the evaluation of Smooth Adversarial Training. Through running statistics.
PGD_EVAL = dict(
  name='pgd',
  epsilon=4 / 255,
  step_size=1 / 255,
  num_steps=10,
  targeted=False,
  prob_start_from_clean=0.0,
)

# Augmentations, `config.data.augmentation`.
NO_AUGMENTATION = dict(name='none')
AUTOAUGMENT = dict(name='autoaugment')  # Policy v0.
# Source of both numbers: flags of the official code.
RANDAUGMENT = dict(name='randaugment', num_layers=2, magnitude=10)

# Optimizers, `config.optim.optimizer`. Source of the values: `main.py` and `utils.py`
# of the official EfficientNet code.
RMSPROP = dict(  # TensorFlow 1's.
  name='rmsprop',
  momentum=0.9,
  decay=0.9,  # Weight of the old mean square.
  epsilon=1e-3,  # Inside the square root.
  weight_decay=1e-5,  # Of all but the norms: wd / 2 * |w|^2 in the loss.
)
SGD = dict(name='sgd', momentum=0.9, weight_decay=1e-4)  # With Nesterov's momentum.

# Schedules of the learning rate, `config.optim.schedule`.
STAIRCASE = dict(  # Times decay_rate every decay_epochs, counted from the first step.
  name='staircase',
  learning_rate=0.016,  # At the peak, for each 256 images of the batch.
  warmup_epochs=5.0,  # Linear from 0.
  decay_epochs=2.4,
  decay_rate=0.97,
)
# Half a cosine to 0, from the end of the warm-up. Source: Goyal et al. 2017.
COSINE = dict(name='cosine', learning_rate=0.1, warmup_epochs=5.0)


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
  # Which class each logit stands for; (): the classes of the data set, in its order. A
  # run writes them down, and other data are then mapped to them by name.
  data.class_names = ()
  # Of a folder: the share of the images of `train` that is the split `holdout`, chosen
  # by their names: the same for ever, whatever else is added.
  data.holdout_share = 0.0
  data.train_split = 'train'
  data.eval_split = 'validation'
  data.image_size = 224  # Pixels, square.
  data.batch_size = 2048
  data.eval_batch_size = 1024
  data.shuffle_window = 16384  # Undecoded examples per host.
  # Share of the image's area that a random crop covers; the official recipe's.
  data.crop_area = (0.08, 1.0)
  data.flip = True  # Mirror half of the training images.
  data.augmentation = AUTOAUGMENT  # Source: AdvProp, experiments.
  # Evaluation crops image_size / (image_size + crop_padding) of the shorter side.
  data.crop_padding = 32
  # TensorFlow 1's bicubic, the official one; or 'bicubic', 'bilinear': preprocess.py.
  data.resize_method = 'bicubic_tf1'
  data.max_bad_share = 0.01  # Images that cannot be decoded; more end the run.
  # Of an image, in millions of pixels; a larger one cannot be decoded. Each thread, of
  # which there are as many as cores, takes up to 11 bytes a pixel: 2 GB on four.
  data.max_megapixels = 45.0
  # Whose images are turned as their cameras say: 'folders', 'all' or 'none'. The
  # official pipeline turns none of ImageNet's.
  data.exif_orientation = 'folders'

  config.model = EFFICIENTNET
  config.streams = ADVPROP
  config.attack = PGD

  config.optim = optim = ml_collections.ConfigDict()
  optim.optimizer = RMSPROP
  optim.schedule = STAIRCASE
  # Source of both: `main.py` of the official EfficientNet code.
  optim.label_smoothing = 0.1
  optim.ema_decay = 0.9999  # Of weights and statistics; 0: none is kept.

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_epochs = 10.0
  evaluation.suites = ('val',)  # Names of evaluation/suites.py.
  evaluation.attack = PGD_EVAL

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  checkpoint.every_epochs = 1.0
  checkpoint.keep_last = 2  # Besides the best by val/clean_top1.
  return config.lock()
