"""Tests that a changed, cut or absent file of a checkpoint is never restored."""

import errno
import json
import os
import shutil
import subprocess

import jax
import numpy as np
import pytest
from etils import epath

from advprop_jax import errors, parallel
from advprop_jax.workdir import checkpoint, checksums, directory, integrity, restore

# Of this size TensorStore writes an array to a file of its own, without a checksum.
SHAPE = (256, 512)


def parts(seed):
  rng = np.random.default_rng(seed)
  params = {'kernel': rng.standard_normal(SHAPE, np.float32), 'bias': np.ones(3, 'f')}
  state = {'params': params, 'norms': {'clean': np.ones(2, 'f')}}
  return {'model': state, 'training': {'step': np.int32(seed)}}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Returns a workdir with checkpoints of the steps 4 and 8."""
  workdir = tmp_path_factory.mktemp('saved')
  with checkpoint.Checkpointer(workdir / 'checkpoints', keep_last=2) as checkpointer:
    for step in (4, 8):
      save(checkpointer, step, metrics={'val/clean_top1': 0.5})
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


def save(saver, step, **options):
  saver.save(
    step,
    parallel.replicate(parts(step)),
    config={'data': {'batch_size': 16}},
    examples_seen=step * 16,
    fingerprint={},
    **options,
  )


def restore_item(workdir, step, item='model'):
  with restore.Reader(workdir / 'checkpoints') as reader:
    return reader.restore(step, {item: jax.eval_shape(lambda: parts(0)[item])})


def files(path):
  return sorted(x.relative_to(path) for x in path.rglob('*') if x.is_file())


def flip(path, position, bit=0):
  content = bytearray(path.read_bytes())
  content[position] ^= 1 << bit
  path.write_bytes(content)


def test_sha256sum_agrees(saved):
  result = subprocess.run(
    ['sha256sum', '--check', '--strict', 'SHA256SUMS'],
    cwd=saved / 'checkpoints/8',
    capture_output=True,
    text=True,
  )
  names = [line.removesuffix(': OK') for line in result.stdout.splitlines()]
  assert result.returncode == 0, result.stdout + result.stderr
  beside = {'SHA256SUMS', 'commit_success.txt'}
  assert {*names} == {*map(str, files(saved / 'checkpoints/8'))} - beside


def test_orbax_alone_restores_a_flipped_bit_and_we_do_not(workdir):
  step = workdir / 'checkpoints/8'
  large = max(step.glob('model/**/d/*'), key=lambda path: path.stat().st_size)
  flip(large, large.stat().st_size // 2)
  sums = (step / 'SHA256SUMS').read_text()
  (step / 'SHA256SUMS').unlink()
  restored, _, _ = restore_item(workdir, 8)  # As an older version saved it: no error.
  kernel = restored['model']['params']['kernel']
  assert np.sum(np.asarray(kernel) != parts(8)['model']['params']['kernel']) >= 1
  (step / 'SHA256SUMS').write_text(sums)
  name = large.relative_to(step)
  with pytest.raises(restore.DamagedError, match=f'{name}: its content has changed'):
    restore_item(workdir, 8)


def test_every_file_cut_emptied_or_deleted_is_named_or_harmless(workdir, caplog):
  step = workdir / 'checkpoints/8'
  whole = restore_item(workdir, 8)
  for name in files(step):
    content = (step / name).read_bytes()
    for damage in ('cut', 'emptied', 'deleted'):
      if damage == 'deleted':
        (step / name).unlink()
      else:
        (step / name).write_bytes(content[: len(content) // 2 * (damage == 'cut')])
      caplog.clear()
      with restore.Reader(workdir / 'checkpoints') as reader:
        found = reader.find('newest')
      # The mark of the save's end has no say here, and without checksums all is whole.
      if name.name == 'commit_success.txt' and len(name.parts) == 1:
        assert found == 8
      elif (str(name), damage) == ('SHA256SUMS', 'deleted'):
        assert found == 8 and restore_item(workdir, 8)[1:] == whole[1:]
      elif name.parts[0] == 'training':  # The network alone is whole.
        assert found == 8
        with pytest.raises(restore.DamagedError, match=f'8 is damaged: {name}: '):
          reader.verify(8, ['training'])
      else:
        assert found == 4, (name, damage)
        assert f'8 is damaged: {name}: ' in caplog.text
      (step / name).write_bytes(content)


def test_what_a_save_that_was_cut_off_has_left_is_dropped(workdir):
  left = workdir / 'checkpoints/9.orbax-checkpoint-tmp'
  (left / 'model').mkdir(parents=True)
  with restore.Reader(workdir / 'checkpoints') as reader:
    assert reader.steps() == [4, 8] and left.exists()
  with checkpoint.Checkpointer(workdir / 'checkpoints') as checkpointer:
    save(checkpointer, 12)  # Until here, it may go on in the background.
  assert not left.exists()


def test_a_run_sets_damaged_checkpoints_aside(workdir, caplog):
  flip(workdir / 'checkpoints/8/config/metadata', 3)
  assert integrity.set_damaged_aside(str(workdir)) == (4,)
  assert 'step 8 is damaged (config/metadata: its content has changed)' in caplog.text
  assert f'{workdir}/damaged/8, and that of step 4 is used' in caplog.text
  assert sorted(x.name for x in (workdir / 'checkpoints').iterdir()) == ['4']
  shutil.copytree(workdir / 'damaged/8', workdir / 'checkpoints/8')
  assert integrity.set_damaged_aside(str(workdir)) == (4,)
  assert sorted(x.name for x in (workdir / 'damaged').iterdir()) == ['8', '8_1']


def test_damaged_metrics_of_any_checkpoint_do_not_close_the_directory(workdir):
  (workdir / 'checkpoints/4/metrics/metrics').write_text('')
  assert integrity.set_damaged_aside(str(workdir)) == (8,)
  with checkpoint.Checkpointer(workdir / 'checkpoints') as checkpointer:
    assert checkpointer.find('best') == 8


@pytest.mark.parametrize('call', ['read file', 'stat', 'scandir'])
@pytest.mark.parametrize('number', [errno.ESTALE, errno.EACCES])
def test_what_cannot_be_read_for_now_is_not_damaged(
  workdir, monkeypatch, capsys, number, call
):
  before = files(workdir)

  def fail(path):
    raise OSError(number, os.strerror(number), str(path))

  original = getattr(os, call, None)

  def fail_for_config(path, *args, **kwargs):
    if str(path).endswith(('/config', '/config/metadata')):
      fail(path)
    return original(path, *args, **kwargs)

  if call == 'read file':
    monkeypatch.setattr(checksums, '_digest', fail)
  else:
    monkeypatch.setattr(os, call, fail_for_config)
  words = f'cannot read .*/checkpoints/8/.*: {os.strerror(number)}; allowed: '
  with pytest.raises(errors.UserError, match=words):
    integrity.set_damaged_aside(str(workdir))
  capsys.readouterr()
  assert integrity.main([str(workdir)]) == 1
  # Of every checkpoint, not only of the first that cannot be read.
  found = capsys.readouterr().out.splitlines()
  assert [x.partition(': not compared: cannot read ')[0] for x in found] == [
    f'{workdir}/checkpoints/{step}' for step in (4, 8)
  ]
  monkeypatch.undo()
  assert files(workdir) == before


def test_metrics_that_cannot_be_read_for_now_are_not_damaged(workdir, monkeypatch):
  read_bytes = checksums.json_files.read_bytes

  def fail(path, *limit):
    if path.name != 'metrics':
      return read_bytes(path, *limit)
    cause = OSError(errno.EACCES, 'Permission denied')
    raise checksums.json_files.UnreadableError('cannot be read') from cause

  monkeypatch.setattr(checksums.json_files, 'read_bytes', fail)
  with pytest.raises(errors.UserError, match='cannot read .*/metrics: Permission den'):
    integrity.set_damaged_aside(str(workdir))
  assert not (workdir / 'damaged').exists()
  with restore.Reader(workdir / 'checkpoints') as reader:
    with pytest.raises(
      errors.UserError, match='cannot read .*/4/metrics/metrics: Perm'
    ):
      reader.find('best')


def test_checkpoints_that_cannot_be_listed_are_one_line(workdir):
  (workdir / 'none').mkdir()
  (workdir / 'none/checkpoints').symlink_to('checkpoints')  # A link to itself.
  with pytest.raises(errors.UserError, match='cannot read .*none/checkpoints: '):
    directory.saved_steps(str(workdir / 'none'))


def test_a_sector_that_cannot_be_read_is_damage(workdir, monkeypatch):
  digest = checksums._digest

  def fail(path):
    if path.parts[-3:] == ('8', 'config', 'metadata'):
      raise OSError(errno.EIO, '')
    return digest(path)

  monkeypatch.setattr(checksums, '_digest', fail)
  assert integrity.set_damaged_aside(str(workdir)) == (4,)


def test_a_whole_checkpoint_that_orbax_cannot_read_is_not_damaged(workdir, monkeypatch):
  with restore.Reader(workdir / 'checkpoints') as reader:

    def fail(*_, **__):
      raise OSError(errno.EMFILE, '')

    monkeypatch.setattr(reader._manager, 'restore', fail)
    with pytest.raises(
      errors.UserError, match='8 is whole, and Orbax.*: Too many'
    ) as e:
      reader.restore(8, {'model': jax.eval_shape(lambda: parts(0)['model'])})
  assert not isinstance(e.value, restore.DamagedError)


def test_if_none_is_whole_all_stay(workdir):
  before = files(workdir)
  for step in '48':
    flip(workdir / f'checkpoints/{step}/model/_METADATA', 0)
  with pytest.raises(errors.UserError, match='step 4: model/_METADATA.*; step 8: '):
    integrity.set_damaged_aside(str(workdir))
  with restore.Reader(workdir / 'checkpoints') as reader:
    with pytest.raises(restore.DamagedError, match='/8 is damaged: model/_METADATA'):
      reader.find('newest')
  assert files(workdir) == before


@pytest.mark.parametrize('position', [-64, True, 8 * 16 + 1, '128', None])
def test_a_position_that_cannot_be_is_refused(workdir, position):
  file = workdir / 'checkpoints/8/data/metadata'
  content = json.loads(file.read_text())
  checksums.replace_file(
    file.parent.parent,
    'data/metadata',
    json.dumps({**content, 'examples_seen': position}).encode(),
  )
  with pytest.raises(restore.DamagedError, match=f'examples_seen is {position!r}'):
    restore_item(workdir, 8, 'training')


def test_a_value_that_is_not_finite_is_refused(tmp_path):
  bad = parts(1)
  bad['model']['params']['kernel'][3, 5] = np.nan
  with checkpoint.Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    checkpointer.save(
      1, parallel.replicate(bad), config={}, examples_seen=0, fingerprint={}
    )
  with pytest.raises(restore.DamagedError, match='model/params/kernel is not fin'):
    restore_item(tmp_path, 1)


def test_a_kill_while_a_file_is_replaced_leaves_the_checkpoint_whole(
  workdir, monkeypatch
):
  """Stops before each change of a name, which is the only one that can be seen."""
  path = epath.Path(workdir / 'checkpoints/8')
  replace, num_left = type(path).replace, 0

  def replace_or_stop(self, target):
    nonlocal num_left
    if num_left == 0:
      raise KeyboardInterrupt
    num_left -= 1
    return replace(self, target)

  monkeypatch.setattr(type(path), 'replace', replace_or_stop)
  for stop_after in range(4):
    num_left = stop_after
    new = json.dumps({'val/clean_top1': stop_after}).encode()
    if stop_after < 3:
      with pytest.raises(KeyboardInterrupt):
        checksums.replace_file(path, 'metrics/metrics', new)
    else:
      checksums.replace_file(path, 'metrics/metrics', new)
    assert checksums.check(path).problems == ()
  assert (path / 'metrics/metrics').read_bytes() == new


def test_a_file_is_replaced_only_where_nothing_is_damaged(workdir):
  path = epath.Path(workdir / 'checkpoints/8')
  flip(workdir / 'checkpoints/8/SHA256SUMS', 3)
  before = files(workdir)
  with pytest.raises(errors.UserError, match='SHA256SUMS is damaged itself; allowed: '):
    checksums.replace_file(path, 'metrics/metrics', b'{}')
  assert files(workdir) == before
  (path / checksums.FILE).unlink()  # As an older version has saved it.
  checksums.replace_file(path, 'metrics/metrics', b'{}')
  assert (path / 'metrics/metrics').read_bytes() == b'{}'
  assert not (path / checksums.FILE).exists()


def test_a_workdir_that_is_deleted_before_a_save_is_not_made_anew(tmp_path):
  path = tmp_path / 'run/checkpoints'
  with checkpoint.Checkpointer(path) as checkpointer:
    save(checkpointer, 4)
    checkpointer.wait_until_finished()
    (tmp_path / 'run').rename(tmp_path / 'gone')
    with pytest.raises(
      errors.UserError, match='checkpoints/8: its directory was delet'
    ):
      save(checkpointer, 8)
      checkpointer.wait_until_finished()
    assert not (tmp_path / 'run').exists()


def test_a_directory_that_is_deleted_while_it_is_saved_is_no_checkpoint(
  tmp_path, monkeypatch
):
  """TensorStore makes it anew, with the files that come after."""
  path = tmp_path / 'checkpoints'
  with checkpoint.Checkpointer(path) as checkpointer:
    create = integrity._inode
    calls = []

    def delete(created):
      calls.append(created)
      number = create(created)
      if created.parent == path and len(calls) > 1:  # Before it is finalized.
        shutil.copytree(created, tmp_path / 'copy')
        created.rename(tmp_path / 'gone')
        (tmp_path / 'copy').rename(created)
        number = create(created)
      return number

    monkeypatch.setattr(integrity, '_inode', delete)
    save(checkpointer, 4)
    with pytest.raises(
      errors.UserError, match='checkpoints/4: its directory was deleted'
    ):
      checkpointer.wait_until_finished()
    assert checkpointer.steps() == []


@pytest.mark.parametrize(
  'line', ['{}  ../4/config/metadata', '{}  /dev/zero', '{}  config', '{}  nothing']
)
def test_checksums_of_what_is_no_file_of_the_checkpoint_are_refused(workdir, line):
  path = epath.Path(workdir / 'checkpoints/8')
  entries, _ = checksums._read(path)
  checksums._write(path, [*entries, tuple(line.format(64 * '0').split('  '))])
  assert len(checksums.check(path).problems) == 1


def test_the_command_names_the_file(workdir, capsys):
  assert integrity.main([str(workdir)]) == 0
  assert capsys.readouterr().out.count(': whole, ') == 2
  flip(workdir / 'checkpoints/4/model/manifest.ocdbt', 7)
  (workdir / 'checkpoints/8/SHA256SUMS').unlink()
  assert integrity.main([str(workdir)]) == 1
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith(f'{workdir}/checkpoints/4: damaged, ')
  assert lines[1:] == [
    '  model/manifest.ocdbt: its content has changed',
    f'{workdir}/checkpoints/8: not compared: no SHA256SUMS (an older version, or '
    'deleted)',
  ]
  (workdir / 'checkpoints/4').rename(workdir / 'elsewhere')
  assert integrity.main([str(workdir)]) == 1  # Nothing is known of 8.
  assert integrity.main([str(workdir / 'elsewhere')]) == 1
  # A phase counts that has lost its config.json.
  (workdir / 'elsewhere').rename(workdir / 'phase_0')
  capsys.readouterr()
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'phase_0/checkpoints').mkdir()
  (workdir / 'phase_0/model').rename(workdir / 'phase_0/checkpoints/3')
  assert integrity.main([str(workdir)]) == 1
  assert capsys.readouterr().out.startswith(f'{workdir}/phase_0/checkpoints/3: damaged')


@pytest.mark.parametrize('place', ['..', 'checkpoints', 'checkpoints/8'])
def test_the_command_names_workdirs_near_by(workdir, capsys, place):
  assert integrity.main([str(workdir / place)]) == 1
  line = capsys.readouterr().err
  assert 'has no checkpoints; allowed: a --workdir that was trained in, as ' in line
  assert line.rstrip().endswith(workdir.name)
