"""Tests the scripts for TPUs, with stand-ins for gcloud and what a worker has."""

import json
import os
import subprocess
import sys
import time

import pytest
import stand_ins

FLAGS = ['--name=b7', '--zone=us-central2-b', '--workdir=gs://bucket/b7/']
QUEUED = [*FLAGS, '--accelerator_type=v6e-16', '--runtime_version=v2', '--poll_secs=0']
GCLOUD = """
case "$*" in
  *' describe '*) answer states ;;
  *' ssh '*) exit "$(answer statuses)" ;;
  *' create '*) answer said >&2; exit "$(answer created)" ;;
  *' delete '*) exit "$(answer deleted)" ;;
esac
"""


@pytest.fixture
def commands(tmp_path):
  commands = stand_ins.StandIns(tmp_path / 'stand_ins')
  commands.add('gcloud', GCLOUD)
  commands.answers('states', ['ACTIVE'])
  commands.answers('statuses', [0])
  commands.answers('created', [0])
  commands.answers('said', [''])
  commands.answers('deleted', [0])
  return commands


@pytest.fixture
def repository(tmp_path):
  return stand_ins.copy_launch(tmp_path / 'repository')


def steps(commands):
  """Returns the verbs of gcloud's calls that change something."""
  verbs = ('create', 'delete', 'ssh')
  return [x for call in commands.calls('gcloud') for x in call if x in verbs]


