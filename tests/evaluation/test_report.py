"""Tests the page about runs: its numbers, that it stands alone, and how it looks."""

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

from advprop_jax import errors
from advprop_jax.evaluation import charts, report, run_files, tables

WEIRD = '<script>alert("$x$")</script>'
CLASSES = (WEIRD, '_hidden', 'c')
ATTACK = {'name': 'pgd', 'epsilon': 4 / 255, 'step_size': 1 / 255, 'num_steps': 10}


def suite(name, summary, cells=None, **more):
  return {
    'suite': name,
    'title': f'title of {name}',
    'model': 'efficientnet_b0',
    'checkpoint': {'step': 7, 'averaged': True, 'sha256': '0'},
    'attack': ATTACK if name == 'pgd' else None,
    'complete': True,
    'date': '2026-01-02T03:04:05+00:00',
    'notes': [],
    'class_names': list(CLASSES),
    'cells': cells or {},
    'summary': summary,
    **more,
  }


def scores(top1):
  """Returns the scores of ten examples in two bins."""
  count = [0] * 13 + [4, 6]
  return {
    'top1': top1,
    'ece': 0.125,
    'reliability': {
      'count': count,
      'confidence': [None] * 13 + [0.9, 0.95],
      'accuracy': [None] * 13 + [0.5, 1.0],
    },
    'confusion': [[3, 1, 0], [0, 2, 1], [0, 0, 3]],
  }


def write_run(workdir, *, top1=0.8125, epochs=3, model='efficientnet_b0'):
  """Writes what a training and an evaluation leave behind."""
  (workdir / 'eval').mkdir(parents=True)
  config = {'model': {'name': model}, 'num_epochs': epochs, 'seed': 0}
  (workdir / 'config.json').write_text(json.dumps(config))
  lines = [
    {'step': 1, 'train/loss': 2.5, 'train/clean_top1': 0.25},
    {'step': 2, 'val/clean_top1': 0.5, 'val/clean_pgd_top1': 0.25},
    {'step': 4, 'train/loss': None, 'train/clean_top1': 0.75},
    {'step': 4, 'secs/train': 12.5, 'secs/eval': 7.5},
  ]
  text = '\n'.join(map(json.dumps, lines)) + '\n{"step": 5, "train/lo'
  (workdir / 'results.jsonl').write_text(text)
  by_corruption = {'fog': 0.25, 'snow': 0.5, 'spatter': 0.75}
  both = {'clean': {'top1': top1, 'ece': 0.125}, 'adv': {'top1': 0.5}}
  for content in (
    suite('val', both, {'all': {'branches': {'clean': scores(top1), 'adv': {}}}}),
    suite('pgd', {'clean': {'top1': 0.0625}, 'adv': {'top1': 0.375}}),
    suite('imagenet', {'clean': {'top1': 0.77}}),
    suite('c', {'clean': {'mce': 66.25, 'by_corruption': by_corruption}}),
    suite('a', {'clean': {'top1': 0.071}}, notes=['a note | of A'], complete=False),
  ):
    file = workdir / 'eval' / f'{content["suite"]}.json'
    file.write_text(json.dumps(content))
  (workdir / 'eval' / 'val.json.2026').write_text('of others')
  (workdir / 'pictures').mkdir()
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(
    workdir / 'pictures' / 'val_step_0000007.png'
  )
  return workdir


@pytest.fixture
def runs(tmp_path):
  one = write_run(tmp_path / 'one')
  two = write_run(tmp_path / WEIRD.replace('/', '') / 'two', top1=0.5, epochs=4)
  return [str(one), str(two)]


