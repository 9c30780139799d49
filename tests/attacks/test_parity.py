"""Holds AutoAttack on trained networks against the reference by its authors.

data/autoattack_reference.json is what pyautoattack found, see
`reference_autoattack.py`. With PyTorch and pyautoattack installed,
`pytest -m reference -n 0 tests/attacks/test_parity.py` runs the reference again.
"""

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


def withstands(result, data_dir):
  """Returns which examples withstand our attacks, bool [N]."""
  name = result['network']
  image, label = trained.examples(name, result['num_examples'], data_dir)
  logits_fn = trained.load(name)
  run = worst_case.WorstCase(
    lambda variables, image: logits_fn(image),
    None,
    num_classes=10,
    norm=result['norm'],
    batch_size=min(len(image), 64),
    rng=jax.random.key(0),
  )
  positions = np.arange(len(label), dtype=np.int32)
  examples = worst_case.Examples(image, label, positions)
  stages = ensembles.stages(
    members(result), epsilon=result['epsilon'], norm=result['norm'], num_classes=10
  )
  state = run.run(stages, examples, run.begin(examples))
  return state.fallen_at == worst_case.ROBUST


def title(result):
  return '-'.join([result['network'], result['norm'], *result['attacks']])


def is_small(result):
  return result['num_queries'] < 5000


# By default some, for their time; the others with `-m large`.
DEFAULT = (['apgd-t'], ['fab-t'], ['square'])
SMALL = [
  x for x in RESULTS if is_small(x) and x['norm'] == 'linf' and x['attacks'] in DEFAULT
]
LARGE = [x for x in RESULTS if x not in SMALL]


def check(result, data_dir):
  ours = withstands(result, data_dir)
  theirs = np.array([x == '1' for x in result['robust']])
  print(title(result), f'ours {ours.mean():.1%}, reference {theirs.mean():.1%}')
  assert 0 < ours.sum() <= len(ours)
  if result['attacks'] == ['fab-t'] or result['attacks'] == ['fab']:
    assert (ours == theirs).all()  # Nothing is drawn.
  allowed = max(0.005 * len(ours), 1)  # One of few images is more than 0.5 %.
  assert abs(int(ours.sum()) - int(theirs.sum())) <= allowed


@pytest.mark.parametrize('result', SMALL, ids=title)
def test_equals_the_reference(result, digits_dir, fast_compilation):
  check(result, digits_dir)


@pytest.mark.large
@pytest.mark.parametrize('result', LARGE, ids=lambda x: f'{title(x)}-{is_small(x)}')
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
