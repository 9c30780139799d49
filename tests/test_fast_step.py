"""Tests Fast AdvProp's step against its published update, written out in TensorFlow."""

import jax
import numpy as np
import optax
import pytest
import tensorflow as tf
from tiny_model import TinyModel

from advprop_jax import fast_step, parallel, train_state

pytestmark = pytest.mark.usefixtures('fast_compilation')

IMAGE_SIZE, NUM_CLASSES, NUM_DEVICES, BATCH_SIZE = 8, 5, 4, 8  # Images per device.
EPSILON, LEARNING_RATE, SMOOTHING = 8 / 255, 0.5, 0.1
COMPONENTS = fast_step.Components(
  adversarial_share=0.25,
  epsilon=EPSILON,
  step_size=EPSILON / 2,
  statistics='batch',
  reuse_gradient=True,
  shuffle_over_devices=True,
  noise_weight=0.5,
  adversarial_weight=0.5,
  own_counts=True,
)


def create_batch(seed=0):
  rng = np.random.default_rng(seed)
  size = NUM_DEVICES * BATCH_SIZE
  return {
    'image': rng.uniform(size=(size, IMAGE_SIZE, IMAGE_SIZE, 3)).astype('f'),
    'label': rng.integers(0, NUM_CLASSES, size).astype(np.int32),
  }


def create_state():
  model, tx = TinyModel(), optax.sgd(LEARNING_RATE)
  state = train_state.create_train_state(
    model,
    tx,
    branch_names=('clean', 'adv'),
    image_size=IMAGE_SIZE,
    seed=0,
    keep_ema=False,
  )
  # Branches that differ, so that a mistaken one would be noticed.
  other = jax.tree.map(
    lambda x: x + 0.25, (state.norms['adv'], state.batch_stats['adv'])
  )
  return state.replace(
    norms={**state.norms, 'adv': other[0]},
    batch_stats={**state.batch_stats, 'adv': other[1]},
  )


def run(state, batch, components=COMPONENTS, *, accumulate_steps=1):
  step = fast_step.make_fast_step(
    TinyModel(),
    optax.sgd(LEARNING_RATE),
    components,
    label_smoothing=SMOOTHING,
    ema_decay=0.0,
    accumulate_steps=accumulate_steps,
  )
  step = parallel.data_parallel(step, split=(False, True))
  return step(parallel.replicate(state), parallel.shard(batch))


def draws(state, num_adv, shuffle, part):
  """Returns the noise of every device and the order of all attacked images."""

  def own(rng):
    return rng if part is None else jax.random.fold_in(rng, part)

  def noise(rng, step):
    noise_rng = jax.random.split(own(parallel.device_rng(rng, step)), 4)[0]
    shape = (num_adv, IMAGE_SIZE, IMAGE_SIZE, 3)
    return jax.random.uniform(noise_rng, shape, minval=-EPSILON, maxval=EPSILON)[None]

  mapped = parallel.data_parallel(
    lambda rng, step, x: noise(rng, step),
    split=(False, False, True),
    split_outputs=True,
  )
  noises = np.asarray(mapped(state.rng, state.step, np.zeros(NUM_DEVICES)))
  order = np.arange(NUM_DEVICES * num_adv)
  if shuffle:
    rng = own(parallel.shared_rng(state.rng, state.step))
    order = np.asarray(jax.random.permutation(rng, len(order)))
  return noises.reshape(NUM_DEVICES, num_adv, IMAGE_SIZE, IMAGE_SIZE, 3), order


