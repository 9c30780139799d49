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
#   image_key  the batch's key of the images: 'image', or 'plain_image', the same crop
#              without the augmentation
#   label_key  the batch's key of their labels: 'label'
#   attack  None, or {}: the values of `config.attack`, through `branch`; what stands in
#           the braces replaces them: {'epsilon': 2 / 255, 'num_steps': 3}
#   branch  'clean', the one that is evaluated and released, 'adv', 'augmented', or one
#           of them with an ending: 'adv_2'
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


def alpha_weighted(alpha):
  """Returns the streams of alpha * J(clean) + (1 - alpha) * J(adversarial).

  Source: AdvProp's slides, which give the formula of the baseline. Kurakin et al. 2017
  write it with a lambda, 0.3: alpha is 1 / (1 + lambda).
  """
  return (
    dict(CLEAN, weight=alpha),
    dict(ADV, branch='clean', weight=1 - alpha),
  )


# Source: SAT; the first phase of AdvProp's pilot study.
ADVERSARIAL_ONLY = (dict(ADV, branch='clean'),)
# A norm of its own for what is augmented, too. Source: AdvProp, fine-grained.
FINE_GRAINED = (
  dict(CLEAN, image_key='plain_image'),
  dict(CLEAN, name='augmented', branch='augmented'),
  ADV,
)

# Methods, `config.method`. The streams above, through one step:
STREAMS = dict(name='streams')
# Fast AdvProp, which has a step and an attack of its own; `streams` and `attack` are
# not used. Source of every value: Fast AdvProp, section 4, and its released code.
FAST_ADVPROP = dict(
  name='fast_advprop',
  adversarial_share=0.2,  # Of the images; the others are clean.
  epsilon=1 / 255,
  step_size=1 / 255,
  statistics='batch',  # Or 'running': those that the attack goes through.
  reuse_gradient=True,  # The attack's backward pass trains, too.
  shuffle_over_devices=True,  # Of attacked images, before they are learnt from.
  noise_weight=0.5,  # Of an image with noise, relative to a clean one.
  adversarial_weight=0.5,  # Of an attacked one.
  own_counts=True,  # Each gradient is divided by the weight of the images behind it.
)

# Models, `config.model`; the names: models/__init__.py.
EFFICIENTNET = dict(
  name='efficientnet_b0',
  drop_connect_rate=0.2,  # Source: the official code, for every size.
  # Name of models/activations.py; some take an alpha: 'celu:0.5'.
  activation='swish',
  # Of a ReLU network: where the backward pass is that of parametric softplus, 'none',
  # in the 'attack', in the 'update' or in 'both'. Source: SAT, section 3.2.
  smooth_backward='none',
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
  bn_epsilon=1e-3,  # Added to the variance. Source: official code.
  # Devices that share statistics: 'device', 'tpu_group' (the official rule) or 'all'.
  bn_scope='tpu_group',
)
RESNET = dict(
  EFFICIENTNET,
  name='resnet_50',
  even_pool_padding=False,  # As SAT; True: as PyTorch, for timm's weights.
  activation='relu',
  bn_momentum=0.9,  # Source: tensorpack's default, which SAT uses.
  bn_epsilon=1e-5,  # Source: the same.
  bn_scope='device',
)
del RESNET['drop_connect_rate']

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
  # Steps of epsilon / num_steps if `step_size` is less. Source: the same code.
  step_size_floor=True,
  # 'running' or 'batch' statistics in the attacked norms. Source: Fast AdvProp.
  statistics='running',
)
# As PGD, but always from the image itself. Source: AdvProp, comparison of attackers.
IFGSM = dict(
  name='ifgsm',
  epsilon=1 / 255,
  step_size=1 / 255,
  num_steps=1,
  targeted=True,
  statistics='running',
)
# One step from the image to the border. Source: Goodfellow et al. 2015.
FGSM = dict(name='fgsm', epsilon=1 / 255, targeted=False, statistics='running')
# The raw gradient, in no ball. Source: AdvProp, comparison of attackers; how long a
# step is stands in none of the sources that we could read.
GD = dict(
  name='gd',
  learning_rate=1.0,  # Pixels in [0, 1] per unit of the gradient.
  num_steps=1,
  targeted=True,
  statistics='running',
)
# In an L2 ball; both lengths over all values of an image. Source: Madry et al. 2018.
PGD_L2 = dict(
  name='pgd_l2',
  epsilon_l2=0.5,
  step_size_l2=0.25,
  num_steps=3,
  targeted=True,
  prob_start_from_clean=0.2,
  statistics='running',
)
# SAT's attack in training: one step, so long that it reaches the border from anywhere.
PGD_SAT = dict(PGD, epsilon=4 / 255, step_size=4 / 255, num_steps=1, targeted=False)
# Source: the evaluation of Smooth Adversarial Training. Through running statistics.
PGD_EVAL = dict(
  name='pgd',
  epsilon=4 / 255,
  step_size=1 / 255,
  num_steps=10,
  targeted=False,
  prob_start_from_clean=0.0,
  step_size_floor=False,
)

