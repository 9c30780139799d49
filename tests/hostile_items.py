"""A table of what strangers may have put into a workdir, and of who reads it there."""

from hostile import (
  DEEP,
  EXAMPLES,
  HUGE,
  NEW,
  THINGS,
  add,
  archive,
  array,
  array_of,
  both,
  change,
  directory,
  link,
  objects,
  png_of,
  put,
  sealed,
  sums,
  without_sums,
)

# Name -> who reads it, see `test_hostile.READERS`, and what puts it there.
ITEMS = {}


def _add(readers, items):
  for name, plant in items.items():
    before, _ = ITEMS.get(name, ([], None))
    ITEMS[name] = ([*before, *readers.split()], plant)


def _things(readers, name, *things):
  _add(readers, {f'{name}: {x}': THINGS[x](name) for x in things})


def _changes(readers, name, *changes, also=lambda plant: plant):
  for x in changes:
    key = f'{name}: {".".join(map(str, x))[:50]!a}'
    _add(readers, {key: also(change(name, *x))})


# Of each kind one; the others are in the places where they fail otherwise.
_ANY = ('a directory', 'a pipe', 'a link to itself', 'no text', 'half deep', 'a pickle')

_things('evaluate', 'config.json', *_ANY, 'a link to nothing', 'a file', 'deep')
_things('evaluate', 'config.json', 'a list', 'not a number', 'many digits')
_changes('report', 'config.json', ('data', 3), ('eval', {'attack': 3}))
_things('report', 'config.json', 'a pipe', 'a list')
_things('train', 'config.json', 'a directory', 'a link to itself')
_changes(
  'evaluate',
  'config.json',
  ('seed', HUGE),
  ('num_epochs', float('nan')),
  ('data', []),
  ('model', 'resnet'),
  ('streams', [{'name': {}}]),
  ('phases', [{'__class__': 3}]),
  ('unknown', 1),
  ('__class__', 'os.system'),
  ('data', '__class__', {'__reduce__': ['os.system', 'ls']}),
  ('data', 'name', 'folder:\0'),
  ('data', 'name', 'folder:\ud800'),
  ('data', 'name', 'huggingface:mnist'),
  ('data', 'data_dir', '\0'),
  ('data', 'image_size', 10**12),
  ('model', 'mean', [HUGE, 0, 0]),
)

_things('report', 'results.jsonl', *_ANY)
_things('go_on', 'results.jsonl', 'a directory', 'a pipe', 'a link to a device')
_things('card', 'results.jsonl', 'a directory', 'a pipe', 'deep')
_add(
  'report card go_on',
  {
    f'results.jsonl: {str(x)[:40]}': add('results.jsonl', x)
    for x in (
      b'[' * DEEP,
      {'step': '7', 'device_hours': 1.0},
      {'step': HUGE, 'val/clean_top1': 0.5},
      {'step': 3, 'device_hours': 'text'},
    )
  },
)
_add(
  'report card',
  {
    f'results.jsonl: {str(x)[:40]}': add('results.jsonl', x)
    for x in (
      {'step': 1, 'val/clean_top1': {'a': [1]}, 'attack': 3},
      {'step': 1, 'val/clean_pgd_top1': 0.5, 'attack': 3},
    )
  },
)
_add(
  'page card',
  {
    'results.jsonl: surrogates': add('results.jsonl', {'step': 1, 'val/\ud800_top1': 1})
  },
)
_add(
  'report',
  {
    f'results.jsonl alone: {x}': both(
      directory('eval'), add('results.jsonl', {'step': 1, 'val/clean_top1': x})
    )
    for x in ('text', 1e300)
  },
)

_things('report', 'eval/val.json', *_ANY, 'a link to a device')
_things('evaluate', 'eval/val.json', 'a directory', 'a pipe')
_things('suite', 'eval/val.json', *_ANY)
_changes(
  'report suite',
  'eval/val.json',
  ('cells', {'all': {}}),
  ('cells', 'all', 'seconds', 'text'),
  ('cells', 'all', 'branches', 'clean', 'top1', HUGE),
)
_changes(
  'page',
  'eval/val.json',
  ('checkpoint', 'step', '../../x'),
  ('cells', 'all', 'input', 'image_size', 'text'),
  ('cells', 'all', 'branches', 'clean', 'confusion', [[1], ['a']]),
  ('cells', 'all', 'branches', 'clean', 'reliability', [1]),
  ('summary', 'clean', 'top1', 'text'),
  ('class_names', [[1]]),
  ('date', 7),
)
_things('examples', EXAMPLES, *_ANY, 'a link to a device', 'a file')
_good = {'identity': array('{}'), 'text': array('{}')}
_add(
  'examples',
  {
    f'{EXAMPLES}: pickled objects': objects,
    f'{EXAMPLES}: no zip': put(EXAMPLES, b'PK\3\4' + bytes(99)),
    f'{EXAMPLES}: no arrays': archive(identity=b'x', text=b'y'),
    f'{EXAMPLES}: says a terabyte': archive(**_good, position=array_of((10**12,))),
    f'{EXAMPLES}: a list in the text': archive(
      identity=array('{}'),
      text=array('[]'),
      position=array([0]),
      fallen_at=array([0]),
    ),
  },
)

