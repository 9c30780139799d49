"""Times AutoAttack against what it cannot do without; prints one line of JSON.

  python benchmarks/autoattack.py --what=apgd --model efficientnet_b0 --size 224
  python benchmarks/autoattack.py --what=dropping --examples 360 --batch 60
  python benchmarks/autoattack.py --what=peer

`apgd`: gradients a second of Auto-PGD, which does not stop early, and of the bare
forward and backward pass. `dropping`: the version 'standard', each attack on what those
before it have left (`seconds_dropping`) or on all that was classified correctly at the
beginning (`seconds_all`). `peer`: the same version, ours and by pyautoattack with the
same network in PyTorch; needs tests/attacks/requirements-autoattack.txt as well.

The last two are of the digits and a network that was trained on them. All seconds are
the least of `--repeats`, without compilation, but for `seconds_cold`: those of ours the
first time.
"""

import argparse
import copy
import functools
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tests' / 'attacks'))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from advprop_jax import startup

if __name__ == '__main__':
  startup.prepare()

import jax
import numpy as np
import reference_autoattack
import trained

from advprop_jax import errors, losses, models
from advprop_jax.attacks import apgd, checks, ensembles, inputs, worst_case
from advprop_jax.models import initializers
from benchmarks import training

NETWORK = 'digits_advprop'
NORM = 'linf'
# The radius is one of these, by a short Auto-PGD: what attacks cost depends on how many
# examples they leave.
ROBUST_ACCURACY = 0.3
EPSILONS = [i / 255 for i in range(2, 41, 2)]
SHORT_APGD = {**ensembles.APGD_CE.section, 'num_steps': 20, 'norm': NORM}
MAX_LOGITS_DIFFERENCE = 1e-4
# Images at a time; of the peer's are all, of ours as many as the library has by itself.
BATCH_SIZES = {'apgd': 16, 'dropping': 16, 'peer': worst_case.MAX_BATCH}


def take_turns(repeats: int, *calls) -> list[float]:
  """Returns the least seconds of each call; nothing is to be compiled in them."""
  secs: list[list[float]] = [[] for _ in calls]
  for _ in range(repeats):
    for call, found in zip(calls, secs, strict=True):
      start = time.perf_counter()
      call()
      found.append(time.perf_counter() - start)
  return [min(x) for x in secs]


def time_apgd(args) -> dict:
  """Returns the line of `apgd`."""
  model = models.create_model(args.model, num_classes=training.NUM_CLASSES)
  rng = np.random.default_rng(0)
  shape = (args.batch, args.size, args.size, 3)
  image = jax.device_put(rng.random(shape, np.float32))
  label = jax.device_put(np.arange(args.batch, dtype=np.int32) % training.NUM_CLASSES)

  @jax.jit
  def create():
    key = initializers.host_key(jax.random.key(0))
    return model.init(key, np.zeros((1, *shape[1:]), np.float32), train=False)

  variables = create()

  def ascend(variables, image, label):
    evaluate = apgd.make_evaluate(
      functools.partial(model.apply, variables, train=False),
      label,
      functools.partial(losses.cross_entropy, label=label),
    )
    return apgd.ascend(
      evaluate,
      image,
      image,
      norm=NORM,
      epsilon=training.EPSILON,
      num_steps=args.steps,
      stop_early=False,
    )

  def loss(image, variables, label):
    logits = model.apply(variables, image, train=False)
    return losses.cross_entropy(logits, label).sum()

  ours = jax.jit(ascend).lower(variables, image, label).compile()
  gradient = jax.jit(jax.grad(loss)).lower(image, variables, label).compile()
  num_gradients = args.steps + 1  # One at the start.

  def run_ours():
    jax.block_until_ready(ours(variables, image, label))

  def run_bare():
    under_way = None  # One, while the next is begun: the host's own time is hidden.
    for _ in range(num_gradients):
      under_way, before = gradient(image, variables, label), under_way
      jax.block_until_ready(before)
    jax.block_until_ready(under_way)

  secs, bare_secs = take_turns(args.repeats, run_ours, run_bare)
  return {
    'model': args.model,
    'size': args.size,
    'batch': args.batch,
    'steps': args.steps,
    'gradients_per_sec': args.batch * num_gradients / secs,
    'bare_gradients_per_sec': args.batch * num_gradients / bare_secs,
    'share': bare_secs / secs,
  }


