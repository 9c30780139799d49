#!/usr/bin/env bash
# Trains on a TPU slice of GKE, as gke_jobset.yaml says, which it fills in:
#   bash launch/gke.sh --name=b7 --image=us-docker.pkg.dev/PROJECT/REPO/advprop_jax:1 \
#       --build --accelerator=tpu-v6e-slice --topology=4x4 \
#       --workdir=gs://bucket/b7 -- --config=configs/effnet_b7_advprop.py
# What follows `--` goes to main.py. Preempted, the pods start again and go on; status 1, a
# mistake, ends the JobSet. Repeated, the command changes nothing. For a second start:
# kubectl delete jobset NAME, then the same command; it goes on from the last checkpoint.
#   --build                    builds the image of the commit first, and pushes it; the
#                              JobSet gets its digest, since a tag may change
#   --spot                     on spot machines
#   --chips_per_host=4         as the node pool's machine type has them
#   --service_account=default  of Kubernetes, which may write to the workdir
#   --dry_run                  prints the commands with the YAML and runs none
# Then: kubectl get jobset NAME; kubectl logs --prefix -f \
#   --max-log-requests=1000 -l jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

name='' image='' accelerator='' topology='' workdir='' build='' spot='' dry_run=''
chips_per_host=4 service_account=default
parse_flags "name image accelerator topology workdir chips_per_host service_account" \
  'build spot dry_run' "$@"
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

if [[ -n $build ]]; then
  need_commit
  run docker build --platform=linux/amd64 "--tag=$image" --file=launch/Dockerfile .
  run docker push "$image"
  if [[ -z $dry_run ]]; then
    digests=$(docker inspect --format='{{range .RepoDigests}}{{println .}}{{end}}' "$image")
    repository=$image
    [[ ${image##*/} != *:* ]] || repository=${image%:*}
    image=$(grep -m 1 -F "$repository@" <<<"$digests") ||
      fail "no digest of $image after docker push; allowed: an image that can be pushed"
  fi
fi

# JSON is YAML: quoted by Python, nothing in a value can change the structure.
manifest=$(python3 - launch/gke_jobset.yaml "$name" "$image" "$accelerator" "$topology" \
  "$((num_chips / chips_per_host))" "$chips_per_host" "$service_account" \
  "${spot:-false}" "${main_args[@]}" <<'EOF'
import json, string, sys
path, name, image, accelerator, topology, num_hosts, chips, account, spot, *args = sys.argv[1:]
values = dict(name=name, image=image)
values.update(num_hosts=int(num_hosts), chips_per_host=int(chips), service_account=account)
SPOT = {'cloud.google.com/gke-spot': 'true'}
values['node_selector'] = {
  'cloud.google.com/gke-tpu-accelerator': accelerator,
  'cloud.google.com/gke-tpu-topology': topology,
  **(SPOT if spot == 'true' else {}),
}
values['tolerations'] = [
  {'key': key, 'operator': 'Equal', 'value': value, 'effect': 'NoSchedule'}
  for key, value in SPOT.items() if spot == 'true'
]
values['args'] = [x.replace('$(', '$$(') for x in args]  # Kubernetes would expand $(X).
lines = [x for x in open(path) if not x.lstrip().startswith('#')]
values = {key: json.dumps(value) for key, value in values.items()}
print(string.Template(''.join(lines)).substitute(values), end='')
EOF
)

if [[ -n $dry_run ]]; then
  printf "+ kubectl apply --filename=- <<'EOF'\n%s\nEOF\n" "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
fi
