#!/usr/bin/env bash
# Trains on all workers of a TPU VM that exists, and shows their output:
#   bash launch/tpu_vm.sh --name=my-tpu --zone=us-central2-b \
#       --workdir=gs://bucket/b7 -- --config=configs/effnet_b7_advprop.py
# What follows `--` goes to main.py. The commit that is checked out is what runs: it goes
# to WORKDIR/code, so a private repository needs no key on the TPU. The TPU's service
# account has to read and write the bucket. Repeated, the command goes on with the run; one
# that still runs there, left by a broken connection, is stopped first: it saves, and is
# killed if it has not ended after 300 s.
#   --project=...    if it is not gcloud's default
#   --code=gs://...  what an earlier call has uploaded, in the place of the commit
#   --stop           stops the run of this workdir on all workers, likewise
#   --dry_run        prints the commands and runs none
# Ctrl-C ends this script alone: the run goes on on the TPU.
# For a pod once: ssh-add ~/.ssh/google_compute_engine, which gcloud makes at its first ssh.
# With OS Login you need the role roles/compute.osAdminLogin, for sudo.
# Exit status: that of main.py (see README.md), or 255 if it could not be started.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
interrupted() {
  echo "the run on TPU $name goes on; to stop it: the same command with --stop" >&2
  exit 130
}

name='' zone='' workdir='' project='' code='' stop='' dry_run=''
parse_flags 'name zone workdir project code' 'stop dry_run' "$@"
need name zone workdir
check_name
check_workdir
gcloud=(gcloud --quiet)
[[ -z $project ]] || gcloud+=("--project=$project")

trap interrupted INT  # gcloud turns Ctrl-C into an ordinary failure.

[[ -n $code || -n $stop ]] || upload_code
where=("--zone=$zone" --worker=all)
# Of a VM that is gone no packet comes back: without these ssh waits for ever.
run "${gcloud[@]}" compute tpus tpu-vm scp launch/tpu_worker.sh "$name:tpu_worker.sh" \
  "${where[@]}" --scp-flag=-oConnectTimeout=30 || exit 255
work=(run "$code" "${main_args[@]}")
[[ -z $stop ]] || work=(stop "--workdir=$workdir")
command=$(printf '%q ' bash tpu_worker.sh "${work[@]}")
status=0
run "${gcloud[@]}" compute tpus tpu-vm ssh "$name" "${where[@]}" \
  --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 \
  "--command=${command% }" || status=$?

case $status in
  0) ;;
  1)  # Of gcloud, e.g. for a preempted VM, or of pip: main.py's comes as 254.
    echo "TPU $name could not be reached or set up (see above)" >&2
    exit 255
    ;;
  254) exit 1 ;;  # main.py has said why.
  *)
    echo "the run on $name ended with status $status; the same command goes on" >&2
    exit "$status"
    ;;
esac