class Digits:
  """A network, its examples, and the version 'standard'."""

  def __init__(self, args):
    image, label = trained.examples(NETWORK, args.examples, args.data_dir)
    if args.epsilon is not None:
      inputs.check_epsilon(args.epsilon, norm=NORM, image_shape=image.shape[1:])
    position = np.arange(len(label), dtype=np.int32)
    self.examples = worst_case.Examples(image, label, position)
    self._logits_fn = trained.load(NETWORK)
    self._batch_size = min(args.batch, len(label))
    self.run = self._create_run()
    self.epsilon = args.epsilon
    if args.epsilon is None:
      self.epsilon = self._find_epsilon()
    members = dict(ensembles.VERSIONS['standard'])
    square = {**members['square'].section, 'num_queries': args.queries}
    members['square'] = members['square']._replace(section=square)
    self.stages = ensembles.stages(
      members, epsilon=self.epsilon, norm=NORM, num_classes=10
    )

  def _create_run(self) -> worst_case.WorstCase:
    """Returns the attacks, of which nothing is compiled yet."""
    return worst_case.WorstCase(
      lambda variables, image: self._logits_fn(image),
      None,
      num_classes=10,
      norm=NORM,
      batch_size=self._batch_size,
      rng=jax.random.key(0),
    )

  def _find_epsilon(self) -> float:
    """Returns the radius at which the robust accuracy is nearest ROBUST_ACCURACY."""
    stages = ensembles.stages_of_one(SHORT_APGD, epsilons=EPSILONS, num_restarts=1)
    run = self._create_run()  # Else one program would be compiled before it is timed.
    state = run.run(stages, self.examples, run.begin(self.examples))
    wanted = ROBUST_ACCURACY * state.num_examples
    distances = [abs(robust - wanted) for robust in state.robust[1:]]
    return EPSILONS[int(np.argmin(distances))]

  def begin(self) -> worst_case.State:
    return self.run.begin(self.examples)

  def attack(self) -> worst_case.State:
    """Runs each attack on what those before it have left."""
    return self.run.run(self.stages, self.examples, self.begin())

  def compile_to_attack_all(self):
    """Compiles the attacks for full batches.

    Examples whose label is wrong have fallen already: the attacks return at once.
    """
    self.run = self._create_run()
    wrong = self.examples._replace(label=(self.examples.label + 1) % 10)
    index = np.flatnonzero(self.begin().fallen_at == worst_case.ROBUST)[:1]
    for stage in {stage.section: stage for stage in self.stages}.values():
      attacked = self.run.attack(stage, wrong, index, number_of_stage=0)
      jax.block_until_ready(attacked)

  def attack_all(self) -> np.ndarray:
    """Runs each on all that is classified correctly; returns what withstands, [N]."""
    begin = self.begin()
    is_robust = begin.fallen_at == worst_case.ROBUST
    for i in range(len(self.stages)):
      # As if those before had found nothing; the random numbers are the same.
      before = begin._replace(robust=begin.robust * (i + 1), rejected=(0,) * i)
      state = self.run.run(self.stages[: i + 1], self.examples, before)
      is_robust &= state.fallen_at == worst_case.ROBUST
    return is_robust

  def describe(self, args) -> dict:
    """Returns what a line says of the work."""
    return {
      'network': NETWORK,
      'epsilon': self.epsilon,
      'examples': len(self.examples.label),
      'queries': args.queries,
      'batch': self.run.batch_size,
    }


def time_dropping(args) -> dict:
  """Returns the line of `dropping`."""
  digits = Digits(args)
  (cold,) = take_turns(1, digits.attack)  # Batches get the sizes that they will have.
  everything = copy.copy(digits)
  everything.compile_to_attack_all()
  found = {}

  def dropping():
    found['dropping'] = digits.attack()

  def attack_all():
    found['all'] = everything.attack_all()

  seconds, seconds_all = take_turns(args.repeats, dropping, attack_all)
  state = found['dropping']
  return {
    **digits.describe(args),
    'clean_accuracy': state.robust[0] / state.num_examples,
    'robust_accuracy': state.robust[-1] / state.num_examples,
    'robust_accuracy_all': float(found['all'].mean()),
    'seconds_cold': cold,
    'seconds_dropping': seconds,
    'seconds_all': seconds_all,
    'share': seconds / seconds_all,
  }