def published_update(state, batch, components, part=None):
  """Returns trained values and running statistics after the update of `imagenet.py`.

  Gradients of summed losses are added up for each parameter, with the weight of their
  images; so are the counts, and in the end one is divided by the other.
  """
  batch_size = len(batch['label']) // NUM_DEVICES
  num_adv = round(components.adversarial_share * batch_size)
  num_clean = batch_size - num_adv
  noises, order = draws(state, num_adv, components.shuffle_over_devices, part)
  params = {
    'conv': tf.Variable(state.params['conv']['kernel']),
    'kernel': tf.Variable(state.params['classifier']['kernel']),
    'bias': tf.Variable(state.params['classifier']['bias']),
  }
  norms = {
    branch: {name: tf.Variable(x) for name, x in state.norms[branch]['bn'].items()}
    for branch in ('clean', 'adv')
  }
  running = {
    branch: {name: np.asarray(x) for name, x in state.batch_stats[branch]['bn'].items()}
    for branch in ('clean', 'adv')
  }
  grads = {name: 0.0 for name in params} | {
    f'{branch}/{name}': 0.0 for branch in norms for name in norms[branch]
  }
  counts = dict.fromkeys(['shared', 'clean', 'adv'], 0.0)
  new_running = {
    branch: [dict(running[branch]) for _ in range(NUM_DEVICES)] for branch in norms
  }

  def logits_of(x, branch, batch_statistics):
    y = tf.nn.conv2d(x - 0.5, params['conv'], 2, 'SAME')
    if batch_statistics:
      mean, var = tf.nn.moments(y, [0, 1, 2])
    else:
      mean, var = running[branch]['mean'], running[branch]['var']
    norm = norms[branch]
    y = (y - mean) * tf.math.rsqrt(var + 1e-3) * norm['scale'] + norm['bias']
    y = tf.reduce_mean(tf.nn.relu(y), [1, 2])
    return y @ params['kernel'] + params['bias'], (mean, var)

  def add(x, label, branch, weight, device, *, trains=True, batch_statistics=True):
    """Adds a pass to gradients, counts and statistics; returns the images' gradient."""
    x = tf.Variable(x)
    with tf.GradientTape() as tape:
      logits, (mean, var) = logits_of(x, branch, batch_statistics)
      # What only attacks has the labels as they are.
      smoothing = SMOOTHING if trains else 0.0
      target = (1 - smoothing) * tf.one_hot(
        label, NUM_CLASSES
      ) + smoothing / NUM_CLASSES
      loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(target, logits))
    wanted = {
      **params,
      **{f'{branch}/{k}': v for k, v in norms[branch].items()},
      'x': x,
    }
    found = tape.gradient(loss, wanted)
    if trains:
      for name in wanted:
        if name != 'x':
          grads[name] += weight * found[name].numpy()
      counts['shared'] += weight * len(label)
      counts[branch] += weight * len(label)
      if batch_statistics:
        stats = new_running[branch][device]
        for key, value in [('mean', mean), ('var', var)]:
          stats[key] = 0.9 * stats[key] + 0.1 * value.numpy()
    return found['x'].numpy()

  adversarial, adv_labels = [], []
  for device in range(NUM_DEVICES):
    own = slice(device * batch_size, (device + 1) * batch_size)
    image, label = batch['image'][own], batch['label'][own]
    add(image[:num_clean], label[:num_clean], 'clean', 1.0, device)
    start = image[num_clean:] + noises[device]
    gradient = add(
      start,
      label[num_clean:],
      'adv',
      components.noise_weight,
      device,
      trains=components.reuse_gradient,
      batch_statistics=components.statistics == 'batch',
    )
    attacked = start + components.step_size * np.sign(gradient)
    low, high = image[num_clean:] - EPSILON, image[num_clean:] + EPSILON
    adversarial.append(np.clip(np.clip(attacked, low, high), 0, 1))
    adv_labels.append(label[num_clean:])
  adversarial = np.concatenate(adversarial)[order]
  adv_labels = np.concatenate(adv_labels)[order]
  for device in range(NUM_DEVICES):
    own = slice(device * num_adv, (device + 1) * num_adv)
    weight = components.adversarial_weight
    add(adversarial[own], adv_labels[own], 'adv', weight, device)

  def updated(name, old, count):
    return np.asarray(old) - LEARNING_RATE * grads[name] / counts[count]

  own_counts = components.own_counts
  return {
    'params': {
      'conv': {'kernel': updated('conv', params['conv'], 'shared')},
      'classifier': {k: updated(k, params[k], 'shared') for k in ('kernel', 'bias')},
    },
    'norms': {
      branch: {
        'bn': {
          k: updated(f'{branch}/{k}', v, branch if own_counts else 'shared')
          for k, v in norms[branch].items()
        }
      }
      for branch in norms
    },
    'batch_stats': {
      branch: {
        'bn': {
          k: np.mean([stats[k] for stats in new_running[branch]], 0)
          for k in ('mean', 'var')
        }
      }
      for branch in norms
    },
  }


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'adversarial_share': 0.5, 'noise_weight': 0.2, 'adversarial_weight': 0.7},
    {'reuse_gradient': False, 'noise_weight': 0.0},
    {'reuse_gradient': False, 'noise_weight': 0.0, 'statistics': 'running'},
    {'statistics': 'running'},
    {'shuffle_over_devices': False, 'step_size': 2 * EPSILON},
    {'own_counts': False},
  ],
  ids=str,
)
def test_one_step_is_the_published_update(changes):
  """The last is none of the published choices: one count for everything."""
  state, batch = create_state(), create_batch()
  components = COMPONENTS._replace(**changes)
  new, metrics = run(state, batch, components)
  expected = published_update(state, batch, components)
  for name in ('params', 'norms', 'batch_stats'):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6),
      jax.device_get(getattr(new, name)),
      expected[name],
    )
  assert metrics['all_finite'] and metrics['adv_loss'] > metrics['noise_loss']


def test_shuffling_keeps_images_and_labels_together_and_crosses_devices():
  def step(rng, x):
    return parallel.shuffle(rng, {'image': x, 'label': x[:, 0] * 10})

  shuffle = parallel.data_parallel(step, split=(False, True), split_outputs=True)
  x = np.arange(24, dtype=np.float32).reshape(4, 6, 1)
  result = jax.device_get(shuffle(jax.random.key(0), x))
  assert sorted(result['image'].ravel()) == list(range(24))
  np.testing.assert_array_equal(result['image'][..., 0] * 10, result['label'])
  origin = result['image'][..., 0] // 6
  assert all(len(set(origin[device])) > 1 for device in range(4))


def test_parts_of_a_batch_are_one_update_with_their_mean_gradient():
  state, batch = create_state(), create_batch()
  new, metrics = run(state, batch, accumulate_steps=2)
  assert new.step == 1 and metrics['all_finite']
  updates, before = [], state
  for part in range(2):
    of_part = {
      key: x.reshape((NUM_DEVICES, 2, -1) + x.shape[1:])[:, part]
      for key, x in batch.items()
    }
    of_part = {key: x.reshape((-1,) + x.shape[2:]) for key, x in of_part.items()}
    updates.append(published_update(before, of_part, COMPONENTS, part))
    before = state.replace(batch_stats=updates[-1]['batch_stats'])
  for name in ('params', 'norms'):
    jax.tree.map(
      lambda x, first, second: np.testing.assert_allclose(
        x, (first + second) / 2, atol=2e-6
      ),
      jax.device_get(getattr(new, name)),
      *(update[name] for update in updates),
    )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6),
    jax.device_get(new.batch_stats),
    updates[-1]['batch_stats'],
  )