# Augmentations, `config.data.augmentation`.
NO_AUGMENTATION = dict(name='none')
AUTOAUGMENT = dict(name='autoaugment')  # Policy v0.
# Source of both numbers: flags of the official code.
RANDAUGMENT = dict(name='randaugment', num_layers=2, magnitude=10)
# In random order; SAT's ResNets. Source: tensorpack, `fbresnet_augmentor`.
COLOR_JITTER = dict(
  name='color_jitter',
  brightness=0.4,  # Factors from 1 - 0.4 to 1 + 0.4.
  contrast=0.4,
  saturation=0.4,
  lighting=0.1,  # Standard deviation along the colours' principal components.
)

# Optimizers, `config.optim.optimizer`. Source of the values: `main.py` and `utils.py`
# of the official EfficientNet code.
RMSPROP = dict(  # TensorFlow 1's.
  name='rmsprop',
  momentum=0.9,
  decay=0.9,  # Weight of the old mean square.
  epsilon=1e-3,  # Inside the square root.
  weight_decay=1e-5,  # Of all but the norms: wd / 2 * |w|^2 in the loss.
)
SGD = dict(
  name='sgd',
  momentum=0.9,
  nesterov=True,
  weight_decay=1e-4,
  decay_biases=True,  # False: kernels alone, as SAT's ResNets.
)

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


# Steps down at epochs. Source: SAT's ResNets; Goyal et al. 2017.
MILESTONES = dict(
  name='milestones',
  learning_rate=0.1,  # At the peak, for each 256 images of the batch.
  warmup_learning_rate=0.1,  # At the first step, whatever the batch.
  warmup_epochs=5.0,
  milestones_epochs=(30.0, 60.0, 90.0),
  decay_rate=0.1,
)


def get_config():
  config = ml_collections.ConfigDict()
  config.seed = 0
  # The workdir of another run or published weights (weights/readers.py), to begin with:
  # the newest weights, averages where it keeps them; the classifier only if the classes
  # are the same. '': drawn weights. With phases the first begins so. A resumed run goes
  # on from its own checkpoint.
  config.init_from = ''
  # Passes over the training split. Source: the official EfficientNet recipe.
  config.num_epochs = 350.0
  config.log_every_steps = 100  # But at least ten times in a run.
  # What becomes of a step with a loss, gradient or statistic that is not finite: 'stop'
  # ends the run; 'skip' leaves all as it was and counts the step in
  # train/skipped_steps, up to 10 in a row.
  config.on_nonfinite = 'stop'
  # Steps to record for TensorBoard's profiler, after the first of a start; 0: none.
  config.profile_steps = 0

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
  config.method = STREAMS
  config.streams = ADVPROP
  config.attack = PGD
  # Runs one after the other, each from the weights of the last: dicts of the values
  # that are other ones in it, {'num_epochs': 5.0, 'streams': VANILLA}. (): one run.
  config.phases = ()

  config.optim = optim = ml_collections.ConfigDict()
  optim.optimizer = RMSPROP
  optim.schedule = STAIRCASE
  # Source of both: `main.py` of the official EfficientNet code.
  optim.label_smoothing = 0.1
  optim.ema_decay = 0.9999  # Of weights and statistics; 0: none is kept.
  # Patterns of the names of what is not trained: ('stem_*', 'blocks_0/*', '*_bn/*'); in
  # norms, of every branch. Running statistics follow the data nevertheless.
  optim.freeze = ()
  # The learning rate of a layer is multiplied by it once for every layer above: stem,
  # each block, head, classifier. Source: ELECTRA; BEiT; timm's `--layer-decay`.
  optim.layer_decay = 1.0
  # Parts that each device computes its batch in, to need less memory: each has an
  # attack and statistics of its own, and the gradients of all make one update.
  optim.accumulate_steps = 1

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_epochs = 10.0
  evaluation.suites = ('val', 'pgd')  # Names of evaluation/suites.py.
  evaluation.attack = PGD_EVAL
  # Of the suite `autoattack`; of `pgd` with restarts, radii or a part of the images.
  evaluation.robustness = robustness = ml_collections.ConfigDict()
  robustness.version = 'standard'  # Of AutoAttack; or 'plus'.
  robustness.norm = 'linf'  # Or 'l2': then radii are norms over all values.
  robustness.epsilon = 4 / 255  # Of AutoAttack. Source: RobustBench, for ImageNet.
  robustness.epsilons = ()  # Radii of the curve of accuracy against epsilon.
  robustness.num_restarts = 1  # Of `eval.attack`, in the suite `pgd`.
  robustness.num_examples = 0  # Of all; 0: all of them. RobustBench has 5000.
  robustness.subset_seed = 0  # Which; not `seed`, so that networks share them.
  robustness.branch = 'clean'  # That classifies.
  robustness.attack_branch = ''  # That is attacked through; '': the same.

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  checkpoint.every_epochs = 1.0
  checkpoint.keep_last = 2  # Besides the best by val/clean_top1.
  return config.lock()