def time_peer(args) -> dict:
  """Returns the line of `peer`.

  Raises:
    UserError: the peer is not installed.
  """
  try:
    import pyautoattack  # noqa: F401
    import torch

    from benchmarks import torch_tiny
  except ImportError as e:
    raise errors.UserError(
      f'--what=peer needs the module {e.name}; allowed: after pip install -r '
      'tests/attacks/requirements-autoattack.txt'
    ) from e

  digits = Digits(args)
  network = torch_tiny.load(trained.DATA / f'{NETWORK}.npz')
  image, label = digits.examples.image, digits.examples.label
  image_of_torch = torch.from_numpy(image.transpose(0, 3, 1, 2) / np.float32(255))
  theirs = network(image_of_torch).numpy()
  size = digits.run.batch_size
  parts = [digits.run.logits(image[i : i + size]) for i in range(0, len(image), size)]
  difference = float(np.abs(np.concatenate(parts) - theirs).max())
  assert difference <= MAX_LOGITS_DIFFERENCE, difference

  begin = digits.begin()
  (check_secs,) = (
    take_turns(  # First, as in an evaluation: it compiles the first attack.
      1, lambda: checks.before(digits.run, digits.examples, begin, digits.stages[0])
    )
  )
  (cold,) = take_turns(1, digits.attack)
  case = {
    'norm': NORM,
    'epsilon': digits.epsilon,
    'attacks': reference_autoattack.STANDARD,
    **reference_autoattack.FULL,
    'num_queries': args.queries,
  }
  found = {}

  def attack():
    found['ours'] = digits.attack()

  def attack_by_peer():
    found['peer'], _ = reference_autoattack.run(case, network, image, label)

  seconds, peer_seconds = take_turns(args.repeats, attack, attack_by_peer)
  state = found['ours']
  return {
    **digits.describe(args),
    'peer_batch': len(label),
    'threads': torch.get_num_threads(),
    'logits_difference': difference,
    'robust_accuracy': state.robust[-1] / state.num_examples,
    'peer_robust_accuracy': float(found['peer'].mean()),
    'seconds': seconds,
    'seconds_cold': check_secs + cold,
    'check_secs': check_secs,  # Of our signs of a broken evaluation, in seconds_cold.
    'peer_seconds': peer_seconds,
    'speedup': peer_seconds / seconds,
    'speedup_with_compilation': peer_seconds / (check_secs + cold),
  }


WHAT = {'apgd': time_apgd, 'dropping': time_dropping, 'peer': time_peer}


def main(argv=None):
  """Prints the line of one comparison."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add, positive = parser.add_argument, training.positive
  add('--what', required=True, choices=WHAT, help='is compared, see above')
  add('--repeats', type=positive, default=3, help='of each, by turns')
  add('--batch', type=positive, help=f'images at a time; by default {BATCH_SIZES}')
  add('--model', default='efficientnet_b0', choices=models.MODELS, help='of apgd')
  add('--size', type=positive, default=224, help='of the images of apgd, pixels')
  add('--steps', type=positive, default=100, help='of apgd')
  add('--examples', type=positive, default=100, help='digits')
  add('--queries', type=positive, default=5000, help='of Square, on the digits')
  add('--epsilon', type=float, help='on the digits; else it is searched')
  add('--data-dir', default='', help='of the digits')
  args = parser.parse_args(argv)
  args.batch = args.batch or BATCH_SIZES[args.what]
  line = {'what': args.what, **WHAT[args.what](args)}
  line['device'] = jax.devices()[0].device_kind
  print(json.dumps(line))


if __name__ == '__main__':
  # Else `compile_secs` would be those of an earlier run's programs.
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    main()
  except errors.UserError as e:
    sys.exit(f'error: {e}')
