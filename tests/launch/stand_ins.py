"""Commands that stand in for gcloud, srun and others, and record their calls."""

import os
import pathlib
import shutil
import stat
import subprocess

ROOT = pathlib.Path(__file__).parent.parent.parent

HEAD = r"""#!/usr/bin/env bash
here=%s
{ printf '%%s\x1f' %s "$@"; printf '\x1e'; } >>"$here/calls"
answer() {  # The next line of a file; the last one stays.
  head -n 1 "$here/$1"
  if (($(wc -l <"$here/$1") > 1)); then sed -i 1d "$here/$1"; fi
}
"""


class StandIns:
  """A folder of commands, to be put in front of PATH."""

  def __init__(self, folder):
    self.folder = folder
    self.path = folder / 'bin'
    self.path.mkdir(parents=True)

  def add(self, name, body=''):
    """Adds a command: bash, after its call has been recorded."""
    path = self.path / name
    path.write_text(HEAD % (self.folder, name) + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)

  def answers(self, name, lines):
    """Sets what `answer NAME` of a command's body gives, call by call."""
    (self.folder / name).write_text(''.join(f'{line}\n' for line in lines))

  def calls(self, *words):
    """Returns the calls so far that have all of the words, as lists of arguments."""
    path = self.folder / 'calls'
    text = path.read_text() if path.exists() else ''
    calls = [call.split('\x1f')[:-1] for call in text.split('\x1e')[:-1]]
    return [call for call in calls if set(words) <= set(call)]

  def run(self, script, *args, cwd, **env):
    """Runs a script of launch/ with these commands, and returns how it ended."""
    return subprocess.run(
      ['bash', f'launch/{script}', *args],
      cwd=cwd,
      env={**os.environ, 'PATH': f'{self.path}:{os.environ["PATH"]}', **env},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=60,
    )


def copy_launch(folder, **files):
  """Makes a repository of launch/ and a few files, committed, and returns its path."""
  shutil.copytree(ROOT / 'launch', folder / 'launch')
  for name, text in files.items():
    (folder / name.replace('_', '.')).write_text(text)
  subprocess.run(['git', 'init', '-q'], cwd=folder, check=True)
  commit(folder)
  return folder


def commit(folder):
  git = ['git', '-c', 'user.name=test', '-c', 'user.email=test@example.org']
  subprocess.run([*git, 'add', '-A'], cwd=folder, check=True)
  command = [*git, '-c', 'commit.gpgsign=false', 'commit', '-qm', 'test']
  subprocess.run(command, cwd=folder, check=True)


def commands(output):
  """Returns the lines of a dry run that are commands."""
  return [line[2:] for line in output.splitlines() if line.startswith('+ ')]
