"""Tests the report: numbers against those counted by hand, and the page itself."""

import html
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from advprop_jax import errors, models
from advprop_jax.evaluation import (
  attack_words,
  charts,
  corruption_error,
  panels,
  report,
  robust_panels,
  run_files,
  tables,
)

NAMES = ['<script>x</script>', 'b & w']
MATRIX = [[3, 1], [0, 4]]  # 7 of 8 are right.
BINS = {
  'count': [0] * 13 + [4, 4],
  'confidence': [None] * 13 + [0.9, 1.0],
  'accuracy': [None] * 13 + [0.75, 1.0],
}
ATTACK = {'name': 'pgd', 'epsilon': 8 / 255, 'step_size': 2 / 255, 'num_steps': 10}
CHROMIUM = shutil.which('chromium')


def scores(top1, **more):
  return {'top1': top1, 'top5': 1.0, 'loss': 0.25, 'brier': 0.125, 'ece': 0.075, **more}


def write_suite(run, name, summary, *, cells=None, data=('own', 'test'), **values):
  """Writes eval/<name>.json as an evaluation does; `summary` of the branch clean."""
  cell = {
    'data': {'name': data[0], 'split': data[1]},
    'input': {'image_size': 32, 'crop_padding': 8},
    'num_examples': 8,
    'num_bad': 0,
    'branches': {'clean': summary},
  }
  content = {
    'suite': name,
    'title': f'the suite {name}',
    'model': 'resnet_tiny',
    'checkpoint': {'step': 30, 'averaged': True},
    'attack': None,
    'complete': True,
    'date': '2001-02-03T04:05:06+00:00',
    'notes': [],
    'class_names': NAMES,
    'cells': {'all': cell} if cells is None else cells,
    'summary': {'clean': summary},
  }
  file = run / 'eval' / f'{name}.json'
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(content | values))


