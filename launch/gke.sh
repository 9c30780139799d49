#!/usr/bin/env bash
# Trains on a TPU slice of GKE, as gke_jobset.yaml says, which it fills in:
#   bash launch/gke.sh --name=b7 --image=us-docker.pkg.dev/PROJECT/REPO/advprop_jax:1 \
#       --build --accelerator=tpu-v6e-slice --topology=4x4 \
#       --workdir=gs://bucket/b7 -- --config=configs/effnet_b7_advprop.py
# What follows `--` goes to main.py. Preempted, the pods start again and go on; status 1, a
# mistake, ends the JobSet. Repeated, the command changes nothing. For a second start:
# kubectl delete jobset NAME, then the same command; it goes on from the last checkpoint.
#   --build                    builds the image of this folder first, and pushes it
#   --chips_per_host=4         as the node pool's machine type has them
#   --service_account=default  of Kubernetes, for the workdir
#   --dry_run                  prints the commands with the YAML and runs none
# Then: kubectl get jobset NAME; kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

name='' image='' accelerator='' topology='' workdir='' build='' dry_run=''
chips_per_host=4 service_account=default
parse_flags "name image accelerator topology workdir chips_per_host service_account" \
  'build dry_run' "$@"
need name image accelerator topology workdir
check_name
check_workdir
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  fail "--topology is '$topology'; allowed: 2x4, 4x4, 2x2x4 and the like"
[[ $chips_per_host =~ ^[1-9][0-9]*$ ]] ||
  fail "--chips_per_host is '$chips_per_host'; allowed: whole numbers from 1 on"
num_chips=$((${topology//x/*}))
((num_chips % chips_per_host == 0)) ||
  fail "--chips_per_host is $chips_per_host, --topology=$topology has $num_chips chips; \
allowed: a divisor of $num_chips"

# JSON is YAML: quoted by Python, nothing in a value can change the structure.
manifest=$(python3 - launch/gke_jobset.yaml "$name" "$image" "$accelerator" "$topology" \
  "$((num_chips / chips_per_host))" "$chips_per_host" "$service_account" \
  "${main_args[@]}" <<'EOF'
import json, string, sys
path, name, image, accelerator, topology, num_hosts, chips, account, *args = sys.argv[1:]
values = dict(name=name, image=image, accelerator=accelerator, topology=topology)
values.update(num_hosts=int(num_hosts), chips_per_host=int(chips), service_account=account)
values['args'] = [x.replace('$(', '$$(') for x in args]  # Kubernetes would expand $(X).
lines = [x for x in open(path) if not x.lstrip().startswith('#')]
values = {key: json.dumps(value) for key, value in values.items()}
print(string.Template(''.join(lines)).substitute(values), end='')
EOF
)

if [[ -n $build ]]; then
  run docker build "--tag=$image" --file=launch/Dockerfile .
  run docker push "$image"
fi
if [[ -n $dry_run ]]; then
  printf "+ kubectl apply --filename=- <<'EOF'\n%s\nEOF\n" "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
fi
