"""The worst that a list of attacks does to each example, at a cost that falls.

The attacks run one after another, each on the examples that are still classified
correctly: these are packed into full batches again. An adversarial image counts if it
is in the ball and in [0, 1], and if it is misclassified in a forward pass of its own.
What becomes of an example depends on its position in the data, not on its batch, the
size of the batches or the number of devices.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from advprop_jax import errors, pixels
from advprop_jax.attacks import inputs, stage_attack
from advprop_jax.attacks.ensembles import Stage

ROBUST, WRONG_BEFORE = -1, 0  # Of `State.fallen_at`; stage i is i + 1.
# By norm: how far outside the ball an image may be, absolutely and in shares of the
# radius. Float32 rounds a pixel by 6e-8, and an L2 norm of 10^5 values by up to 1e-5.
TOLERANCES = {'linf': (1e-6, 0.0), 'l2': (1e-6, 1e-4)}


MAX_BATCH = 64  # Of a device. Larger ones hold more that has fallen, for little speed.
ORDERS = {'linf': np.inf, 'l2': 2}  # Of NumPy's norms.


class Examples(NamedTuple):
  """The examples of this host, numpy; all have a label."""

  image: np.ndarray  # [N, H, W, 3], bytes or float32 in [0, 1], see `pixels.py`.
  label: np.ndarray  # int32 [N]
  position: np.ndarray  # int32 [N]: in the data set, of which the random numbers are.


class State(NamedTuple):
  """What is known after some stages."""

  fallen_at: np.ndarray  # int32 [N]: the stage by which it fell, from 1 on; see above.
  num_examples: int  # Over all hosts, as all numbers that follow.
  robust: tuple[int, ...]  # Examples left: clean, then after each stage.
  rejected: tuple[int, ...] = ()  # Of each stage: misclassified, but against the rules.
  not_finite: tuple[int, ...] = ()  # Of each stage: without a class, so not counted.
  # Of each stage: misclassified in one program and not in the other.
  unsteady: tuple[int, ...] = ()
  seconds: tuple[float, ...] = ()  # Of each stage.

  @property
  def num_done(self) -> int:
    """Stages that have run."""
    return len(self.rejected)

  def cut(self, num_done: int) -> 'State':
    """Returns the state after the first stages alone; the counts are of all hosts."""
    is_later = self.fallen_at > num_done
    return State(
      fallen_at=np.where(is_later, ROBUST, self.fallen_at).astype(np.int32),
      num_examples=self.num_examples,
      robust=self.robust[: num_done + 1],
      rejected=self.rejected[:num_done],
      not_finite=self.not_finite[:num_done],
      unsteady=self.unsteady[:num_done],
      seconds=self.seconds[:num_done],
    )


class Devices(NamedTuple):
  """How the work on a batch is placed; one device by default."""

  # (function, for every argument whether it is split along the batch) -> compiled.
  compile: Callable[[Callable, tuple[bool, ...]], Callable] = lambda function, split: (
    jax.jit(function)
  )
  put: Callable[[Any], Any] = lambda batch: batch  # Of this host, to the devices.
  get: Callable[[Any], np.ndarray] = np.asarray  # And back.
  num_local: int = 1  # Devices of this host.
  sum: Callable[[int], int] = int  # Over hosts; all of them call it.
  max: Callable[[int], int] = int  # Likewise.


class _Traced(NamedTuple):
  """What may change from stage to stage without another program."""

  epsilon: Any
  num_steps: Any  # Of attacks that have such an argument.
  target_rank: Any  # Of attacks with a target.


LogitsOf = Callable[..., jax.Array]  # (variables, image[, key]) -> [B, K]


class WorstCase:
  """Runs stages on examples; what is compiled serves all batches and targets."""

  def __init__(
    self,
    logits_of: LogitsOf,
    variables,
    *,
    num_classes: int,
    norm: str,
    batch_size: int,
    rng: jax.Array,
    attack_variables=None,
    devices: Devices | None = None,
    is_randomised: bool = False,
  ):
    """Prepares the attacks on a network.

    Args:
      logits_of: maps variables and images to logits; a randomised one takes a key.
      variables: of the network that classifies.
      num_classes: K.
      norm: a key of `balls.BALLS`.
      batch_size: examples of this host at a time, a multiple of its devices.
      rng: one key; every stage and example has its own.
      attack_variables: of another network that the attacks see; None: the same.
      devices: where it runs; None: on JAX's default device.
      is_randomised: whether `logits_of` takes a key.
    """
    self.num_classes, self.norm, self.batch_size = num_classes, norm, batch_size
    self.devices = devices or Devices()
    self.logits_of, self.is_randomised = logits_of, is_randomised
    self._rng, self._rng_of_passes = jax.random.split(rng)
    self._variables = variables
    self.is_transfer = attack_variables is not None
    self.attack_variables = attack_variables if self.is_transfer else variables
    self._num_passes = 0
    # By `_program`: what is compiled, and its batch size.
    self._compiled: dict[Any, Callable] = {}
    self._sizes: dict[Any, int] = {}
    self._classify = self._compile_logits()

  def _compile_logits(self):
    def logits(variables, batch, rng):
      key = (rng,) if self.is_randomised else ()
      return self.logits_of(variables, pixels.to_unit(batch['image']), *key)

    return self.devices.compile(logits, (False, True, False))

  def logits(self, image: np.ndarray, *, is_traced_anew: bool = False) -> np.ndarray:
    """Returns the logits of one batch, float32 [B, K]; fewer images are filled up.

    Args:
      image: see `Examples`, [n, H, W, 3], n <= `batch_size`.
      is_traced_anew: call `logits_of` again instead of what was compiled of it. What
        it draws outside of JAX's keys is then drawn again.
    """
    if is_traced_anew:
      self._classify = self._compile_logits()
    image = pixels.to_unit(image)  # Before: one program for bytes and floats.
    batch = self.devices.put({'image': self._fill(image, self.batch_size)})
    rng = jax.random.fold_in(self._rng_of_passes, self._num_passes)
    self._num_passes += self.is_randomised
    return self.devices.get(self._classify(self._variables, batch, rng))[: len(image)]

  def attack(
    self,
    stage: Stage,
    examples: Examples,
    index: np.ndarray,
    *,
    number_of_stage: int,
  ) -> Any:
    """Begins the attack on one batch.

    Args:
      stage: which attack.
      examples: of this host.
      index: which of them, int [n], n <= `batch_size`.
      number_of_stage: tells the random numbers of stages apart.

    Returns:
      Adversarial images, float32 [B, H, W, C], and their classes in the same program,
      int32 [B]: on the devices, and filled up by the first.
    """
    key, size = stage_attack.program(stage), self._size_of(stage, self.batch_size)
    if key not in self._compiled:
      self._compiled[key] = self.devices.compile(
        functools.partial(self._attack_step, *key),
        (False, True, False, False),
      )
    part = Examples(*(x[index] for x in examples))
    rng = jax.random.fold_in(self._rng, number_of_stage)
    num_steps = np.int32(dict(stage.section).get('num_steps', 0))
    rank, epsilon = np.int32(stage.target_rank), np.float32(stage.epsilon)
    traced = _Traced(epsilon, num_steps, rank)
    batch = self.devices.put(self.fill(part, size))
    return self._compiled[key](self.attack_variables, batch, rng, traced)

  def _attack_step(
    self, section, has_steps, is_targeted, variables, batch, rng, traced
  ):
    attack = stage_attack.create(
      section,
      self.num_classes,
      epsilon=traced.epsilon,
      num_steps=traced.num_steps if has_steps else None,
      target_rank=traced.target_rank if is_targeted else None,
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch['position'])
    logits_fn = functools.partial(self.logits_of, variables)
    adversarial = attack(
      logits_fn, pixels.to_unit(batch['image']), batch['label'], keys
    )
    if self.is_randomised or self.is_transfer:  # Nothing to compare with.
      return adversarial, batch['label']
    return adversarial, logits_fn(adversarial).argmax(-1)

  def begin(self, examples: Examples) -> State:
    """Returns the state before any attack: what is misclassified has fallen.

    Raises:
      UserError: the model returns no logits, see `inputs.check_logits`; on all hosts.
    """
    problem = None
    fallen_at = np.full(len(examples.label), ROBUST, np.int32)
    for index in self._batches(np.arange(len(examples.label)), self.batch_size):
      logits = self.logits(examples.image[index])
      is_wrong = logits.argmax(-1) != examples.label[index]
      fallen_at[index[is_wrong]] = WRONG_BEFORE
      if len(index) and problem is None:
        problem = inputs.find_problem(logits)
    if self.devices.sum(problem is not None):
      raise errors.UserError(problem or 'another host has met a problem, see its log')
    num_examples = self.devices.sum(len(fallen_at))
    return State(fallen_at, num_examples, robust=(self._count_robust(fallen_at),))

  def run(
    self,
    stages: Sequence[Stage],
    examples: Examples,
    state: State,
    *,
    keep: Callable[[np.ndarray, np.ndarray], None] = lambda index, image: None,
    after_batch: Callable[[State, float], None] = lambda state, share: None,
    after_stage: Callable[[Stage, State], None] = lambda stage, state: None,
    first_number: int = 0,
  ) -> State:
    """Runs the stages that have not run yet.

    Args:
      stages: all of them.
      examples: of this host.
      state: where to go on, see `begin`.
      keep: called with the index of examples that fell, and their adversarial images.
      after_batch: called with the state before the stage, and the share of its batches
        that is done.
      after_stage: called with the stage and the state after it.
      first_number: of the first stage, for its random numbers.

    Returns:
      The state after all stages.
    """
    for i in range(state.num_done, len(stages)):
      state = self._run_stage(
        i + first_number, stages[i], examples, state, keep, after_batch
      )
      after_stage(stages[i], state)
    return state

  def _run_stage(
    self, number: int, stage: Stage, examples, state: State, keep, after_batch
  ):
    """Returns the state after one more stage."""
    start, fallen_at = time.monotonic(), state.fallen_at.copy()
    num_rejected = num_infinite = num_unsteady = 0
    left = np.flatnonzero(fallen_at == ROBUST)
    batches = []
    if state.robust[-1]:
      batches = self._batches(left, self._size_of(stage, self.devices.max(len(left))))
    # One after the other: two programs at a time are slower on a CPU, and elsewhere the
    # next has to wait as well.
    for i, index in enumerate(batches):
      found = self.attack(stage, examples, index, number_of_stage=number)
      image, predicted = (self.devices.get(x)[: len(index)] for x in found)
      logits = self.logits(image)
      if not self.is_transfer and not self.is_randomised:
        num_unsteady += int((predicted != logits.argmax(-1)).sum())
      is_wrong = logits.argmax(-1) != examples.label[index]
      is_valid = self._is_valid(examples.image[index], image, stage.epsilon)
      is_finite = np.isfinite(logits).all(-1)
      has_fallen = is_wrong & is_valid & is_finite
      num_rejected += int((is_wrong & ~is_valid).sum())
      num_infinite += int((is_valid & ~is_finite).sum())
      fallen_at[index[has_fallen]] = state.num_done + 1
      keep(index[has_fallen], image[has_fallen])
      after_batch(state, (i + 1) / len(batches))
    return State(
      fallen_at,
      state.num_examples,
      robust=(*state.robust, self._count_robust(fallen_at)),
      rejected=(*state.rejected, self.devices.sum(num_rejected)),
      not_finite=(*state.not_finite, self.devices.sum(num_infinite)),
      unsteady=(*state.unsteady, self.devices.sum(num_unsteady)),
      seconds=(*state.seconds, round(time.monotonic() - start, 3)),
    )

  def _size_of(self, stage: Stage, num_left: int) -> int:
    """Returns the batch size of a stage: what fits when its program is first used."""
    size = even_batch_size(
      num_left, self.batch_size, num_devices=self.devices.num_local
    )
    return self._sizes.setdefault(stage_attack.program(stage), size)

  def _batches(self, index: np.ndarray, size: int) -> list[np.ndarray]:
    """Returns parts of an index for full batches; as many on every host."""
    number = self.devices.max(-(-len(index) // size))
    return [index[i * size : (i + 1) * size] for i in range(number)]

  def fill(self, part: Examples, size: int | None = None) -> dict[str, np.ndarray]:
    """Returns a batch of the examples of a part, as steps have it.

    Args:
      part: as many as the batch has at most.
      size: of the batch; None: `batch_size`.
    """
    size = size or self.batch_size
    return {key: self._fill(x, size) for key, x in part._asdict().items()}

  def _fill(self, x: np.ndarray, size: int) -> np.ndarray:
    """Returns a full batch: the first example again, which costs no further steps.

    Without examples it is zeros: another host has more.
    """
    if not len(x):
      return np.zeros((size, *x.shape[1:]), x.dtype)
    missing = size - len(x)
    return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x

  def _is_valid(self, image, adversarial, epsilon: float) -> np.ndarray:
    """Returns whether adversarial images are in the ball and in [0, 1], bool [n]."""
    image = np.asarray(pixels.to_unit(image), np.float64)
    delta = (adversarial - image).reshape([len(image), math.prod(image.shape[1:])])
    distance = np.linalg.norm(delta, ORDERS[self.norm], axis=1)
    absolute, relative = TOLERANCES[self.norm]
    # NaN is in no range.
    is_in_range = ((adversarial >= 0) & (adversarial <= 1)).all((1, 2, 3))
    return is_in_range & (distance <= epsilon * (1 + relative) + absolute)

  def _count_robust(self, fallen_at: np.ndarray) -> int:
    return self.devices.sum(int((fallen_at == ROBUST).sum()))


def even_batch_size(num_examples: int, most: int, *, num_devices: int = 1) -> int:
  """Returns the size of equal batches, so that little of the last one is empty.

  Args:
    num_examples: at least one.
    most: the largest size, a multiple of `num_devices`.
    num_devices: that a batch is split over.
  """
  num_batches = -(-num_examples // most)
  per_device = -(-num_examples // (num_batches * num_devices))
  return per_device * num_devices


def remaining_cost(stages: Sequence[Stage], state: State, share: float = 0.0) -> int:
  """Returns the forward passes that are left if no further example falls.

  Args:
    stages: all of them.
    state: after some.
    share: of the next stage that is done.
  """
  costs = [stage.cost for stage in stages[state.num_done :]]
  done = share * costs[0] if costs else 0.0
  return int(state.robust[-1] * (sum(costs) - done))