_things('train load', 'checkpoints', 'a pipe', 'a link to itself')
_things('train', 'checkpoints/9', 'a directory', 'a pipe')
_add('train', {'checkpoints/9: the workdir': link('checkpoints/9', '..')})
_add(
  'integrity train',
  {
    f'checkpoints/{x[:30]}': directory(f'checkpoints/{x}')
    for x in ('²', '٣', '007', '9' * 23, '-5')
  },
)
for _file in ('_CHECKPOINT_METADATA', 'model/_METADATA', 'config/metadata'):
  for _x in ('a pipe', 'a link to a device', 'a pickle'):
    _plant = THINGS[_x](f'{NEW}/{_file}')
    _add('load', {f'{NEW}/{_file}: {_x}, without sums': without_sums(_plant)})
  for _x in ('deep', 'a list'):
    _plant = THINGS[_x](f'{NEW}/{_file}')
    _add('load', {f'{NEW}/{_file}: {_x}, sealed': sealed(_plant)})
for _x in ('no text', 'half deep', 'a text'):
  _add('train', {f'{NEW}/metrics: {_x}': sealed(THINGS[_x](f'{NEW}/metrics/metrics'))})
  _add('train', {f'{NEW}/data: {_x}': sealed(THINGS[_x](f'{NEW}/data/metadata'))})
for _x in ('text', HUGE):
  _plant = put(f'{NEW}/metrics/metrics', {'val/clean_top1': _x})
  _add('best train', {f'{NEW}/metrics: {str(_x)[:20]}': sealed(_plant)})
_changes(
  'load',
  f'{NEW}/config/metadata',
  ('data', 3),
  ('model', None),
  ('model', 'mean', 'text'),
  ('data', 'image_size', 'text'),
  ('data', 'image_size', 10**12),
  ('data', 'class_names', 5),
  also=sealed,
)
_changes('train', f'{NEW}/config/metadata', ('data', 'batch_size', 'text'), also=sealed)
_changes(
  'train',
  f'{NEW}/data/metadata',
  ('spent', {'train': HUGE}),
  ('since', [HUGE, 0]),
  also=sealed,
)
_add('load', {f'{NEW}: a link to the root': without_sums(link(f'{NEW}/x', '/'))})
_things('integrity', f'{NEW}/SHA256SUMS', *_ANY)
_add(
  'integrity',
  {
    f'{NEW}/SHA256SUMS: {x[64:]!r:.40}': sums(x)
    for x in (
      b'0' * 64 + b'  ../../config.json',
      b'0' * 64 + b'  /dev/zero',
      b'0' * 64 + b'  a/\0b',
      b'0' * 64 + b'  \xff',
      b'0' * 64 + b'  ' + b'x' * 2**26,
    )
  },
)

_phases = 'phases report integrity'
for _name in ('phase_0', 'phase_²'):
  _things(_phases, _name, 'a file', 'a pipe', 'a link to itself')
for _name in ('phase_²', 'phase_٣', 'phase_007', 'phase_x'):
  for _file in ('config.json', 'results.jsonl'):
    _add(_phases, {f'{_name}/{_file}': put(f'{_name}/{_file}', '{}')})

_things('go_on', 'tensorboard', 'a file')
_things('go_on', 'pictures', 'a pipe')
_things('evaluate', 'eval', 'a file', 'a pipe')
_things('go_on', 'results.jsonl.new', 'a directory')
_things('train', 'config.json.new', 'a directory')
_things('page', 'pictures/x_step_9.png', 'a directory', 'a pipe')
_bomb = png_of(60_000, 60_000) + bytes(2**21)
_add('page', {'pictures: inflates': put('pictures/x_step_9.png', _bomb)})
_things('card', 'origin.json', *_ANY, 'a list')
_add(
  'train',
  {
    'damaged: a file': both(put('damaged'), put(f'{NEW}/config/metadata')),
    'a pickle beside': THINGS['a pickle']('state.pkl'),
    'a pickle inside': THINGS['a pickle'](f'{NEW}/model/state.pkl'),
  },
)
