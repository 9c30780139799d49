# Makes .venv hold the pinned packages; sourced from the repository root:
#   source launch/setup.sh requirements.txt [requirements-test.txt]
# PYTHON=/path/to/python in the environment chooses the interpreter.

describe() {  # "3.12.1", "3.12.1 without venv ...", or "" if the command does not run.
  "$1" -c 'import sys; v = ".".join(map(str, sys.version_info[:3]))
try: import ensurepip, venv
except ImportError: v += " without venv (Debian, Ubuntu: apt install python3-venv)"
print(v)' 2>/dev/null || true
}
find_python() {  # Sets python and version, or ends the script with one line.
  local found='' names=(python3 python3.13 python3.12 python3.11 python)
  [[ -z ${PYTHON:-} ]] || names=("$PYTHON")
  for python in "${names[@]}"; do
    version=$(describe "$python")  # Tried: pyenv's commands may exist and not run.
    # Not 3.14: TensorFlow 2.21 has no wheels for it. Raise this with the lock.
    if [[ $version =~ ^3\.1[123]\.[0-9]+$ ]]; then return; fi
    found+=", $python: ${version:-does not run}"
  done
  echo "Needs Python 3.11-3.13 (PYTHON=... names one); tried ${found#, }" >&2 && exit 1
}

# The stamp says what is installed. It is removed first and written last: after an
# interrupted installation there is none, and the next call begins afresh.
stamp=.venv/installed.txt
wanted() { echo "# Python $version" && for f; do cat "$f" && echo "# $f"; done; }
ready() { [[ -x .venv/bin/python && $(cat $stamp 2>/dev/null) == "$(wanted "$@")"* ]]; }
install() {
  echo "Installing $* into .venv (once; up to some minutes and 2.5 GB) ..." >&2
  rm -f $stamp
  if (($# == 1)); then "$python" -m venv --clear .venv; fi  # Nothing of an old one.
  .venv/bin/python -m pip install -qq "${@/#/--requirement=}"  # Shows errors only.
  wanted "$@" >$stamp
}
find_version() { version=$(describe "${PYTHON:-.venv/bin/python}"); }
find_version
if ! ready "$@"; then
  exec 8<.  # Locked: two scripts may be started at once in a new checkout.
  if command -v flock >/dev/null && ! flock --nonblock 8; then  # macOS has none.
    echo 'Waiting for another script, which installs into .venv ...' >&2
    flock 8 || true
  fi
  find_version
  if ! ready requirements.txt; then
    find_python
    install requirements.txt
  fi
  if ! ready "$@"; then install "$@"; fi
  exec 8<&-
fi