class Page(html.parser.HTMLParser):
  """Collects the elements of a page, and checks that they are closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.found, self.ids, self.text = [], [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))
    self.ids += [x for k, x in attrs if k == 'id']
    if tag not in ('meta', 'img', 'br', 'path', 'use', 'rect', 'image'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))
    self.ids += [x for k, x in attrs if k == 'id']

  def handle_endtag(self, tag):
    if tag in self.open:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_table_has_our_numbers_and_the_published_ones(runs):
  table = tables.create_table([run_files.read_run(runs[0])])
  titles = [x.title for x in table.columns]
  rows = {
    (x.name, x.branch): dict(zip(titles, x.cells, strict=True)) for x in table.rows
  }
  ours = rows[runs[0], 'clean']
  assert ours['ImageNet top-1, %'] == '77.0' and ours['ImageNet-A, %'] == '7.1'
  assert ours['ImageNet-C mCE (lower is better)'] == '66.2'  # Rounded to even.
  assert ours['own images, top-1, %'] == '81.2' and ours['ECE, %'] == '12.5'
  assert ours['under attack, top-1, %'] == '6.2'
  assert rows[runs[0], 'adv']['under attack, top-1, %'] == '37.5'
  assert rows[runs[0], 'adv']['ImageNet-A, %'] == ''
  assert 'ImageNet-R, %' not in titles  # Nobody has it.
  published = rows['efficientnet_b0: AdvProp', '']
  assert published['ImageNet top-1, %'] == '77.6'
  assert published['ImageNet-C mCE (lower is better)'] == '66.2'
  assert all(row.source for row in table.rows if not row.branch)
  assert 'efficientnet_b1' not in str(table.rows)


def test_published_numbers_are_shown_only_where_ours_can_stand_beside(tmp_path):
  run = write_run(tmp_path / 'x')
  for name in ('imagenet', 'c', 'a'):
    (run / 'eval' / f'{name}.json').unlink()
  table = tables.create_table([run_files.read_run(str(run))])
  assert all(row.branch for row in table.rows)


def test_the_page_stands_alone_and_escapes_what_users_write(runs):
  text = report.create_report(runs)
  page = Page(text)
  assert page.open == [] and not re.search(r'@import|url\((?!#)', text)
  assert not [x for x, _ in page.found if x in ('script', 'link', 'iframe')]
  for _, attrs in page.found:
    for key in ('src', 'href', 'xlink:href'):
      assert attrs.get(key, 'data:').startswith(('data:', '#'))
  assert len(set(page.ids)) == len(page.ids)
  assert WEIRD in page.text and '_hidden' in page.text  # A class, as text.
  for words in ('81.2', '66.2', 'a note | of A', 'Adversarial examples', 'num_epochs'):
    assert words in page.text
  assert 'one: corruptions' in page.text and 'one: a in part' in page.text
  assert 'epsilon 4/255, step_size 1/255, num_steps 10' in page.text
  assert text == report.create_report(runs)  # Nothing in it is by chance.
  assert sum(x == 'svg' for x, _ in page.found) == 3 + 1 + 1 + 1 + 2 + 1


def test_markdown_has_the_same_table(runs):
  text = report.create_report(runs, format_name='md')
  (row,) = [x for x in text.splitlines() if x.startswith('| one | clean |')]
  assert [x.strip() for x in row.split('|')[3:6]] == ['77.0', '66.2', '7.1']
  assert 'one: corruptions' in text and '- a note | of A' in text


def test_a_run_that_was_only_trained_has_its_curves(tmp_path):
  run = write_run(tmp_path / 'x')
  shutil.rmtree(run / 'eval')
  shutil.rmtree(run / 'pictures')
  page = Page(report.create_report([str(run)]))
  assert 'None of the runs was evaluated' in page.text
  assert 'top-1 while training' in page.text and 'Calibration' not in page.text


def test_of_phases_the_last_is_shown(tmp_path):
  for i, top1 in enumerate((0.25, 0.5)):
    write_run(tmp_path / 'x' / f'phase_{i}', top1=top1)
  run = run_files.read_run(str(tmp_path / 'x'))
  assert run.suites['val']['summary']['clean']['top1'] == 0.5


@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda x: shutil.rmtree(x), 'there is no .*config.json; allowed'),
    (lambda x: (x / 'config.json').write_text('{'), 'config.json is damaged'),
    (lambda x: (x / 'config.json').write_text('[]'), 'holds no JSON object'),
    (lambda x: (x / 'eval' / 'val.json').write_text('x'), 'val.json is damaged'),
    (lambda x: (x / 'eval' / 'val.json').write_text('{}'), 'val.json has no title, ch'),
    (
      lambda x: [shutil.rmtree(x / 'eval'), (x / 'results.jsonl').unlink()],
      'has no results; allowed: .*--mode=evaluate',
    ),
  ],
)
def test_what_cannot_be_read_is_one_line(damage, message, tmp_path, capsys):
  damage(write_run(tmp_path / 'x'))
  out = tmp_path / 'report.html'
  out.write_text('of yesterday')
  with pytest.raises(SystemExit, match=message) as e:
    report.main([str(tmp_path / 'x'), f'--out={out}'])
  assert str(e.value).startswith('error: ') and '\n' not in str(e.value)
  assert out.read_text() == 'of yesterday'


def test_what_cannot_be_written_is_one_line(runs, tmp_path):
  with pytest.raises(SystemExit, match='--out .*: No such file or directory; allowed'):
    report.main([runs[0], f'--out={tmp_path}/none/report.html'])
  with pytest.raises(errors.UserError, match="unknown --format 'pdf'"):
    report.create_report(runs, format_name='pdf')


def test_the_command_needs_neither_tensorflow_nor_a_device(runs, tmp_path):
  out = tmp_path / 'report.html'
  script = (
    'import sys; from advprop_jax.evaluation import report; '
    f'report.main([{runs[0]!r}, "--out={out}"]); '
    'assert not {"tensorflow", "orbax", "clu"} & sys.modules.keys()'
  )
  subprocess.run([sys.executable, '-c', script], check=True)
  assert out.read_text().startswith('<!doctype html>')


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
  series = {name: ([0, 1], [0.5, 0.9]) for name in 'abc'}
  svg = charts.lines('x', series, is_share=True)
  heights = re.findall(r' y="([\d.]+)"[^>]*> [abc]<', svg)
  assert len(set(heights)) == 3


@pytest.mark.skipif(shutil.which('chromium') is None, reason='needs Chromium')
@pytest.mark.parametrize('width', [390, 1200])
def test_nothing_is_wider_than_the_window(width, runs, tmp_path):
  """In a browser: only the tables, in boxes of their own, may be scrolled."""
  page = tmp_path / 'report.html'
  script = (
    '<script>document.title = document.documentElement.scrollWidth + " of " + '
    'document.documentElement.clientWidth;</script>'
  )
  page.write_text(report.create_report(runs) + script)
  command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
  command += [f'--user-data-dir={tmp_path}/browser', f'--window-size={width},900']
  done = subprocess.run(
    [*command, page.as_uri()],
    check=True,
    capture_output=True,
    text=True,
    timeout=60,
    env={**os.environ, 'HOME': str(tmp_path)},
  )
  wide, window = re.search(r'<title>(\d+) of (\d+)</title>', done.stdout).groups()
  assert int(wide) <= int(window)
