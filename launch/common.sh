# What the scripts for other machines share; sourced by them.
# Theirs are `name`, `workdir`, `gcloud` and `dry_run`:
# shellcheck disable=SC2154

fail() {
  echo "error: $1" >&2
  exit 1
}

# Sets the variables that the flags are named after, and main_args to what follows `--`.
#   parse_flags 'flags with a value' 'flags without one' "$@"
parse_flags() {
  local with_value=" $1 " without=" $2 " flag
  local allowed="--${1// /=..., --}=..., --${2// /, --}, -- and arguments of main.py"
  shift 2
  main_args=()
  while (($#)); do
    flag=${1#--}
    flag=${flag%%=*}
    if [[ $1 == -- ]]; then
      shift
      main_args=("$@")
      return
    elif [[ $1 == --help ]]; then
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"  # The script's own header.
      exit 0
    elif [[ $1 == --*=?* && $flag != *' '* && $with_value == *" $flag "* ]]; then
      printf -v "$flag" %s "${1#*=}"
    elif [[ $1 == "--$flag" && $flag != *' '* && $without == *" $flag "* ]]; then
      printf -v "$flag" %s true
    else
      fail "unknown or incomplete argument '$1'; allowed: $allowed"
    fi
    shift
  done
}

# Ends the script unless each of these flags has a value.
need() {
  local flag
  for flag; do
    [[ -n ${!flag} ]] || fail "--$flag is missing; needed:$(printf -- ' --%s=...' "$@")"
  done
}

check_name() {
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name is '$name'; allowed: \
up to 40 small letters, digits and '-', a letter first and no '-' at the end"
}

# Several hosts write one workdir, and a machine that is preempted loses its disk.
# Puts the workdir in front of main_args, and `code` below it.
check_workdir() {
  local arg
  [[ $workdir == gs://?* ]] || fail "--workdir is '$workdir'; allowed: gs://BUCKET/FOLDER, \
which all hosts see and which outlives them"
  workdir=${workdir%/}
  # `${x[@]+...}`: bash before 4.4 takes an empty array for an unset one.
  for arg in ${main_args[@]+"${main_args[@]}"}; do
    [[ $arg != --workdir* && $arg != -workdir* ]] || fail "'$arg' after --; allowed: --workdir=... before it"
  done
  main_args=("--workdir=$workdir" ${main_args[@]+"${main_args[@]}"})
}

# Prints a command as it could be typed, and runs it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  echo
  [[ -n $dry_run ]] || "$@"
}

# Sets `commit` to the one that is checked out, without changes.
need_commit() {
  local changes
  commit=$(git rev-parse HEAD 2>/dev/null) ||
    fail "$PWD is not a git checkout; allowed: a clone, whose commit is what runs"
  changes=$(git status --porcelain)
  [[ -z $changes ]] || fail "not committed: '${changes%%$'\n'*}'; allowed: a checkout \
without changes (git commit, git stash), since the commit is what runs"
}

# Uploads the commit that is checked out, unless it is there; sets `code` to its address.
# The machines need no access to the repository, and a restart gets the same code.
upload_code() {
  local archive
  need_commit
  archive=$(git rev-parse --git-path launch.tar.gz)
  code=$workdir/code/$commit.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  run "${gcloud[@]}" storage cp --no-clobber "$archive" "$code" || exit 255
}
