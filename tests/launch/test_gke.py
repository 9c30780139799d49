"""Tests the JobSet of GKE against Kubernetes' own definitions, and what is applied."""

import json
import pathlib

import jsonschema
import pytest
import stand_ins
import yaml

HERE = pathlib.Path(__file__).parent
FLAGS = ['--name=b7', '--image=example.org/image:1', '--accelerator=tpu-v6e-slice']
FLAGS += ['--topology=4x8', '--workdir=gs://bucket/b7', '--service_account=trainer']


@pytest.fixture
def commands(tmp_path):
  commands = stand_ins.StandIns(tmp_path)
  commands.add('kubectl', 'cat >>"$here/applied"')
  commands.add('docker')
  return commands


def apply(commands, *args):
  result = commands.run('gke.sh', *FLAGS, *args, cwd=stand_ins.ROOT)
  assert result.returncode == 0, result.stderr
  return yaml.safe_load((commands.folder / 'applied').read_text())


def test_jobset_is_valid_and_restarts_all_but_mistakes(commands):
  given = ['--config=a b', '"it\'s" $name', '$(HOME)', 'two\nlines', '- x: {y}', 'ü']
  manifest = apply(commands, '--', *given)

  schema = json.loads((HERE / 'golden_jobset.json').read_text())
  jsonschema.validate(manifest, schema)
  assert commands.calls() == [['kubectl', 'apply', '--filename=-']]
  assert manifest['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  (rule,) = manifest['spec']['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  (replicated,) = manifest['spec']['replicatedJobs']
  job = replicated['template']['spec']
  assert job['completions'] == job['parallelism'] == 8
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never'  # Which podFailurePolicy requires.
  assert pod['terminationGracePeriodSeconds'] >= 300
  (container,) = pod['containers']
  (rule,) = job['podFailurePolicy']['rules']
  assert rule == {
    'action': 'FailJob',
    'onExitCodes': {
      'containerName': container['name'],
      'operator': 'In',
      'values': [1],
    },
  }
  given[2] = '$$(HOME)'  # Kubernetes makes `$(HOME)` of it.
  assert container['imagePullPolicy'] == 'Always'
  assert container['args'] == ['--workdir=gs://bucket/b7', *given]
  chips = {'google.com/tpu': 4}
  assert container['resources'] == {'limits': chips, 'requests': chips}
  assert {x['containerPort'] for x in container['ports']} == {8471, 8482}
  # Keys that no schema knows. Source: the documentation of TPU slices on GKE, and of
  # exclusive placement by JobSet.
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v6e-slice',
    'cloud.google.com/gke-tpu-topology': '4x8',
  }
  placement = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
  assert manifest['metadata']['annotations'] == {
    placement: 'cloud.google.com/gke-nodepool'
  }
  network = {'enableDNSHostnames': True, 'subdomain': 'b7'}
  assert manifest['spec']['network'] == network
  assert pod['serviceAccountName'] == 'trainer'


@pytest.mark.parametrize(
  'path, value',
  [
    ('metadata name', 7),
    ('spec backoffLimit', 0),
    ('spec failurePolicy rules 0 action', 'FailJobset'),
    ('spec replicatedJobs 0 template spec completionMode', 'indexed'),
    ('spec replicatedJobs 0 template spec completions', '8'),
    ('spec replicatedJobs 0 template spec template spec volumes', []),
    ('spec failurePolicy rules 0 onExitCodes', [1]),
  ],
)
def test_the_schema_finds_mistakes(commands, path, value):
  manifest = apply(commands)
  *parents, key = path.split()
  inner = manifest
  for parent in parents:
    inner = inner[int(parent) if parent.isdigit() else parent]
  inner[key] = value
  schema = json.loads((HERE / 'golden_jobset.json').read_text())
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(manifest, schema)


def test_on_spot_machines(commands):
  manifest = apply(commands, '--spot')
  schema = json.loads((HERE / 'golden_jobset.json').read_text())
  jsonschema.validate(manifest, schema)
  (replicated,) = manifest['spec']['replicatedJobs']
  pod = replicated['template']['spec']['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert pod['tolerations'][0]['key'] == 'cloud.google.com/gke-spot'


@pytest.mark.parametrize('image', ['example.org:80/image:1', 'example.org:80/image'])
def test_the_image_is_built_and_pushed_first(tmp_path, commands, image):
  """The JobSet names it by its digest, of the repository that it was pushed to."""
  repository = stand_ins.copy_launch(tmp_path / 'repository')
  digest = 'example.org:80/image@sha256:12'
  commands.add(
    'docker', f'[[ $1 != inspect ]] || printf "other.org/image@sha256:3\n{digest}\n"'
  )
  args = [f'--image={image}', '--build']
  result = commands.run('gke.sh', *FLAGS, *args, cwd=repository)
  assert result.returncode == 0, result.stderr
  build = ['--platform=linux/amd64', f'--tag={image}', '--file=launch/Dockerfile', '.']
  format_ = '--format={{range .RepoDigests}}{{println .}}{{end}}'
  assert commands.calls() == [
    ['docker', 'build', *build],
    ['docker', 'push', image],
    ['docker', 'inspect', format_, image],
    ['kubectl', 'apply', '--filename=-'],
  ]
  (commands.folder / 'calls').unlink()
  assert f'image: "{digest}"' in (commands.folder / 'applied').read_text()
  (repository / 'new.py').write_text('')
  result = commands.run('gke.sh', *FLAGS, *args, cwd=repository)
  assert result.returncode == 1 and commands.calls() == []
  assert "not committed: '?? new.py'" in result.stderr


def test_the_same_command_applies_the_same(commands):
  first = apply(commands)
  (commands.folder / 'applied').unlink()
  assert apply(commands) == first


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--topology=4', "--topology is '4'; allowed: 2x4, 4x4, 2x2x4 and the like"),
    (
      '--chips_per_host=5',
      '--chips_per_host is 5, --topology=4x8 has 32 chips; allowed: a divisor of 32',
    ),
    ('--chips_per_host=0', "--chips_per_host is '0'; allowed: whole numbers from 1 on"),
    ('--workdir=/data', "--workdir is '/data'; allowed: gs://BUCKET/FOLDER"),
    ('--name=-', "--name is '-'; allowed: up to 40 small letters"),
  ],
)
def test_a_mistake_is_one_line_and_applies_nothing(commands, flag, message):
  result = commands.run('gke.sh', *FLAGS, flag, cwd=stand_ins.ROOT)
  assert result.returncode == 1 and commands.calls() == []
  assert message in result.stderr and len(result.stderr.splitlines()) == 1
