#!/usr/bin/env bash
# What each worker of a TPU does; tpu_vm.sh and tpu_queued.sh bring it there.
#   bash tpu_worker.sh run CODE --workdir=... [more arguments of main.py]
#   bash tpu_worker.sh stop --workdir=...
#   bash tpu_worker.sh install CODE    # as root; CODE is gs://.../COMMIT.tar.gz
#   bash tpu_worker.sh                 # at a machine's start: CODE is in its metadata
# A mistake has status 254, since gcloud's own failures have 1.
set -euo pipefail
dir=${ADVPROP_DIR:-/opt/advprop_jax}
export HOME=${HOME:-/root} PATH=$PATH:/snap/bin  # A startup script may lack both.

install_code() {
  exec 9>"$dir.lock"
  flock 9  # The startup script may be at it.
  if [[ $(cat "$dir/code.txt" 2>/dev/null) != "$1" ]]; then
    rm -rf "$dir.new"
    mkdir -p "$dir.new"
    gcloud storage cat "$1" | tar -xz -C "$dir.new"
    [[ ! -d $dir/.venv ]] || mv "$dir/.venv" "$dir.new"
    rm -rf "$dir"
    mv "$dir.new" "$dir"
    echo "$1" >"$dir/code.txt"
  fi
  cd "$dir"
  # Not the system's Python: Ubuntu 22.04, of many TPU runtimes, has 3.10.
  [[ -x $dir.uv/bin/uv ]] || python3 -m pip install --quiet --target="$dir.uv" uv
  export UV_PYTHON_INSTALL_DIR=$dir.python
  "$dir.uv/bin/uv" python install --quiet 3.13
  PYTHON=$("$dir.uv/bin/uv" python find --managed-python 3.13)
  source launch/setup.sh requirements.txt launch/tpu.txt
}

running() { pgrep -f "^$dir/\.venv/bin/python main\.py "; }

# A run that lost its connection still holds the TPU. It gets SIGTERM, as at a preemption: it
# saves its state, and the new run goes on from there.
stop_same_run() {
  local pid i
  for pid in $(running); do
    if ! grep -zqxF -e "$1" "/proc/$pid/cmdline"; then
      echo "error: this TPU is at work: $(tr '\0' ' ' <"/proc/$pid/cmdline"); allowed: to \
wait for its end, or the same --workdir" >&2
      exit 254
    fi
    sudo -n kill -TERM "$pid" || true  # It may just have ended.
  done
  for ((i = 0; i < 300; i++)); do
    running >/dev/null || return 0
    sleep 1
  done
  for pid in $(running); do sudo -n kill -KILL "$pid"; done
}

usage() {
  echo "error: unknown or incomplete arguments '$*'; allowed: run CODE --workdir=..., \
stop --workdir=..., install CODE, or none" >&2
  exit 254
}

case ${1:-startup} in
  startup)
    attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
    install_code "$(curl -sf -H 'Metadata-Flavor: Google' "$attributes/advprop-code")"
    ;;
  install)
    (($# == 2)) || usage "$@"
    install_code "$2"
    ;;
  stop)
    (($# == 2)) && [[ $2 == --workdir=?* ]] || usage "$@"
    stop_same_run "$2"
    ;;
  run)
    (($# > 2)) && [[ $3 == --workdir=?* ]] || usage "$@"
    code=$2
    shift 2
    stop_same_run "$1"
    sudo -n bash "$0" install "$code"
    cd "$dir"
    # Without a TPU, as when another program holds it, an error and not the CPU.
    export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu}
    status=0
    "$dir/.venv/bin/python" main.py "$@" || status=$?
    # gcloud's own failures have status 1 too: that of main.py travels as 254.
    exit $((status == 1 ? 254 : status))
    ;;
  *) usage "$@" ;;
esac
