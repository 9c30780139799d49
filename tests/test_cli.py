"""Tests the command `advprop` in this process: output, messages and exit status."""

import errno
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from advprop_jax import cli, errors
from advprop_jax.weights import load
from advprop_jax.weights.classifier import FileResult, Prediction


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  root = tmp_path_factory.mktemp('images')
  (root / 'sub').mkdir()
  rng = np.random.default_rng(0)
  for name in ('a.png', 'sub/b.png', 'sub/c.png'):
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / name)
  (root / 'sub' / 'bad.jpg').write_text('no image')
  return root


def test_a_bad_file_ends_nothing_but_the_status_0(
  saved_run_dir, images, tmp_path, monkeypatch, capsys, fast_compilation
):
  original, loaded = load.load, []

  def load_and_keep(*args, **kwargs):
    loaded.append(original(*args, **kwargs))
    return loaded[-1]

  monkeypatch.setattr(load, 'load', load_and_keep)
  output = tmp_path / 'predictions.json'
  output.write_text('of yesterday')
  command = ['predict', str(saved_run_dir), str(images), 'none.png', '--format=json']
  options = [f'--output={output}', '--top=2', '--batch_size=2']
  options += ['--branch=adv', '--step=3']
  assert cli.main([*command, *options]) == 1
  out, err = capsys.readouterr()
  bad, missing = err.splitlines()
  assert f'error: cannot read image {images}/sub/bad.jpg: ' in bad and not out
  assert 'error: cannot read image none.png: No such file' in missing
  found = json.loads(output.read_text())
  names = ['a.png', 'sub/b.png', 'sub/c.png']
  assert [x['path'] for x in found] == [str(images / name) for name in names]
  (model,) = loaded
  assert (model.step, model.branch) == (3, 'adv')
  expected = model.predict([images / name for name in names], top=2, batch_size=2)
  assert [
    [(x['class'], x['probability'], x['index']) for x in one['predictions']]
    for one in found
  ] == expected


def test_a_table_names_classes_and_probabilities():
  predictions = [Prediction('cat', 0.98765, 3), Prediction('a dog', 0.01, 0)]
  text = cli.FORMATS['table'].describe(FileResult('a/b.png', predictions, None))
  assert text == 'a/b.png\n   98.77 %  cat\n    1.00 %  a dog\n'


@pytest.mark.parametrize(
  'words, message',
  [
    (['no/such/run', 'a.png'], 'there is no no/such/run; allowed'),
    (['{run}', '{images}', '--step=5'], "no checkpoint '5' in .*; allowed: newest, 3"),
    (['{run}', '{images}', '--output={run}'], 'to --output .*: Is a directory; allow'),
    (['{run}', '{run}'], 'folder .* has no images; allowed'),
  ],
)
def test_a_mistake_is_one_line(words, message, saved_run_dir, images, capsys):
  words = [word.format(run=saved_run_dir, images=images) for word in words]
  assert cli.main(['predict', *words]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and re.search(message, line)


@pytest.mark.parametrize('options', [['--top=0'], ['--batch_size=0']])
def test_what_was_written_before_is_kept(options, saved_run_dir, images, tmp_path):
  output = tmp_path / 'predictions.txt'
  output.write_text('of yesterday')
  words = ['predict', str(saved_run_dir), str(images), f'--output={output}']
  assert cli.main(words + options) == 1
  assert output.read_text() == 'of yesterday' and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path):
  output = tmp_path / 'predictions.txt'
  output.write_text('of yesterday')
  with pytest.raises(errors.UserError, match='--output .*: No space left on device'):
    with cli._open(str(output)) as file:
      file.write('x')
      raise OSError(errno.ENOSPC, 'No space left on device')
  assert output.read_text() == 'of yesterday' and len(list(tmp_path.iterdir())) == 1
  (tmp_path / 'predictions.txt.new').write_text('mine')
  with cli._open(str(output)) as file:
    file.write('x')
  assert output.read_text() == 'x'
  assert (tmp_path / 'predictions.txt.new').read_text() == 'mine'
  with pytest.raises(errors.UserError, match='/dev/full: No space left on device'):
    with cli._open('/dev/full') as file:
      file.write('x')


def test_a_pipe_is_written_to():
  read, write = os.pipe()
  with cli._open(f'/dev/fd/{write}') as file:
    file.write('x')
  os.close(write)
  with open(read) as file:
    assert file.read() == 'x'


def test_a_long_run_tells_when_it_will_end(monkeypatch, capsys):
  times = iter([0.0, *(3.0 * i for i in range(1, 10))])
  monkeypatch.setattr(cli.time, 'monotonic', lambda: next(times))
  results = cli._with_progress(range(200), num_files=200, batch_size=50)
  assert list(results) == list(range(200))
  assert capsys.readouterr().err == (
    '100 of 200 images, 16.7 images/s, 0 min 06 s left\n'
  )


def test_the_help_needs_no_network(capsys):
  with pytest.raises(SystemExit) as e:
    cli.main(['predict', '--help'])
  assert e.value.code == 0 and '--batch_size' in capsys.readouterr().out
