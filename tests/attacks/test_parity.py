"""Holds AutoAttack on trained networks against the reference by its authors.

data/autoattack_reference.json is what pyautoattack found, see
`reference_autoattack.py`. With PyTorch and pyautoattack installed,
`pytest -m reference -n 0 tests/attacks/test_parity.py` runs the reference again.
"""

import functools
import json

import jax
import numpy as np
import pytest
import reference_autoattack
import trained

from advprop_jax.attacks import ensembles, worst_case

RESULTS = json.loads(reference_autoattack.FILE.read_text())['results']
MEMBERS = ensembles.VERSIONS['standard'] | {
  'apgd-dlr': ensembles.APGD_DLR,
  'fab': ensembles.FAB,
}


def members(result):
  """Returns our attacks of a case, of its size."""
  found = {}
  for name in result['attacks']:
    section = dict(MEMBERS[name].section)
    if 'num_queries' in section:
      section['num_queries'] = result['num_queries']
    num_targets = result['num_targets'] if MEMBERS[name].num_targets else 0
    found[name] = MEMBERS[name]._replace(section=section, num_targets=num_targets)
  return found


@functools.cache
def create_run(name, norm, batch_size):
  """Returns the attacks on a network; what is compiled serves all of its cases."""
  logits_fn = trained.load(name)
  return worst_case.WorstCase(
    lambda variables, image: logits_fn(image),
    None,
    num_classes=10,
    norm=norm,
    batch_size=batch_size,
    rng=jax.random.key(0),
  )


def withstands(result, data_dir):
  """Returns which examples withstand our attacks, bool [N]."""
  name = result['network']
  image, label = trained.examples(name, result['num_examples'], data_dir)
  run = create_run(name, result['norm'], min(len(image), 64))
  positions = np.arange(len(label), dtype=np.int32)
  examples = worst_case.Examples(image, label, positions)
  stages = ensembles.stages(
    members(result), epsilon=result['epsilon'], norm=result['norm'], num_classes=10
  )
  state = run.run(stages, examples, run.begin(examples))
  return state.fallen_at == worst_case.ROBUST


def title(result):
  words = [result['network'], result['norm'], str(result['num_examples'])]
  return '-'.join([*words, *result['attacks']])


def is_small(result):
  return result['num_queries'] < 5000


# By default some, for their time; the others with `-m large`.
DEFAULT = (['apgd-t'], ['fab-t'], ['square'], list(reference_autoattack.STANDARD))
SMALL = [
  x for x in RESULTS if is_small(x) and x['norm'] == 'linf' and x['attacks'] in DEFAULT
]
LARGE = [x for x in RESULTS if x not in SMALL]


def check(result, data_dir):
  ours = withstands(result, data_dir)
  theirs = np.array([x == '1' for x in result['robust']])
  print(f'{title(result)}: ours {ours.mean():.1%}, reference {theirs.mean():.1%}')
  assert 0 < theirs.sum() < len(ours) and 0 < ours.sum() < len(ours)
  if result['attacks'] in (['fab-t'], ['fab']):
    assert (ours == theirs).all()  # Nothing is drawn.
  # 0.5 % are less than one of 24 or 100 images; attacks that draw may differ in one.
  allowed = max(0.005 * len(ours), 1)
  if is_small(result) and result['attacks'] == ['square']:
    # Each of some images falls to so few queries by chance: two standard deviations of
    # the difference of two binomial numbers.
    share = theirs.mean()
    allowed = 2 * np.sqrt(2 * len(ours) * share * (1 - share))
  assert abs(int(ours.sum()) - int(theirs.sum())) <= allowed


def test_equals_the_reference(digits_dir):
  assert sorted(x['attacks'] for x in SMALL) == sorted(DEFAULT)
  for result in SMALL:
    check(result, digits_dir)


@pytest.mark.large
@pytest.mark.parametrize('result', LARGE, ids=title)
def test_equals_the_reference_at_full_size(result, digits_dir):
  check(result, digits_dir)


@pytest.mark.reference
@pytest.mark.parametrize('result', [x for x in RESULTS if is_small(x)], ids=title)
def test_the_reference_says_what_is_written_down(result, digits_dir):
  pytest.importorskip('pyautoattack', reason='requirements-autoattack.txt')
  name = result['network']
  image, label = trained.examples(name, result['num_examples'], digits_dir)
  network = reference_autoattack.bridge(trained.load(name))
  found, _ = reference_autoattack.run(result, network, image, label)
  assert ''.join(str(int(x)) for x in found) == result['robust']