def write_run(run, *, seed=0, model='resnet_tiny'):
  """Writes a run with every part of a page."""
  run.mkdir(parents=True)
  data = {'name': 'own', 'eval_split': 'test'}
  config = {'model': {'name': model}, 'data': data, 'seed': seed}
  (run / 'config.json').write_text(json.dumps(config | {'eval': {'attack': ATTACK}}))
  lines = [
    {'step': 10, 'train/clean_loss': 2.0, 'train/clean_top1': 0.25},
    {'step': 20, 'train/clean_loss': 1.0, 'train/clean_top1': 0.5},
    {'step': 30, 'val/clean_loss': None, 'val/clean_top1': 0.8},
    {'step': 30, 'val/clean_pgd_top1': 0.3, 'val/adv_top1': 0.7},
    {'step': 15, 'secs/train': 40.0, 'secs/eval': 10.0},
    {'step': 30, 'secs/train': 60.0, 'secs/eval': 20.0},
    {'step': 30, 'train/images_per_sec': 50.0, 'train/mfu': 0.125},
    {'no step': 30, 'train/clean_top1': 1.0},
    3,
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (run / 'results.jsonl').write_text(text + '{"step": 40, "train/cle')
  details = {'reliability': BINS, 'class_top1': [0.75, 1.0], 'confusion': MATRIX}
  write_suite(run, 'val', scores(7 / 8, **details))
  write_suite(run, 'pgd', scores(1 / 8, **details), attack=ATTACK)
  # From severity 1 to 5: 0.9 to 0.5 of all but fog, of which it is 0.4 to 0.
  by_corruption = {x: 0.7 for group in panels.GROUPS.values() for x in group}
  by_corruption['fog'] = 0.2
  cells = {
    f'{name}_{i}': {
      'data': {'name': 'own', 'split': 'test'},
      'input': {},
      'num_examples': 8,
      'branches': {'clean': {'top1': mean + 0.1 * (3 - i)}},
    }
    for name, mean in by_corruption.items()
    for i in range(1, 6)
  }
  summary = {'top1': (14 * 0.7 + 0.2) / 15, 'by_corruption': by_corruption}
  write_suite(run, 'corruptions', summary, cells=cells, notes=['not a <b>mCE</b>'])
  (run / 'pictures').mkdir()
  for step in (20, 30):
    picture = Image.new('RGB', (8, 8), (step, 0, 0))
    picture.save(run / 'pictures' / f'val_step_{step:07d}.png')
  return run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return write_run(root / 'a'), write_run(root / 'b_c', seed=1)


@pytest.fixture(scope='module')
def page(runs):
  return report.create_report(map(str, runs))


class Parser(html.parser.HTMLParser):
  """Collects elements and text, and finds elements that are not closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.elements, self.rows, self.text = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ('meta', 'br', 'img', 'wbr'):
      self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    if self.open and self.open[-1] != 'style':
      self.text.append(text)
    if {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += text.strip()


def test_the_table_has_the_numbers_counted_by_hand(runs):
  write = report.create_report([str(runs[0])], 'md').split('\n\n')
  title = '| run | branch | own:test, clean, top-1, % | PGD-10, epsilon 8/255, top-1, %'
  assert write[0] == (
    f'{title} | corrupted, top-1, %, 15 x 5 |\n'
    '| --- | --- | ---: | ---: | ---: |\n'
    # The branch adv was only evaluated in training, and there are files of val.
    '| a | clean | 87.5 | 12.5 | 66.7 |\n'
    '| a | adv |  |  |  |'
  )
  assert write[1].startswith('Attack: PGD-10, epsilon 8/255, steps of 2/255;')
  assert write[2] == 'corruptions: not a <b>mCE</b>\n'
  table = tables.create_table(run_files.read_runs([str(runs[0])]))
  assert tables.to_markdown(table) == '\n\n'.join(write[:2])


def test_the_page_has_every_part_and_no_other_file(page):
  parser = Parser(page)
  assert not parser.open
  ids = [x['id'] for tag, x in parser.elements if tag == 'section']
  assert ids == [
    *('runs', 'results', 'branches', 'training', 'corruptions', 'calibration'),
    *('classes', 'examples', 'time', 'configs'),
  ]
  links = [
    v for _, x in parser.elements for k, v in x.items() if k.endswith(('src', 'href'))
  ]
  assert all(x.startswith(('#', 'data:image/png;base64,')) for x in links)
  assert not re.search(r'url\((?!#)|@import|https?:(?!//www\.w3\.org/)', page)
  tags = {tag for tag, _ in parser.elements}
  assert 'svg' in tags and not tags & {'script', 'link', 'iframe', 'object'}
  targets = [x['id'] for _, x in parser.elements if 'id' in x]
  assert len(set(targets)) == len(targets)
  assert {x[1:] for x in links if x[0] == '#'} <= set(targets)
  rows = parser.rows
  assert ['a', 'clean', '87.5', '12.5', '66.7'] in rows
  values = ['87.5', '100.0', '0.250', '0.125', '7.5']
  assert ['valthe suite val', 'a', 'clean', '8', '32 px of 40', *values] in rows
  assert [NAMES[0], '3', '1', '75.0'] in rows and [NAMES[1], '', '4', '100.0'] in rows
  assert ['seed', '0', '1'] in rows
  assert page.count('80 s, 75 % training') == 2  # The last line has all starts in it.
  assert ['a', '50', '12.5%'] in rows
  assert page.count('<img') == 2 and 'val_step_0000030' in page
  assert 'val_step_0000020' not in page


def test_what_users_have_named_is_escaped(page):
  assert '<script' not in page and '<b>' not in page
  assert html.escape(NAMES[0]) in page and 'not a &lt;b&gt;mCE&lt;/b&gt;' in page
  svg = charts.lines('a "<b>', [charts.Line(0, 0, '<i>$x$', [(1, 0.5)])], is_share=True)
  assert 'aria-label="a &#34;&#60;b&#62;"' in svg and '>&lt;i&gt;$x$</text>' in svg


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
  series = [charts.Line(i, 0, f'name{i}', [(1, 0.5), (2, 0.5)]) for i in range(3)]
  svg = charts.lines('x', series, is_share=True)
  y = sorted(float(x) for x in re.findall(r' y="([\d.]+)"[^>]*>name\d<', svg))
  assert len(y) == 3 and min(np.diff(y)) > 7.5  # The size of the font.


def test_the_same_files_make_the_same_page(runs, page):
  assert report.create_report(map(str, runs)) == page


def test_charts_take_the_colours_of_the_page(page):
  colours = set(re.findall(r'(?:fill|stroke): ?([^;"]+)', page))
  variables = {f'var(--{x})' for x in ('ink', 'soft', 'line', 'paper')}
  variables |= {f'var(--series-{i})' for i in range(charts.NUM_COLOURS)}
  assert colours <= variables | {'none'}
  assert {f'--series-{i}:' for i in range(charts.NUM_COLOURS)} <= set(page.split())


def test_the_accuracy_by_severity_is_the_mean_of_the_15(runs, monkeypatch):
  found = []
  monkeypatch.setattr(charts, 'lines', lambda title, series, **_: found.append(series))
  list(panels.corrupted(run_files.read_runs([str(runs[0])])))
  ((line,),) = found
  expected = [(i, (14 * 0.7 + 0.2) / 15 + 0.1 * (3 - i)) for i in range(1, 6)]
  np.testing.assert_allclose(line.points, expected)


def test_a_run_that_was_only_trained(tmp_path):
  run = tmp_path / 'trained' / 'phase_1'
  write_run(run)
  shutil.rmtree(run / 'eval')
  (run / 'config.json').unlink()
  shutil.copytree(run, tmp_path / 'trained' / 'phase_0')
  workdir = str(tmp_path / 'trained')
  table = tables.create_table(run_files.read_runs([workdir]))
  assert [row.cells for row in table.rows] == [('80.0‡', '30.0‡'), ('70.0‡', '')]
  text = report.create_report([workdir])
  assert f'--workdir={run} --suites=val,pgd,corruptions' in text
  assert 'Of the last evaluation in training' in text and 'id="training"' in text
  assert 'id="calibration"' not in text


def test_results_of_other_weights_are_marked(tmp_path):
  run = write_run(tmp_path / 'a')
  old = {'checkpoint': {'step': 20, 'averaged': True}, 'date': '2001-01-01'}
  write_suite(run, 'pgd', scores(1 / 8), attack=ATTACK, **old)
  text = report.create_report([str(run)], 'md')
  assert '| 87.5 | 12.5† | 66.7 |' in text and 'a, pgd: step 20.' in text


def test_a_part_of_a_suite_is_said_to_be_one(tmp_path):
  run = write_run(tmp_path / 'a')
  summary = {'by_corruption': {'fog': 0.25}}
  write_suite(run, 'corruptions', summary, cells={}, complete=False)
  text = report.create_report([str(run)])
  assert 'a part of corruptions alone' in text and f'{run} --suites=corruptions' in text


def test_published_numbers_stand_beside_the_same_network_and_attack(tmp_path):
  run = write_run(tmp_path / 'a', model='resnet_50')
  assert 'published' not in report.create_report([str(run)], 'md')
  imagenet = ('imagenet2012', 'validation')
  write_suite(run, 'val', scores(0.75), data=imagenet)
  table = tables.create_table(run_files.read_runs([str(run)]))
  assert [x.key for x in table.columns] == ['top1', 'pgd', 'corruptions']
  published = {row.name: row.cells for row in table.rows if row.source}
  assert published['resnet_50, Fast AdvProp'] == ('76.5', '', '')
  name = 'resnet_50, adversarial training, SiLU'
  assert published[name] == ('69.7', '', '')
  attack = {'name': 'pgd', 'epsilon': 4 / 255, 'step_size': 1 / 255, 'num_steps': 20}
  write_suite(run, 'pgd', scores(0.5), attack=attack, data=imagenet)
  write_suite(run, 'c', {'mce': 70.25}, cells={})
  table = tables.create_table(run_files.read_runs([str(run)]))
  assert table.rows[0].cells == ('75.0', '70.3', '50.0', '66.7')  # Half is upwards.
  published = {row.name: row.cells for row in table.rows if row.source}
  assert published[name] == ('69.7', '', '42.2', '')
  other = write_run(tmp_path / 'b', model='resnet_50')
  write_suite(other, 'val', scores(0.75), data=imagenet)
  attack = attack | {'num_steps': 50}
  write_suite(other, 'pgd', scores(0.5), attack=attack, data=imagenet)
  both = tables.create_table(run_files.read_runs([str(run), str(other)]))
  # Numbers of different attacks do not share a column.
  places = [i for i, x in enumerate(both.columns) if x.key == 'pgd']
  titles = [both.columns[i].title for i in places]
  assert titles == ['PGD-20, epsilon 4/255', 'PGD-50, epsilon 4/255']
  ours = [[row.cells[i] for i in places] for row in both.rows if not row.source]
  assert ours == [['50.0', ''], ['', ''], ['', '50.0'], ['', '']]
  published = {row.name: row.cells for row in both.rows if row.source}
  assert published[name][places[0]] == '42.2'
  assert 'Attack of b: PGD-50, epsilon 4/255' in both.notes[1]
  text = tables.to_markdown(table)
  source = re.search(rf'{name} \| published \[(\d+)\]', text)[1]
  assert f'[{source}] SmoothAdversarialTraining, README' in text


def test_published_numbers_have_a_network_and_a_source():
  for line in tables._published():
    assert line['model'] in models.MODELS and line['source'] and line['name']
    keys = line.keys() - {'model', 'name', 'source'}
    numbers = [float(line[key]) for key in keys if line[key]]
    assert numbers and all(0 <= x <= 100 for x in numbers)
  keys -= {'pgd10', 'pgd20', 'pgd50'}
  assert keys <= {x.key for x in tables.COLUMNS}


def test_of_many_classes_those_with_the_lowest_top1(tmp_path):
  run = write_run(tmp_path / 'a')
  top1 = [None, *np.linspace(1, 0, 24)]
  matrix = np.zeros((25, 25), int)
  matrix[24, 7] = 6
  matrix[24, 8] = 2
  names = [f'c{i}' for i in range(25)]
  more = {'class_top1': top1, 'confusion': matrix.tolist()}
  write_suite(run, 'val', scores(0.5, **more), class_names=names)
  rows = Parser(report.create_report([str(run)])).rows
  assert ['c24', '0.0', 'c7 (6 of 8)'] in rows and ['c15', '39.1', '–'] in rows
  assert not any(row[0] in ('c14', 'c0') for row in rows)


def test_ten_runs_with_names_of_any_kind(tmp_path):
  names = ['x/a', 'y/a', '日本', '$x$', 'a' * 99, '<u>', *'1234']
  workdirs = [str(write_run(tmp_path / name, seed=i)) for i, name in enumerate(names)]
  for workdir in workdirs[4:]:
    shutil.rmtree(f'{workdir}/eval')
  text = report.create_report([*workdirs, workdirs[0]])
  assert '<h1>10 runs</h1>' in text and '<u>' not in text
  found = [run.name for run in run_files.read_runs(workdirs)]
  assert found[0] == 'x/a' and len(set(found)) == 10
  assert 'opacity: .45' in text  # Colours begin anew.


def test_a_large_picture_is_made_smaller(tmp_path):
  run = write_run(tmp_path / 'a')
  noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
  Image.fromarray(noise).save(run / 'pictures' / 'val_step_0000030.png')
  (uri,) = re.findall(r'base64,([^"]+)', report.create_report([str(run)]))
  assert 10_000 < len(uri) < 2**20 * 4 / 3 + 4


@pytest.mark.parametrize(
  'damage, words, message',
  [
    (None, ['{run}/none'], 'there is no directory .*none; allowed'),
    ('rm -r eval results.jsonl', ['{run}'], 'has no results; allowed'),
    ('echo "{" > eval/val.json', ['{run}'], 'val.json is no JSON'),
    ('echo [] > eval/val.json', ['{run}'], 'val.json is no JSON'),
    ('echo {} > eval/val.json', ['{run}'], "val.json is damaged: 'title' is not"),
    ('echo x > config.json', ['{run}'], 'config.json is no JSON'),
    (None, ['{run}', '--format=pdf'], "unknown --format 'pdf'; allowed: html, md"),
    (
      None,
      ['{run}', '--format=md', '--out={run}/none/x'],
      'to --out .*: No such file .*; allowed',
    ),
    (
      None,
      ['{run}', '--format=md', '--out={run}/eval'],
      'to --out .*: Is a directory; allowed',
    ),
    (
      None,
      ['{run}', '--format=md', '--out={run}/config.json/x'],
      'Not a directory; allowed',
    ),
  ],
)
def test_a_mistake_is_one_line(damage, words, message, tmp_path):
  run = write_run(tmp_path / 'a')
  subprocess.run(['sh', '-c', damage or 'true'], check=True, cwd=run)
  before = sorted(run.iterdir())
  with pytest.raises(SystemExit, match=message) as e:
    report.main([word.format(run=run) for word in words])
  assert str(e.value).startswith('error: ') and '\n' not in str(e.value)
  assert sorted(run.iterdir()) == before


def test_wrong_types_in_a_file_are_damage(tmp_path):
  run = write_run(tmp_path / 'a')
  write_suite(run, 'val', {}, cells={'all': {'data': {}}})
  with pytest.raises(errors.UserError, match="val.json is damaged: 'cells' is not"):
    report.create_report([str(run)])


def test_the_command_replaces_a_file_whole(runs, page, tmp_path, capsys):
  out = tmp_path / 'report.html'
  out.write_text('old')
  report.main([*map(str, runs), f'--out={out}'])
  assert out.read_text('utf-8') == page and list(tmp_path.iterdir()) == [out]
  assert capsys.readouterr().out == f'wrote {out}\n'
  report.main([str(runs[0]), '--format=md'])
  assert capsys.readouterr().out == report.create_report([str(runs[0])], 'md')


def test_the_command_loads_neither_jax_nor_tensorflow():
  code = 'import sys, advprop_jax.evaluation.report; '
  code += 'assert not {"jax", "tensorflow", "orbax", "clu"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


AUTOATTACK = {
  **{'name': 'autoattack', 'version': 'standard', 'norm': 'linf', 'epsilon': 8 / 255},
  **{'epsilons': [4 / 255], 'num_examples': 0, 'attack_branch': ''},
}
RESTARTS = {'num_restarts': 5, 'epsilons': [], 'num_examples': 0, 'attack_branch': ''}
CHECKS = [
  {'name': 'leaks', 'passed': True, 'text': 'none leaks'},
  {'name': 'square', 'passed': False, 'text': 'Square found <b>more</b>'},
]


def worst_case(checks=CHECKS, **more):
  """Returns what was found of a branch, as an evaluation writes it."""
  return {
    'top1': 0.5,
    'clean_top1': 0.875,
    'by_attack': {'apgd-ce': 0.75, 'apgd-t': 0.5},
    'stages': [
      {'name': 'apgd-ce', 'robust': 6, 'rejected': 0, 'seconds': 1.5},
      {'name': 'apgd-t, target 1', 'robust': 5, 'rejected': 1, 'seconds': 1.5},
      {'name': 'apgd-t, target 2', 'robust': 4, 'rejected': 2, 'seconds': 1.5},
    ],
    'checks': list(checks),
    'loss_by_step': {'step': [0, 1, 5], 'loss': [0.25, 0.5, 0.75]},
    'by_epsilon': {'epsilon': [0.0, 4 / 255], 'top1': [0.875, 0.75]},
    **more,
  }


def write_worst_case(run, name, found, attack, **values):
  write_suite(run, name, found, attack=attack, **values)
  file = run / 'eval' / f'{name}.json'
  content = json.loads(file.read_text())
  file.write_text(json.dumps(content | {'summary': {'clean': {'top1': found['top1']}}}))
  return run


@pytest.fixture
def drawn(monkeypatch):
  """Returns {title: series} of the charts of lines, none of which is really drawn."""
  found = {}
  monkeypatch.setattr(charts, 'lines', lambda title, x, **_: found.setdefault(title, x))
  return found


@pytest.mark.parametrize(
  'attack, title, more',
  [
    (ATTACK, 'PGD-10, epsilon 8/255', ''),
    (AUTOATTACK, 'AutoAttack standard, epsilon 8/255', ''),
    (AUTOATTACK | {'norm': 'l2', 'epsilon': 0.8}, 'AutoAttack standard, L2 0.8', ''),
    ({'name': 'pgd_l2', 'epsilon_l2': 0.5, 'num_steps': 3}, 'PGD L2-3, L2 0.5', ''),
    (ATTACK | RESTARTS, 'PGD-10, epsilon 8/255', ', 5 restarts'),
    (
      {**ATTACK, **RESTARTS, 'num_restarts': 1, 'num_examples': 100},
      *('PGD-10, epsilon 8/255', ', 100 images'),
    ),
    (
      AUTOATTACK | {'version': 'plus', 'attack_branch': 'adv', 'num_examples': 1},
      *('AutoAttack plus, epsilon 8/255', ', 1 image, through adv'),
    ),
  ],
)
def test_an_attack_in_words(attack, title, more):
  steps = ', steps of 2/255' * ('step_size' in attack)
  assert attack_words.describe(attack) == title + steps + more
  assert attack_words.title(attack) == title + more


def test_the_worst_case_with_its_failed_checks(tmp_path):
  a = write_worst_case(tmp_path / 'a', 'autoattack', worst_case(), AUTOATTACK)
  passed = worst_case(CHECKS[:1] * 3, stages=[])
  b = write_worst_case(tmp_path / 'b', 'autoattack', passed, AUTOATTACK)
  text = report.create_report([str(a), str(b)])
  parser = Parser(text)
  assert not parser.open
  assert [x['id'] for tag, x in parser.elements if tag == 'section'] == [
    *('runs', 'results', 'robustness')
  ]
  (box,) = re.findall('<div class="warning">(.*?)</div>', text, re.DOTALL)
  words = ' '.join(Parser(box).text)
  assert '1 of 2 checks failed' in words and 'Square found <b>more</b>' in words
  assert text.index(box) < text.index('class="charts"')
  assert 'all 3 checks passed' in text
  rows = parser.rows
  assert ['apgd-ce', '75.0', '0'] in rows and ['apgd-t', '50.0', '3'] in rows
  assert ['clean', '87.5'] in rows and ['apgd-t', '50.0'] in rows
  assert text.count('<svg') == 2
  assert '>50.0<span class="mark">§</span>' in text
  write = report.create_report([str(a), str(b)], 'md').split('\n\n')
  assert '| AutoAttack standard, epsilon 8/255, top-1, % |' in write[0]
  assert '| 50.0§ |' in write[0] and '| 50.0 |' in write[0]
  assert write[1] == (
    '§ Not to be trusted, since checks failed. a, autoattack: Square found <b>more</b>.'
  )
  assert write[2] == (
    'Attack: AutoAttack standard, epsilon 8/255; images are attacked through the '
    'branch.'
  )
  assert write[3] == (
    'a, clean, AutoAttack standard, epsilon 8/255: top-1 in % of 8 images, after each '
    'attack: clean 87.5, apgd-ce 75.0, apgd-t 50.0; 3 adversarial images rejected; '
    '1 of 2 checks failed.'
  )
  assert write[4] == (
    'a, clean, APGD-CE alone: top-1 in % by radius: epsilon 0/255 87.5, '
    'epsilon 4/255 75.0.'
  )


def test_robustness_by_radius_and_step(tmp_path, drawn):
  run = write_worst_case(tmp_path / 'a', 'autoattack', worst_case(), AUTOATTACK)
  radii = {'epsilon': [0.0, 0.5], 'top1': [1.0, 0.25]}
  attack = {'name': 'pgd_l2', 'epsilon_l2': 0.5, 'num_steps': 3, **RESTARTS}
  write_worst_case(run, 'pgd', worst_case(by_epsilon=radii), attack)
  list(robust_panels.curves(run_files.read_runs([str(run)])))
  by_radius, by_l2 = (
    drawn['top-1 by epsilon, in 1/255, APGD-CE alone'],
    drawn['top-1 by epsilon, an L2 norm, PGD L2-3, 5 restarts'],
  )
  np.testing.assert_allclose(by_radius[0].points, [(0, 0.875), (4, 0.75)])
  assert by_l2[0].points == [(0, 1), (0.5, 0.25)]
  losses = drawn['cross-entropy by steps of the attack, mean of one batch']
  assert {x.name for x in losses} == {'PGD L2-3, L2 0.5', 'APGD-CE, epsilon 8/255'}
  assert [x.points for x in losses] == [[(0, 0.25), (1, 0.5), (5, 0.75)]] * 2


def test_radii_have_ticks_between_whole_numbers():
  series = [charts.Line(0, 0, '', [(0, 1.0), (1, 0.5)])]
  svg = charts.lines('x', series, is_share=True, x_name='radius', is_counted=False)
  assert re.search(r'>0\.\d<', svg) and not re.search(r'>\d+m<', svg)


def test_through_which_branch_images_were_attacked(tmp_path):
  attack = AUTOATTACK | {'attack_branch': 'clean'}  # Which is the one that classifies.
  run = write_worst_case(tmp_path / 'a', 'autoattack', worst_case(), attack)
  attack = attack | {'attack_branch': 'adv'}
  other = write_worst_case(tmp_path / 'b', 'autoattack', worst_case(), attack)
  text = report.create_report([str(run), str(other)], 'md')
  start = 'AutoAttack standard, epsilon 8/255'
  assert f'Attack of a: {start}; images are attacked through the branch.' in text
  assert f'Attack of b: {start}, through adv; images are classified through' in text
  title = 'AutoAttack standard, epsilon 8/255'
  assert f'| {title}, top-1, % | {title}, through adv, top-1, % |' in text


@pytest.mark.parametrize(
  'changes',
  [
    RESTARTS,
    {'num_restarts': 1, 'num_examples': 9},
    {'num_restarts': 1, 'attack_branch': 'adv'},
    {'num_restarts': 1, 'epsilons': [4 / 255]},
  ],
)
def test_no_published_number_stands_beside_a_worst_case(changes, tmp_path):
  imagenet = ('imagenet2012', 'validation')
  attack = {'name': 'pgd', 'epsilon': 4 / 255, 'step_size': 1 / 255, 'num_steps': 20}

  def published(attack):
    values = {'model': 'resnet_50', 'data': imagenet}
    write_worst_case(tmp_path, 'pgd', worst_case(), attack, **values)
    write_suite(tmp_path, 'val', scores(0.75), **values)
    rows = tables.create_table(run_files.read_runs([str(tmp_path)])).rows
    return {row.cells for row in rows if row.source}

  assert ('69.7', '42.2') in published(attack)
  found = published(attack | changes)
  assert ('69.7', '') in found and all(not pgd for _, pgd in found)


def test_a_run_without_autoattack_lacks_nothing(tmp_path):
  run = write_run(tmp_path / 'a')
  other = write_worst_case(
    write_run(tmp_path / 'b'), 'autoattack', worst_case(), AUTOATTACK
  )
  write_worst_case(other, 'pgd', worst_case(), ATTACK | RESTARTS)
  text = report.create_report([str(run), str(other)], 'md')
  assert 'no result of' not in text and '--suites' not in text


def test_what_a_worst_case_lacks_is_not_shown(tmp_path, drawn):
  whole = worst_case()
  places = [(whole, key) for key in [*whole][1:]]  # Summaries have the top-1.
  places += [(x, key) for key in ('stages', 'checks') for x in whole[key] for key in x]
  places += [(whole['by_epsilon'], key) for key in whole['by_epsilon']]
  for values, key in places:
    kept = values.pop(key)
    write_worst_case(tmp_path, 'autoattack', whole, AUTOATTACK)
    assert '% of 8 images' in report.create_report([str(tmp_path)], 'md')
    list(robust_panels.curves(run_files.read_runs([str(tmp_path)])))
    values[key] = kept
  write_worst_case(tmp_path, 'autoattack', {'top1': 0.5}, {'name': 'autoattack'})
  drawn.clear()
  text = report.create_report([str(tmp_path)])
  assert 'no check was made' in text and 'class="warning"' not in text and not drawn
  del whole['checks'][0]['passed']  # Then it is not known to have passed.
  write_worst_case(tmp_path, 'autoattack', whole, AUTOATTACK)
  assert '2 of 2 checks failed' in report.create_report([str(tmp_path)], 'md')


@pytest.mark.parametrize(
  'key, value',
  [
    ('by_attack', [1]),
    ('by_epsilon', None),
    ('loss_by_step', []),
    ('stages', [3]),
    ('checks', ['x']),
    ('checks', 'x'),
  ],
)
def test_a_worst_case_of_wrong_types_is_damage(key, value, tmp_path):
  found = worst_case(**{key: value})
  write_worst_case(tmp_path, 'autoattack', found, AUTOATTACK)
  with pytest.raises(errors.UserError, match='autoattack.json is damaged'):
    report.create_report([str(tmp_path)])
  write_worst_case(tmp_path, 'autoattack', worst_case(), 'x')
  with pytest.raises(errors.UserError, match="damaged: 'attack' is not"):
    report.create_report([str(tmp_path)])


@pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed')
def test_the_page_fits_on_a_phone(tmp_path):
  run = write_run(tmp_path / 'a_long_name_of_a_run_without_any_blanks_in_it')
  old = {'checkpoint': {'step': 20, 'averaged': True}, 'date': '2001-01-01'}
  for name in ('imagenet', 'a', 'r', 'sketch', 'stylized', 'v2', 'real', 'objectnet'):
    write_suite(run, name, scores(0.5, clean_top1=0.75), **old)  # A wide table.
  write_worst_case(run, 'autoattack', worst_case(), AUTOATTACK)
  page = report.create_report([str(run), str(write_run(tmp_path / 'b', seed=1))])
  outer = tmp_path / 'outer.html'
  # Chromium's own window cannot be that narrow.
  outer.write_text(
    '<body style="margin: 0"><iframe style="width: 390px; height: 9000px; border: 0" '
    'onload="const x = this.contentDocument.documentElement; '
    'document.title = `${x.clientWidth} ${x.scrollWidth} ${x.scrollHeight}`" '
    f'srcdoc="{html.escape(page)}"></iframe>'
  )
  shot = tmp_path / 'shot.png'
  command = [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--dump-dom']
  command += ['--hide-scrollbars', '--window-size=390,9000', f'--screenshot={shot}']
  dom = subprocess.run(
    [*command, f'--user-data-dir={tmp_path}/profile', outer.as_uri()],
    check=True,
    capture_output=True,
    text=True,
    timeout=60,
    env={**os.environ, 'HOME': str(tmp_path)},
  ).stdout
  width, scroll_width, height = map(int, re.search('<title>([^<]+)', dom)[1].split())
  assert width == scroll_width == 390 and height > 3000
  with Image.open(shot) as picture:
    pixels = np.asarray(picture.convert('L'))
  assert pixels.shape[1] == 390 and (pixels[:3000] < 100).mean() > 0.01


def test_every_corruption_is_drawn_in_one_group():
  *groups, extra = panels.GROUPS.values()
  assert extra == corruption_error.EXTRA
  names = [name for group in groups for name in group]
  assert sorted(names) == sorted(corruption_error.ALEXNET)
