"""Tests the runner of several attacks: what falls is dropped, verified and counted."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advprop_jax import errors
from advprop_jax.attacks import (
  apgd,
  checks,
  ensembles,
  stage_attack,
  table,
  worst_case,
)
from advprop_jax.attacks.ensembles import Stage

pytestmark = pytest.mark.usefixtures('fast_compilation')

EPSILON, SHAPE, NUM_CLASSES, COUNT = 0.1, (4, 4, 3), 5, 23
WEIGHTS = np.random.RandomState(0).standard_normal((48, NUM_CLASSES)).astype(np.float32)


def logits_of(variables, image):
  return jnp.tanh(image.reshape(len(image), -1) - 0.5) @ variables


@pytest.fixture(scope='module')
def examples():
  rng = np.random.RandomState(1)
  image = rng.uniform(size=(COUNT, *SHAPE)).astype(np.float32)
  label = np.asarray(logits_of(WEIGHTS, image)).argmax(-1).astype(np.int32)
  label[[3, 8]] = (label[[3, 8]] + 1) % NUM_CLASSES  # Misclassified from the start.
  return worst_case.Examples(image, label, np.arange(COUNT, dtype=np.int32))


def create(**changes):
  arguments = {
    'num_classes': NUM_CLASSES,
    'norm': 'linf',
    'batch_size': 8,
    'rng': jax.random.key(0),
  }
  model = changes.pop('logits_of', logits_of)
  return worst_case.WorstCase(model, jnp.asarray(WEIGHTS), **arguments | changes)


def fgsm(epsilon, **changes):
  section = {'name': 'fgsm', 'targeted': False}
  return Stage('fgsm', tuple(section.items()), epsilon, **changes)


def pgd(epsilon, num_steps, restart=0):
  section = {'name': 'pgd', 'step_size': 0.25, 'num_steps': num_steps}
  section |= {'targeted': False, 'prob_start_from_clean': 0.0}
  return Stage('pgd', tuple(section.items()), epsilon, restart=restart)


STAGES = [fgsm(0.02), pgd(0.03, 3), pgd(0.03, 3, restart=1), pgd(0.06, 3)]


@pytest.fixture(scope='module')
def outcome(examples):
  """Returns the state after STAGES and what was kept."""
  kept = {}

  def keep(index, images):
    kept.update(zip(index.tolist(), images, strict=True))

  run = create()
  with_flags = run.begin(examples)
  return with_flags, run.run(STAGES, examples, with_flags, keep=keep), kept


def test_what_is_misclassified_is_not_attacked(examples, outcome):
  begin, state, kept = outcome
  assert begin.robust == (COUNT - 2,) and begin.num_done == 0
  assert np.flatnonzero(begin.fallen_at == worst_case.WRONG_BEFORE).tolist() == [3, 8]
  assert not {3, 8} & kept.keys()
  assert (state.fallen_at[[3, 8]] == worst_case.WRONG_BEFORE).all()


def test_every_fallen_example_has_an_image_that_proves_it(examples, outcome):
  _, state, kept = outcome
  assert sorted(kept) == np.flatnonzero(state.fallen_at > 0).tolist()
  assert len(set(state.fallen_at.tolist())) > 3  # Several stages had successes.
  for i, image in kept.items():
    epsilon = STAGES[state.fallen_at[i] - 1].epsilon
    assert np.abs(image - examples.image[i]).max() <= epsilon + 1e-6
    assert 0 <= image.min() and image.max() <= 1
    assert np.asarray(logits_of(WEIGHTS, image[None])).argmax() != examples.label[i]


def test_counts_are_those_of_the_flags(outcome):
  _, state, _ = outcome
  expected = [
    int(((state.fallen_at == worst_case.ROBUST) | (state.fallen_at > i)).sum())
    for i in range(len(STAGES) + 1)
  ]
  assert list(state.robust) == expected and state.num_examples == COUNT
  assert state.rejected == (0, 0, 0, 0) and state.num_done == len(STAGES)


def test_equals_each_attack_on_all_examples(examples, outcome):
  # Written without the runner: the same attacks, on everything, one batch of one.
  _, state, _ = outcome
  falls = []
  for i, stage in enumerate(STAGES):
    section = dict(stage.section)
    if 'step_size' in section:
      section['step_size'] *= stage.epsilon
    attack = table.ATTACKS[section.pop('name')](
      num_classes=NUM_CLASSES, epsilon=stage.epsilon, **section
    )
    key = jax.random.fold_in(jax.random.split(jax.random.key(0))[0], i)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(COUNT))
    run = functools.partial(attack, functools.partial(logits_of, WEIGHTS))
    image = jax.jit(run)(examples.image, jnp.asarray(examples.label), keys)
    predicted = np.asarray(logits_of(WEIGHTS, image)).argmax(-1)
    falls.append(predicted != examples.label)
  clean = np.asarray(logits_of(WEIGHTS, examples.image)).argmax(-1) == examples.label
  robust = clean & ~np.any(falls, axis=0)
  assert (robust == (state.fallen_at == worst_case.ROBUST)).all()
  # The worst case of each example, and not the worst attack: item 10 of the checklist.
  assert robust.sum() <= min((clean & ~x).sum() for x in falls)


@pytest.mark.parametrize('batch_size', [3, 23])
def test_results_do_not_depend_on_the_batch_size(examples, outcome, batch_size):
  run = create(batch_size=batch_size)
  state = run.run(STAGES, examples, run.begin(examples))
  assert state.fallen_at.tolist() == outcome[1].fallen_at.tolist()


def test_cost_falls_with_the_accuracy(examples):
  run, sizes = create(batch_size=4), []
  attack = run.attack

  def count(stage, examples, index, **arguments):
    sizes.append(len(index))
    return attack(stage, examples, index, **arguments)

  run.attack = count
  state = run.run(STAGES, examples, run.begin(examples))
  batches = [-(-left // 4) for left in state.robust[: len(STAGES)]]
  assert len(sizes) == sum(batches) and batches[-1] < batches[0]
  assert sum(sizes) == sum(state.robust[: len(STAGES)])


def test_an_interrupted_run_goes_on(examples, outcome):
  run, states = create(), []

  class Interrupted(Exception):
    pass

  def stop(stage, state):
    states.append(state)
    if len(states) == 2:
      raise Interrupted

  with pytest.raises(Interrupted):
    run.run(STAGES, examples, run.begin(examples), after_stage=stop)
  run = create()  # As another process would.
  seen = []
  state = run.run(
    STAGES, examples, states[-1], after_stage=lambda stage, state: seen.append(stage)
  )
  assert seen == STAGES[2:]
  assert state.fallen_at.tolist() == outcome[1].fallen_at.tolist()
  assert state.robust == outcome[1].robust


def test_what_is_against_the_rules_does_not_count(examples, monkeypatch):
  def cheat(how):
    def make(*, epsilon):
      def attack(logits_fn, image, label, rng):
        far = jnp.round(1 - image)
        return {'ball': far, 'range': 3 * far - 1, 'nan': image * jnp.nan}[how]

      return attack

    return make

  run = create()
  begin = run.begin(examples)
  for how in ('ball', 'range', 'nan'):
    monkeypatch.setitem(table.ATTACKS, how, cheat(how))
    stage = Stage(how, (('name', how),), EPSILON)
    state = run.run([stage], examples, begin)
    assert state.robust == (COUNT - 2, COUNT - 2)
    assert state.rejected[0] > 0  # And this is said, see `checks.after`.


def test_one_branch_is_attacked_and_another_predicts(examples):
  other = np.roll(WEIGHTS, 1, axis=0)  # A network that has nothing to do with it.
  runs = [create(), create(attack_variables=jnp.asarray(other))]
  own, transferred = (
    run.run([pgd(0.06, 3)], examples, run.begin(examples)) for run in runs
  )
  assert own.robust[0] == transferred.robust[0]  # That it classifies.
  assert own.robust[1] < transferred.robust[1]  # What it falls to.


def test_apgd_for_another_network_goes_on_to_the_largest_loss(examples):
  # The first point that fools the attacked network hardly fools a similar one.
  other = WEIGHTS + 0.5 * np.random.RandomState(5).standard_normal(WEIGHTS.shape)
  run = create(attack_variables=jnp.asarray(other, jnp.float32))
  left = []
  sections = ensembles.APGD_CE.section, ensembles.to_transfer(ensembles.APGD_CE.section)
  for section in sections:
    stages = ensembles.stages_of_one(section, epsilons=(0.06,), num_restarts=1)
    left.append(run.run(stages, examples, run.begin(examples)).robust[-1])
  assert left[1] < left[0] - 3


def test_the_target_is_a_wrong_class_whatever_the_attacked_network_says():
  logits = jnp.array([[3.0, 5.0, 1.0, 0.0, -1.0]] * 2)
  label = jnp.array([0, 1])
  ranks = [apgd.target_of_rank(logits, label, rank).tolist() for rank in (2, 3, 5)]
  assert ranks == [[1, 0], [2, 2], [4, 4]]


def test_a_network_that_is_not_finite_in_the_ball_is_a_sign(examples):
  def broken(variables, image):
    rest = jnp.abs(jnp.round(255 * image) - 255 * image).max((1, 2, 3))
    return jnp.where(rest[:, None] < 1e-3, logits_of(variables, image), jnp.nan)

  image = np.round(255 * examples.image).astype(np.uint8)
  label = np.asarray(logits_of(WEIGHTS, image / np.float32(255))).argmax(-1)
  examples = examples._replace(image=image, label=label.astype(np.int32))
  run, stages = create(logits_of=broken), [pgd(0.0503, 3)]
  state = run.run(stages, examples, run.begin(examples))
  assert state.robust == (COUNT, COUNT) and state.rejected == (0,)
  assert state.not_finite == (COUNT,)
  (check,) = checks.after(stages, state)
  assert not check.passed and 'not finite there: 23 of pgd' in check.text


def test_a_state_is_cut_to_what_all_hosts_have(examples):
  run, states = create(), []
  run.run(
    STAGES,
    examples,
    run.begin(examples),
    after_stage=lambda stage, state: states.append(state),
  )
  assert states[-1].robust[0] > states[0].robust[-1] > states[-1].robust[-1]
  cut = states[-1].cut(1)
  assert cut.fallen_at.tolist() == states[0].fallen_at.tolist()
  assert cut._replace(fallen_at=None) == states[0]._replace(fallen_at=None)


def test_fab_is_not_against_the_rules_where_it_finds_nothing_near(examples):
  members = {'fab-t': ensembles.FAB_T._replace(num_targets=2)}
  stages = ensembles.stages(members, epsilon=0.02, norm='linf', num_classes=5)
  run = create()
  state = run.run(stages, examples, run.begin(examples))
  assert 0 < state.robust[-1] < COUNT - 2 and state.rejected == (0, 0)


@pytest.mark.parametrize('name, loss', [('apgd', 'targeted_dlr'), ('fab', None)])
def test_without_a_rank_the_target_is_the_likeliest_wrong_class(name, loss, examples):
  section = {'name': name, 'epsilon': 0.03, 'num_steps': 10}
  section |= {'loss': loss} if loss else {}
  (stage,) = ensembles.stages_of_one(section, epsilons=(), num_restarts=1)
  run = create()
  states = [
    run.run([x], examples, run.begin(examples))
    for x in (stage, stage._replace(target_rank=2), stage._replace(target_rank=5))
  ]
  left = [x.robust[-1] for x in states]
  assert left[0] == left[1] < left[2]


def test_a_host_without_examples_takes_part(examples):
  devices = worst_case.Devices(max=lambda n: max(n, 2))  # Another one has two batches.
  run = create(devices=devices, batch_size=COUNT)
  few = worst_case.Examples(*(x[:2] for x in examples))
  state = run.run(STAGES, few, run.begin(few))
  assert state.robust[0] == 2 and state.num_done == len(STAGES)
  assert state.rejected == state.unsteady == (0,) * len(STAGES)


def test_a_step_may_be_longer_than_the_radius():
  section = {**dict(pgd(0.1, 3).section), 'epsilon': 8 / 255, 'step_size': 10 / 255}
  stages = ensembles.stages_of_one(section, epsilons=(), num_restarts=1)
  stage_attack.check(stages, num_classes=5, image_shape=SHAPE)


def test_programs_that_disagree_are_counted(examples, monkeypatch):
  run = create()
  begin, passes = run.begin(examples), []
  logits = run.logits

  def other(image):
    passes.append(len(image))
    return np.roll(logits(image), 1, axis=1)

  monkeypatch.setattr(run, 'logits', other)
  state = run.run([fgsm(0.02)], examples, begin)
  assert state.unsteady == (COUNT - 2,) and sum(passes) == COUNT - 2


def test_logits_that_are_none_are_refused(examples):
  for broken, message in (
    (lambda v, x: jax.nn.softmax(logits_of(v, x)), 'returns probabilities'),
    (lambda v, x: logits_of(v, x) * jnp.nan, 'not finite, for 8 of 8 images'),
  ):
    run = worst_case.WorstCase(
      broken,
      jnp.asarray(WEIGHTS),
      num_classes=NUM_CLASSES,
      norm='linf',
      batch_size=8,
      rng=jax.random.key(0),
    )
    with pytest.raises(errors.UserError, match=message):
      run.begin(examples)


def test_versions_are_the_published_ones():
  # Source: the paper, section 5 and the authors' `_set_version`.
  def listed(version, num_classes=1000):
    stages = ensembles.stages(
      ensembles.VERSIONS[version], epsilon=0.1, norm='l2', num_classes=num_classes
    )
    groups = itertools.groupby(stages, key=lambda stage: stage.attack)
    return [(name, len(list(group))) for name, group in groups]

  standard = [('apgd-ce', 1), ('apgd-t', 9), ('fab-t', 9), ('square', 1)]
  assert listed('standard') == standard
  plus = [('apgd-ce', 5), ('apgd-dlr', 5), ('fab', 5), ('square', 1)]
  assert listed('plus') == [*plus, ('apgd-t', 9), ('fab-t', 9)]
  fab = [
    'random_start' in dict(x.section)
    for x in ensembles.stages(
      ensembles.VERSIONS['plus'], epsilon=0.1, norm='l2', num_classes=9
    )
    if x.attack == 'fab'
  ]
  assert fab == [False, True, True, True, True]  # The first is at the image itself.
  assert listed('rand') == [('apgd-ce', 1), ('apgd-dlr', 1)]
  assert listed('standard', num_classes=5)[1] == ('apgd-t', 4)
  standard = ensembles.VERSIONS['standard']
  assert standard['apgd-ce'].section['num_steps'] == 100
  assert standard['square'].section['num_queries'] == 5000
  assert ensembles.VERSIONS['rand']['apgd-ce'].section['num_samples'] == 20
  ranks = [
    x.target_rank
    for x in ensembles.stages(standard, epsilon=0.1, norm='linf', num_classes=10)
    if x.attack == 'apgd-t'
  ]
  assert ranks == list(range(2, 11))  # The wrong classes, the likeliest first.


def test_a_radius_leaves_out_what_fell_at_smaller_ones(examples):
  section = {'name': 'fgsm', 'epsilon': 0.05, 'targeted': False}
  stages = ensembles.stages_of_one(section, epsilons=(0.1, 0.02, 0.05), num_restarts=1)
  assert [x.epsilon for x in stages] == [0.02, 0.05, 0.1]
  run = create()
  state = run.run(stages, examples, run.begin(examples))
  # FGSM on its own at each radius, in NumPy.
  gradient = jax.grad(
    lambda x: (
      -jax.nn.log_softmax(logits_of(WEIGHTS, x))[np.arange(COUNT), examples.label].sum()
    )
  )(jnp.asarray(examples.image))
  falls_at = np.full(COUNT, np.inf)
  for epsilon in (0.1, 0.05, 0.02):
    image = np.clip(examples.image + epsilon * np.sign(gradient), 0, 1)
    is_wrong = np.asarray(logits_of(WEIGHTS, image)).argmax(-1) != examples.label
    falls_at[is_wrong] = epsilon
  found = np.array([np.inf, 0.02, 0.05, 0.1])[np.maximum(state.fallen_at, 0)]
  attacked = state.fallen_at != worst_case.WRONG_BEFORE
  assert (found == falls_at)[attacked].all() and len(set(found[attacked])) > 2


def test_step_sizes_grow_with_the_radius():
  section = {'name': 'pgd', 'epsilon': 0.1, 'step_size': 0.025, 'num_steps': 3}
  stages = ensembles.stages_of_one(section, epsilons=(), num_restarts=2)
  assert [(x.epsilon, x.restart) for x in stages] == [(0.1, 0), (0.1, 1)]
  assert dict(stages[0].section)['step_size'] == pytest.approx(0.25)