def test_arguments_arrive_at_all_workers_as_they_were(tmp_path, commands, repository):
  given = ['--config=a b', "it's", '"$HOME"', '*', 'two\nlines', '', '\\', 'ü']
  result = commands.run('tpu_vm.sh', *FLAGS, '--', *given, cwd=repository)
  assert result.returncode == 0, result.stderr
  (ssh,) = commands.calls('ssh')
  assert '--worker=all' in ssh and '--zone=us-central2-b' in ssh
  # gcloud splits the command at blanks, and ssh joins it with blanks.
  (command,) = [x.removeprefix('--command=') for x in ssh if x.startswith('--command=')]
  (tmp_path / 'tpu_worker.sh').write_text('printf "%s\\x1f" "$@"')
  arrived = subprocess.run(
    ['bash', '-c', ' '.join(command.split(' '))],
    cwd=tmp_path,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split('\x1f')[:-1]
  commit = subprocess.run(
    ['git', 'rev-parse', 'HEAD'], cwd=repository, capture_output=True, text=True
  ).stdout.strip()
  code = f'gs://bucket/b7/code/{commit}.tar.gz'
  assert arrived == ['run', code, '--workdir=gs://bucket/b7', *given]
  (upload,) = commands.calls('storage')
  assert upload[-1] == code and '--no-clobber' in upload


@pytest.mark.parametrize(
  'of_gcloud, of_script',
  # A status 1 of gcloud is its own; main.py's arrives as 254.
  [(0, 0), (254, 1), (143, 143), (75, 75), (255, 255), (1, 255)],
)
def test_status_of_the_run(commands, repository, of_gcloud, of_script):
  commands.answers('statuses', [of_gcloud])
  result = commands.run('tpu_vm.sh', *FLAGS, cwd=repository)
  assert result.returncode == of_script


@pytest.mark.parametrize(
  'script, args, message',
  [
    ('tpu_vm.sh', FLAGS[:1], '--zone is missing; needed: --name=... --zone=... --work'),
    ('tpu_vm.sh', [*FLAGS, '--name=B7'], "--name is 'B7'; allowed: up to 40 small"),
    (
      'tpu_vm.sh',
      [*FLAGS, '--workdir=runs/b7'],
      "--workdir is 'runs/b7'; allowed: gs://BUCKET/FOLDER, which all hosts see",
    ),
    ('tpu_vm.sh', [*FLAGS, '--zon=x'], "unknown or incomplete argument '--zon=x'; all"),
    ('tpu_vm.sh', ['--zone'], "incomplete argument '--zone'; allowed: --name=..., --"),
    ('tpu_vm.sh', ['--config=x'], 'allowed: --name=..., --zone=..., --workdir=..., -'),
    (
      'tpu_vm.sh',
      [*FLAGS, '--', '--workdir=x'],
      "'--workdir=x' after --; allowed: --workdir=... before it",
    ),
    ('tpu_queued.sh', FLAGS, '--accelerator_type is missing; needed: --name=... --z'),
    (
      'tpu_queued.sh',
      [*QUEUED, '--delete=no'],
      "--delete is 'no'; allowed: done, always, never",
    ),
    ('tpu_queued.sh', [*QUEUED, '--max_failures=0'], 'allowed: whole numbers from 1'),
    ('tpu_queued.sh', [*QUEUED, '--poll_secs=x'], "--poll_secs is 'x'; allowed: who"),
  ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
  commands, repository, script, args, message
):
  result = commands.run(script, *args, cwd=repository)
  assert result.returncode == 1
  assert message in result.stderr and len(result.stderr.splitlines()) == 1
  assert result.stderr.startswith('error: ')
  assert commands.calls() == []


def test_what_is_not_committed_is_refused(commands, repository):
  (repository / 'new.py').write_text('')
  result = commands.run('tpu_vm.sh', *FLAGS, cwd=repository)
  assert result.returncode == 1 and commands.calls() == []
  assert "not committed: '?? new.py'; allowed: a checkout without" in result.stderr


def test_a_failed_upload_or_copy_is_no_mistake_of_the_run(commands, repository):
  for verb in ('storage', 'scp'):
    commands.add('gcloud', f'[[ "$*" != *" {verb} "* ]]')
    result = commands.run('tpu_vm.sh', *FLAGS, cwd=repository)
    assert result.returncode == 255
  assert commands.calls('ssh') == []


@pytest.mark.parametrize(
  'states, statuses, expected, status',
  [
    # What is there is not asked for again.
    (['ACTIVE'], [0], ['ssh', 'delete'], 0),
    # Asked for, waited for.
    (
      ['', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
      [0],
      ['create', 'ssh', 'delete'],
      0,
    ),
    # Preempted, a lost process, a lost connection, gcloud's own failure: again.
    (['ACTIVE'], [143, 75, 255, 1, 130, 0], ['ssh'] * 6 + ['delete'], 0),
    # Preempted and taken away: deleted and asked for anew.
    (
      ['ACTIVE', 'SUSPENDING', 'SUSPENDED', '', 'PROVISIONING', 'ACTIVE'],
      [143, 0],
      ['ssh', 'delete', 'create', 'ssh', 'delete'],
      0,
    ),
    (
      ['FAILED', '', 'ACTIVE'],
      [0],
      ['delete', 'create', 'ssh', 'delete'],
      0,
    ),
    # A mistake: stopped, and the TPU kept.
    (['ACTIVE'], [75, 254], ['ssh', 'ssh'], 1),
    # As often as max_failures, here 6; preemptions do not count.
    (['ACTIVE'], [75], ['ssh'] * 6, 75),
    (
      [*['ACTIVE', 'ACTIVE', 'SUSPENDED', ''] * 4, 'ACTIVE'],
      [143] * 8 + [0],
      ['ssh', 'ssh', 'delete', 'create'] * 4 + ['ssh', 'delete'],
      0,
    ),
    # Another tpu_queued.sh stops what this one starts.
    (['ACTIVE'], [143], ['ssh'] * 6, 143),
    (['FAILED'], [0], ['delete'] * 6, 255),
  ],
)
def test_queue(commands, repository, states, statuses, expected, status):
  commands.answers('states', states)
  commands.answers('statuses', statuses)
  result = commands.run('tpu_queued.sh', *QUEUED, '--max_failures=6', cwd=repository)
  assert result.returncode == status, result.stderr
  assert steps(commands) == expected
  if status == 1:
    assert 'status 1 is a mistake' in result.stderr
    assert 'stays and costs; delete it: gcloud --quiet compute tpus' in result.stderr


def test_request_for_a_spot_tpu(commands, repository):
  commands.answers('states', ['', 'ACTIVE'])
  flags = [*QUEUED, '--spot', '--project=mine', '--create_flag=--network=x']
  result = commands.run('tpu_queued.sh', *flags, '--', '--config=a b', cwd=repository)
  assert result.returncode == 0, result.stderr
  ((*_, upload),) = commands.calls('storage')
  (create,) = commands.calls('create')
  assert create[
    1:7
  ] == '--quiet --project=mine compute tpus queued-resources'.split() + ['create']
  assert set(create[7:]) == {
    *('b7', '--node-id=b7', '--zone=us-central2-b', '--spot', '--network=x'),
    *('--accelerator-type=v6e-16', '--runtime-version=v2'),
    '--metadata-from-file=startup-script=launch/tpu_worker.sh',
    f'--metadata=advprop-code={upload}',
  }
  (ssh,) = commands.calls('ssh')
  assert '--project=mine' in ssh and ssh[-1].endswith(r' --config=a\ b')


def test_a_request_that_cannot_be_made_is_given_up(commands, repository):
  commands.answers('states', [''])
  commands.answers('created', [1])
  flags = [*QUEUED, '--max_failures=2', '--delete=always']
  result = commands.run('tpu_queued.sh', *flags, cwd=repository)
  assert result.returncode == 255
  assert steps(commands) == ['create', 'create', 'delete']
  assert 'gave up after 2 failures in a row' in result.stderr


def test_a_mistake_in_the_request_is_not_repeated(commands, repository):
  commands.answers('states', [''])
  commands.answers('created', [1])
  commands.answers('said', ['ERROR: (gcloud) INVALID_ARGUMENT: no such accelerator'])
  result = commands.run('tpu_queued.sh', *QUEUED, cwd=repository)
  assert result.returncode == 1 and steps(commands) == ['create']
  assert 'INVALID_ARGUMENT: no such accelerator' in result.stderr
  assert 'a mistake in the request: not repeated' in result.stderr


def test_a_tpu_that_cannot_be_deleted_is_given_up(commands, repository):
  commands.answers('states', ['SUSPENDED'])
  commands.answers('deleted', [1])
  flags = [*QUEUED, '--max_failures=3']
  result = commands.run('tpu_queued.sh', *flags, cwd=repository)
  assert result.returncode == 255 and steps(commands) == ['delete'] * 3
  assert 'could not be deleted; gave up after 3 failures in a row' in result.stderr


def test_the_code_stays_the_same_while_the_checkout_changes(commands, repository):
  commands.add('gcloud', f'touch {repository}/new.py{GCLOUD}')
  commands.answers('statuses', [143, 0])
  result = commands.run('tpu_queued.sh', *QUEUED, cwd=repository)
  assert result.returncode == 0, result.stderr
  first, second = commands.calls('ssh')
  assert first == second and len(commands.calls('storage')) == 1


# The bucket is a folder, and so is the only worker.
CLOUD = """
place() { echo "$here/bucket/${1#gs://}"; }
case "$*" in
  *' storage cp --no-clobber '*)
    target=$(place "${@: -1}")
    [[ -e $target ]] || { mkdir -p "${target%/*}" && cp "${@: -2:1}" "$target"; }
    ;;
  'storage cat '*) cat "$(place "$3")" ;;
  *' scp '*) cp "$6" "$here/home/${7#*:}" ;;
  *' ssh '*) cd "$here/home" && last=${@: -1} && bash -c "${last#--command=}" ;;
esac
"""
SETUP = """
mkdir -p .venv/bin
ln -sf INTERPRETER .venv/bin/python
echo "$PYTHON $*" >>installed
"""
MAIN = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
here = pathlib.Path(os.environ['STAND_INS'])
if '--wait' in sys.argv:
  (here / 'waiting').touch()
  time.sleep(60)
(here / 'arguments').write_text(json.dumps(sys.argv[1:]))
sys.exit(int((here / 'status').read_text()))
"""


@pytest.fixture
def cloud(tmp_path, commands):
  """Returns the folder that a worker has its code in."""
  commands.add('gcloud', CLOUD)
  # sudo asks for no password, and passes no variables on.
  keep = '"PATH=$PATH" "ADVPROP_DIR=$ADVPROP_DIR" "HOME=$HOME"'
  commands.add('sudo', f'[[ $1 == -n ]] && shift && exec env -i {keep} "$@"')
  commands.add('uv', '[[ $2 != find ]] || echo /managed/python')
  commands.add('python3', 'mkdir -p "${5#*=}/bin" && cp "$here/bin/uv" "${5#*=}/bin"')
  for name in ('home', 'machine'):
    (tmp_path / 'stand_ins' / name).mkdir()
  return tmp_path / 'stand_ins' / 'machine' / 'code'


@pytest.fixture
def program(tmp_path):
  repository = tmp_path / 'repository'
  stand_ins.copy_launch(repository, main_py=MAIN)
  interpreter = os.path.realpath(sys.executable)
  (repository / 'launch' / 'setup.sh').write_text(
    SETUP.replace('INTERPRETER', interpreter)
  )
  stand_ins.commit(repository)
  return repository


def test_a_worker_installs_once_and_runs(commands, cloud, program):
  folder = commands.folder
  env = {'cwd': program, 'ADVPROP_DIR': str(cloud), 'STAND_INS': str(folder)}
  for status, expected in ((143, 143), (1, 1), (0, 0)):
    (folder / 'status').write_text(str(status))
    result = commands.run('tpu_vm.sh', *FLAGS, '--', '--config=a b', **env)
    assert result.returncode == expected, result.stderr
    arguments = json.loads((folder / 'arguments').read_text())
    assert arguments == ['--workdir=gs://bucket/b7', '--config=a b']
  # Python and the code came once; launch/setup.sh sees itself what is there.
  assert len(commands.calls('python3')) == len(commands.calls('storage', 'cat')) == 1
  line = '/managed/python requirements.txt launch/tpu.txt'
  assert (cloud / 'installed').read_text().splitlines() == [line] * 3

  # A new commit replaces the code; the packages stay.
  (cloud / '.venv' / 'kept').touch()
  (program / 'main.py').write_text('import sys; sys.exit(75)')
  stand_ins.commit(program)
  assert commands.run('tpu_vm.sh', *FLAGS, **env).returncode == 75
  assert len(commands.calls('storage', 'cat')) == 2
  assert (cloud / '.venv' / 'kept').exists()


def test_a_machine_installs_at_its_start(tmp_path, commands, cloud, program):
  env = {'ADVPROP_DIR': str(cloud), 'STAND_INS': str(commands.folder)}
  code = commands.folder / 'bucket' / 'bucket' / 'code.tar.gz'
  code.parent.mkdir(parents=True)
  archive = ['git', 'archive', '--format=tar.gz', f'--output={code}', 'HEAD']
  subprocess.run(archive, cwd=program, check=True)
  commands.add(
    'curl', '[[ $* == *attributes/advprop-code ]] && echo gs://bucket/code.tar.gz'
  )
  result = commands.run('tpu_worker.sh', cwd=program, **env)
  assert result.returncode == 0, result.stderr
  assert (cloud / '.venv' / 'bin' / 'python').exists()
  assert not (commands.folder / 'arguments').exists()


@pytest.mark.parametrize(
  'words',
  ['stopp --workdir=gs://b/x', 'stop', 'run code', 'run code --seed=1', 'install'],
)
def test_a_worker_refuses_what_it_does_not_know(commands, cloud, program, words):
  result = commands.run('tpu_worker.sh', *words.split(), cwd=program)
  assert result.returncode == 254
  assert result.stderr.startswith(f"error: unknown or incomplete arguments '{words}'; ")
  assert not commands.calls('storage')


@pytest.mark.parametrize('is_asked', [False, True])
def test_a_run_that_was_left_there_is_stopped_and_saves(
  commands, cloud, program, is_asked
):
  folder = commands.folder
  env = {'ADVPROP_DIR': str(cloud), 'STAND_INS': str(folder)}
  (folder / 'status').write_text('0')
  assert commands.run('tpu_vm.sh', *FLAGS, cwd=program, **env).returncode == 0
  (folder / 'arguments').unlink()
  left = [cloud / '.venv' / 'bin' / 'python', 'main.py', '--workdir=gs://bucket/b7']
  process = subprocess.Popen(
    [*left, '--wait'], cwd=cloud, env={**os.environ, **env}, stdout=subprocess.DEVNULL
  )
  try:
    while not (folder / 'waiting').exists():
      assert process.poll() is None
      time.sleep(0.01)
    other = [*FLAGS, '--workdir=gs://bucket/other']
    result = commands.run('tpu_vm.sh', *other, cwd=program, **env)
    assert result.returncode == 1 and process.poll() is None
    assert 'error: this TPU is at work: ' in result.stderr
    stop = commands.run('tpu_vm.sh', *other, '--stop', cwd=program, **env)
    assert stop.returncode == 1 and process.poll() is None
    args = ['--stop'] if is_asked else []
    assert commands.run('tpu_vm.sh', *FLAGS, *args, cwd=program, **env).returncode == 0
    assert process.wait(timeout=10) == 143
    assert (folder / 'arguments').exists() != is_asked  # Of the new run.
  finally:
    process.kill()
