#!/usr/bin/env bash
# Waits for a TPU in Google's queue, trains on it, and goes on after each preemption:
#   bash launch/tpu_queued.sh --name=b7 --zone=us-east5-b --spot \
#       --accelerator_type=v6e-16 --runtime_version=v2-alpha-tpuv6e \
#       --workdir=gs://bucket/b7 -- --config=configs/effnet_b7_advprop.py
# What follows `--` goes to main.py. tpu_vm.sh says how the code gets there and what is
# needed beforehand. The machines install the packages as they start (tpu_worker.sh).
# It stops when the run is done (0), or at a mistake that a retry does not cure (1), in the
# run or in the request (an unknown accelerator, say). A TPU that was preempted is deleted
# and asked for anew; on one that is there the run is started again. After Ctrl-C, or on
# another computer, the same command goes on.
#   --delete=done|always|never  whether the TPU is deleted at the end (done: after status 0)
#   --max_failures=10           failures in a row, each after less than 10 minutes and without
#                               a preemption; to be stopped by another run counts as one
#   --poll_secs=30              between looks at the queue; longer after failures
#   --create_flag=--network=x   for `gcloud ... queued-resources create`
#   --project=...               if it is not gcloud's default
#   --dry_run                   prints the commands and runs none
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

name='' zone='' workdir='' project='' accelerator_type='' runtime_version='' spot=''
delete='done' max_failures=10 poll_secs=30 create_flag='' dry_run=''
parse_flags "name zone workdir project accelerator_type runtime_version delete \
max_failures poll_secs create_flag" 'spot dry_run' "$@"
need name zone workdir accelerator_type runtime_version
check_name
args=(${main_args[@]+"${main_args[@]}"})  # As they were given.
check_workdir
[[ $delete =~ ^(done|always|never)$ ]] ||
  fail "--delete is '$delete'; allowed: done, always, never"
[[ $max_failures =~ ^[1-9][0-9]*$ ]] ||
  fail "--max_failures is '$max_failures'; allowed: whole numbers from 1 on"
[[ $poll_secs =~ ^(0|[1-9][0-9]*)$ ]] ||
  fail "--poll_secs is '$poll_secs'; allowed: whole numbers"
gcloud=(gcloud --quiet)
[[ -z $project ]] || gcloud+=("--project=$project")
queue=("${gcloud[@]}" compute tpus queued-resources)
describe=("${queue[@]}" describe "$name" "--zone=$zone" '--format=value(state.state)')
remove=("${queue[@]}" delete "$name" "--zone=$zone" --force)

trap 'echo "left as it is: TPU $name; delete it: ${remove[*]}" >&2; exit 130' INT

create() {
  local command=("${queue[@]}" create "$name" "--node-id=$name" "--zone=$zone"
    "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version"
    --metadata-from-file=startup-script=launch/tpu_worker.sh
    "--metadata=advprop-code=$code")
  [[ -z $spot ]] || command+=(--spot)
  [[ -z $create_flag ]] || command+=("$create_flag")
  run "${command[@]}"
}

ask() {  # Asks for a TPU, unless that is a mistake.
  local said
  if said=$(create 2>&1); then
    echo "$said"
    return
  fi
  echo "$said" >&2
  case $said in
    *INVALID_ARGUMENT* | *PERMISSION_DENIED*) finish 1 'a mistake in the request: not repeated' ;;
  esac
  failed 255 'no TPU could be asked for'
}

train() {
  local command=(bash launch/tpu_vm.sh "--name=$name" "--zone=$zone"
    "--workdir=$workdir" "--code=$code")
  [[ -z $project ]] || command+=("--project=$project")
  [[ -z $dry_run ]] || command+=(--dry_run)
  "${command[@]}" -- ${args[@]+"${args[@]}"}
}

finish() {  # finish STATUS MESSAGE
  echo "$2" >&2
  if [[ $delete == always || ($delete == "done" && $1 == 0) ]]; then
    run "${remove[@]}" || true  # The run's status counts.
  elif [[ -z $dry_run ]]; then
    echo "TPU $name stays and costs; delete it: ${remove[*]}" >&2
  fi
  exit "$1"
}

failures=0
failed() {  # failed STATUS MESSAGE
  failures=$((failures + 1))
  ((failures < max_failures)) || finish "$1" "$2; gave up after $failures failures in a row"
  echo "$2; failure $failures of at most $max_failures in a row" >&2
  sleep $((poll_secs * failures))
}

upload_code
if [[ -n $dry_run ]]; then
  run "${describe[@]}"
  create
  train
  finish 0 'then from the look at the queue on, until main.py ends with status 0 or 1'
fi

shown=''
while :; do
  # No state: there is none, or gcloud cannot say; then `create` fails and says why.
  state=$("${describe[@]}" 2>/dev/null) || state=''
  [[ $state == "$shown" ]] || echo "TPU $name: ${state:-not there}" >&2
  shown=$state
  case $state in
    '') ask ;;
    ACTIVE)
      begin=$SECONDS status=0
      train || status=$?
      case $status in
        0) finish 0 "done: $workdir" ;;
        1) finish 1 'status 1 is a mistake that a retry does not cure: not started again' ;;
      esac
      # 10 minutes are more than start and compilation take: the run got on.
      ((SECONDS - begin < 600)) || failures=0
      failed "$status" "status $status"  # If preempted, soon to be seen in the state.
      ;;
    SUSPENDED)  # What preemption ends in: Google does not give this one back.
      if run "${remove[@]}"; then
        failures=0
      else
        failed 255 'the preempted TPU could not be deleted'
      fi
      ;;
    FAILED)
      run "${remove[@]}" || true
      failed 255 'the request for a TPU failed'
      ;;
    *) sleep "$poll_secs" ;;  # In the queue, in preparation, or about to go.
  esac
done
