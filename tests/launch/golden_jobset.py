"""Writes golden_jobset.json: what `launch/gke_jobset.yaml` may contain, by others.

  pip install kubeflow-trainer-api==2.3.0 pyyaml
  python tests/launch/golden_jobset.py

The package's classes are generated from the APIs of Kubernetes and JobSet. Of its many
definitions those that the file uses are kept, with all of their fields: a field whose
definition is not among them is not allowed, until this is run again.
"""

import json
import pathlib
import subprocess

import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

HERE = pathlib.Path(__file__).parent
COMMAND = [
  *('bash', HERE.parent.parent / 'launch' / 'gke.sh', '--dry_run', '--name=run'),
  *('--image=image', '--accelerator=tpu-v6e-slice', '--topology=4x4'),
  *('--workdir=gs://bucket/run', '--spot'),
]
ROOT = 'JobsetV1alpha2JobSet'
# What the definitions call a string. Source: the API references of Kubernetes
# (https://kubernetes.io/docs/reference/kubernetes-api/) and of JobSet
# (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/).
ENUMS = {
  ('IoK8sApiBatchV1JobSpec', 'completionMode'): ('Indexed', 'NonIndexed'),
  ('IoK8sApiBatchV1PodFailurePolicyOnExitCodesRequirement', 'operator'): (
    *('In', 'NotIn'),
  ),
  ('IoK8sApiBatchV1PodFailurePolicyRule', 'action'): (
    *('Count', 'FailIndex', 'FailJob', 'Ignore'),
  ),
  ('IoK8sApiCoreV1Container', 'imagePullPolicy'): ('Always', 'IfNotPresent', 'Never'),
  ('IoK8sApiCoreV1PodSpec', 'restartPolicy'): ('Always', 'Never', 'OnFailure'),
  ('IoK8sApiCoreV1Toleration', 'operator'): ('Equal', 'Exists'),
  ('IoK8sApiCoreV1Toleration', 'effect'): (
    *('NoExecute', 'NoSchedule', 'PreferNoSchedule'),
  ),
  ('JobsetV1alpha2FailurePolicyRule', 'action'): (
    *('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'),
  ),
}


def simplify(schema):
  """Returns a schema without prose, defaults and null, closed to unknown fields."""
  properties = schema.get('properties', {})
  if 'actual_instance' in properties:  # How the package writes "number or string".
    return simplify(properties['actual_instance'])
  if 'anyOf' in schema:
    options = [x for x in schema['anyOf'] if x != {'type': 'null'}]
    if len(options) == 1:
      return simplify(options[0])
    return {'anyOf': [simplify(x) for x in options]}
  result = {k: v for k, v in schema.items() if k in ('type', '$ref', 'required')}
  if 'items' in schema:
    result['items'] = simplify(schema['items'])
  if isinstance(values := schema.get('additionalProperties'), dict):
    result['additionalProperties'] = simplify(values)
  if properties:
    result['properties'] = {k: simplify(v) for k, v in properties.items()}
    result['additionalProperties'] = False
  return result


def names(schema):
  """Yields the definitions that a field's schema refers to."""
  if '$ref' in schema:
    yield schema['$ref'].rpartition('/')[2]
  for key in ('items', 'additionalProperties'):
    if isinstance(schema.get(key), dict):
      yield from names(schema[key])
  for option in schema.get('anyOf', ()):
    yield from names(option)


def used(name, values, definitions):
  """Returns the definitions that objects of this one use, itself among them."""
  found = {name}
  for field, schema in definitions[name].get('properties', {}).items():
    inner = [value[field] for value in values if field in value]
    if inner:
      for other in names(schema):
        flat = [y for x in inner for y in (x if isinstance(x, list) else [x])]
        if 'additionalProperties' in schema:
          flat = [y for x in flat for y in x.values()]
        flat = [x for x in flat if isinstance(x, dict)]
        found |= used(other, flat, definitions)
  return found


def main():
  output = subprocess.run(COMMAND, check=True, capture_output=True, text=True).stdout
  manifest = yaml.safe_load(output.split('EOF')[1].lstrip("'"))
  schema = JobsetV1alpha2JobSet.model_json_schema()
  definitions = {k: simplify(v) for k, v in schema.pop('$defs').items()}
  definitions[ROOT] = simplify(schema)
  for (name, field), values in ENUMS.items():
    definitions[name]['properties'][field] = {'enum': list(values)}
  kept = used(ROOT, [manifest], definitions)
  result = {}
  for name in sorted(kept):
    result[name] = definitions[name]
    fields = definitions[name].get('properties', {})
    for field in fields:
      if not set(names(fields[field])) <= kept:
        fields[field] = False
  result = {'$ref': f'#/$defs/{ROOT}', '$defs': result}
  (HERE / 'golden_jobset.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
