"""Tests wrong command lines: each is one line, and nothing is written.

All that are known stand in one table. What cannot be typed, streams, stands in
`test_train.py`.
"""

import json
import os
import pathlib
import select
import subprocess
import sys

import pytest

from advprop_jax import command_line

ROOT = pathlib.Path(__file__).parent.parent
# Imports once what main.py imports, and forks for each line. The end is at once: the
# libraries would take a second for it.
RUN_MAIN = """
import json, os, sys
import main
for line in sys.stdin:
  arguments, stderr = json.loads(line)
  if not (child := os.fork()):
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ['main.py', *arguments]
    try:
      main.app.run(main.main, flags_parser=main.parse_flags)
    except SystemExit as e:  # As Python ends a program: a text is a failure.
      if isinstance(e.code, str):
        print(e.code, file=sys.stderr, flush=True)
      os._exit(e.code if isinstance(e.code, int) else e.code is not None)
    except BaseException:
      sys.excepthook(*sys.exc_info())
      os._exit(70)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# DIR is a folder with some odd files, DATA the one with the digits. Dots stand for
# anything. Where no config is named, it is a small one.
WRONG = [
  # Flags.
  ('--mode=dance', 'flag --mode=dance: value should be one of <train|evaluate>'),
  (
    '--wrokdir=x',
    'unknown flag --wrokdir; Did you mean: workdir ... and --config.key=value',
  ),
  (
    '--wrok-dir=x',
    'unknown flag --wrok-dir; Did you mean: workdir ... and --config.key=value',
  ),
  (
    '--data.batch_size=4',
    'unknown flag --data.batch_size, which is part of ... --config.data.batch_size',
  ),
  ('stray', "unknown arguments ['stray']; allowed: those of --help"),
  (
    '--config=configs/digits_advprop.py -- stray',
    "unknown arguments ['stray']; allowed: those of --help",
  ),
  ('--multi_host=maybe', "--multi_host is 'maybe'; allowed: True or False"),
  (
    '--multi_host',
    '--multi_host cannot join other hosts ... pod, GKE, under Slurm or Open MPI',
  ),
  (
    '--checkpoint=best',
    '--checkpoint=best is for --mode=evaluate; ... allowed: one of the two',
  ),
  ('--checkpoint', 'Missing value for flag --checkpoint'),
  ('--suites=val', '--suites=val is for --mode=evaluate; ... allowed: one of the two'),
  ('--config.profile_steps=-1', 'profile_steps is -1; allowed: 0 or more, whole'),
  ('--mode', 'Missing value for flag --mode'),
  (
    '--epsilon=2',
    'unknown flag --epsilon, which is part of the ... config.optim.optimizer.epsilon',
  ),
  (
    '--num_epochs=2',
    'unknown flag --num_epochs, which is part of ... allowed: --config.num_epochs',
  ),
  ('--lr=0.1', 'unknown flag --lr; allowed: those of --help, and --config.key=value'),
  (
    '--batch_size=8',
    'unknown flag --batch_size, which is part of ... --config.data.batch_size',
  ),
  (
    '--learning_rate=0.1',
    'unknown flag --learning_rate, which is part ... g.optim.schedule.learning_rate',
  ),
  (
    '--name=x',
    'unknown flag --name, which is part of the ... --config.optim.schedule.name',
  ),
  # The file of the config.
  (
    '--config=configs/no_such.py',
    '--config cannot be loaded: [Errno 2] No such ... or the config.json of a run',
  ),
  (
    '--config=configs/digits_advprop.py:smok',
    "unknown config argument 'smok'; did you mean 'smoke'? ... smoke",
  ),
  (
    '--config=configs/effnet_vanilla.py',
    'the config needs one size, but was given ... b6, b7, b8, as in file.py:b0',
  ),
  (
    '--config=configs/effnet_vanilla.py:b9',
    "unknown config argument 'b9'; allowed: b0, ... b7, b8, randaugment, smoke",
  ),
  (
    '--config=DIR/config.json',
    'there is no DIR/config.json; allowed: that of ... --workdir that was trained in',
  ),
  (
    '--config=DIR',
    '--config cannot be loaded: [Errno 21] Is a ... or the config.json of a run',
  ),
  (
    '--config=',
    '--config cannot be loaded: Path to config ... or the config.json of a run',
  ),
  (
    '--config=README.md',
    '--config cannot be loaded: unterminated ... or the config.json of a run',
  ),
  (
    '--config=configs/default.py:x',
    '--config cannot be loaded: TypeError: ... or the config.json of a run',
  ),
  (
    '--config=configs/arguments.py',
    "--config cannot be loaded: module ... has no attribute 'get_config'; allowed: ",
  ),
  (
    '--config=DIR/returns_nothing.py',
    '--config cannot be loaded: get_config() returns None ... allowed: a file of',
  ),
  (
    '--config=DIR/looks_up.py',
    "--config cannot be loaded: no key 'foo'; allowed: a file of",
  ),
  (
    '--config=DIR/imports.py',
    "--config cannot be loaded: No module named 'no_such_module'; allowed: a file of",
  ),
  (
    '--config=DIR/section.json',
    'data of the config.json is 5; allowed: as a run writes it',
  ),
  (
    '--config=DIR/streams.json',
    "streams of the config.json is {'a': 1}; allowed: as a run writes it",
  ),
  (
    '--config=DIR/broken.json',
    'DIR/broken.json is no JSON; allowed: a file as a run writes it',
  ),
  (
    '--config=DIR/list.json',
    'DIR/list.json is no JSON object; allowed: a file as a run writes it',
  ),
  # The flags may come in any order.
  ('--config.seed=-1 --config=configs/digits_advprop.py', 'seed is -1; allowed: 0 to'),
  (
    '--config configs/no_such.py --config configs/digits_advprop.py:x',
    "unknown config argument 'x'",
  ),
  # Keys.
  (
    '--config.attack.epsilom=1',
    "unknown config key 'epsilom'; did you mean 'epsilon'? allowed in ... targeted",
  ),
  (
    '--config.optim.lr=1',
    "unknown config key 'lr'; allowed in config.optim: ... optimizer, schedule",
  ),
  (
    '--config.model.nam=x',
    "unknown config key 'nam'; did you mean 'name'? allowed in config.model: ",
  ),
  (
    '--config.data=5',
    "--config.data is a section, and '5' a value; ... as in --config.data.name=...",
  ),
  ('--config.data', 'Missing value for flag --config.data'),
  (
    '--config.data.augmentation.magnitude=3',
    "unknown config key 'magnitude'; allowed in config.data.augmentation: name",
  ),
  (
    '--config.streams.clean.weight=2',
    '--config.streams.clean.weight is no key: ... --config.streams[0], --config',
  ),
  (
    '--config.streams[2].weight=2',
    '--config.streams[2].weight is no key: config.streams is a tuple; allowed: ',
  ),
  (
    '--config.streams[0].wait=2',
    "unknown config key 'wait'; did you mean 'weight'? allowed in config.streams[0]: ",
  ),
  (
    '--config.data.batch-size=8',
    "unknown config key 'batch-size'; did you mean 'batch_size'? ... train_split",
  ),
  ('--config.data[0]=3', "unknown config key '[0]'; allowed in config.data: "),
  (
    '--config.data.batch_size.x=8',
    '--config.data.batch_size.x is no key: ... allowed: --config.data.batch_size=',
  ),
  ('--config..x=1', "unknown config key ''; allowed in config: attack"),
  (
    '--config.streams=VANILLA',
    "config.streams holds 'VANILLA'; allowed: ... file as in configs/default.py",
  ),
  (
    '--config.attack=pgd',
    "--config.attack is a section, and 'pgd' a ... in --config.attack.name=...",
  ),
  (
    '--config.model=efficientnet_b0',
    '--config.model is a section, and ... as in --config.model.name=...',
  ),
  # Types.
  (
    '--config.attack.num_steps=many',
    "--config.attack.num_steps is 'many'; allowed: a whole number",
  ),
  (
    '--config.attack.num_steps=4/2',
    "--config.attack.num_steps is '4/2'; allowed: a whole number",
  ),
  (
    '--config.attack.num_steps=2.5',
    "--config.attack.num_steps is '2.5'; allowed: a whole number",
  ),
  (
    '--config.attack.targeted=maybe',
    "--config.attack.targeted is 'maybe'; allowed: True or False",
  ),
  (
    '--config.data.batch_size=1e3',
    "--config.data.batch_size is '1e3'; allowed: a whole number",
  ),
  ('--config.seed=2.5', "--config.seed is '2.5'; allowed: a whole number"),
  (
    '--config.model.mean=imagenet',
    "model.mean is ('imagenet',); allowed: 3 ... in brackets, finite numbers",
  ),
  (
    '--config.data.crop_area=(0.5;1.0)',
    "data.crop_area is ('(0.5;1.0)',); allowed: 2 ... more than 0, up to 1",
  ),
  (
    '--config.data.crop_area=0.5',
    'data.crop_area is (0.5,); allowed: 2 numbers ... more than 0, up to 1',
  ),
  (
    '--config.data.class_names=(1,2)',
    "data.class_names is (1, 2); allowed: names in ... and brackets, as in ('one',)",
  ),
  (
    '--config.eval.suites=(1,)',
    "eval.suites is (1,); allowed: names in quotes and brackets, as in ('one',)",
  ),
  (
    '--config.attack.epsilon=',
    "flag --config.attack.epsilon=: '' is no number; allowed: 0.5 or 4/255",
  ),
  (
    '--config.attack.epsilon=4/0',
    "flag --config.attack.epsilon=4/0: '4/0' is no ... number; allowed: 0.5 or 4/255",
  ),
  (
    '--config.attack.epsilon=4/255/2',
    'flag --config.attack.epsilon=4/255/2: ... number; allowed: 0.5 or 4/255',
  ),
  (
    '--config.attack.epsilon=2**3',
    "flag --config.attack.epsilon=2**3: '2**3' is ... number; allowed: 0.5 or 4/255",
  ),
  (
    '--config.attack.epsilon=four',
    "flag --config.attack.epsilon=four: 'four' is ... number; allowed: 0.5 or 4/255",
  ),
  ('--config.data.flip=2', "--config.data.flip is '2'; allowed: True or False"),
  (
    '--config.data.name=',
    "cannot open data set '': Parsing builder name ... or a tensorflow-datasets name",
  ),
  # Ranges.
  (
    '--config.attack.epsilon=4',
    "attack.epsilon is 4.0; allowed: 0 to 1, in ... 1]: the papers' 8 is 8/255",
  ),
  (
    '--config.attack.epsilon=512/256',
    "attack.epsilon is 2.0; allowed: 0 to 1, in ... 1]: the papers' 8 is 8/255",
  ),
  (
    '--config.attack.epsilon=-1',
    "attack.epsilon is -1.0; allowed: 0 to 1, in ... 1]: the papers' 8 is 8/255",
  ),
  (
    '--config.attack.epsilon=nan',
    "attack.epsilon is nan; allowed: 0 to 1, in ... 1]: the papers' 8 is 8/255",
  ),
  (
    '--config.eval.attack.epsilon=-1',
    "eval.attack.epsilon is -1.0; allowed: 0 to 1, ... 1]: the papers' 8 is 8/255",
  ),
  (
    '--config.attack.step_size=2',
    "attack.step_size is 2.0; allowed: 0 to 1, in ... 1]: the papers' 8 is 8/255",
  ),
  ('--config.attack.num_steps=-1', 'attack.num_steps is -1; allowed: 0 or more, whole'),
  (
    '--config.attack.prob_start_from_clean=1.1',
    'attack.prob_start_from_clean is 1.1; allowed: 0 to 1',
  ),
  ('--config.seed=-1', 'seed is -1; allowed: 0 to 2147483647, whole'),
  ('--config.seed=99999999999', 'seed is 99999999999; allowed: 0 to 2147483647, whole'),
  ('--config.num_epochs=inf', 'num_epochs is inf; allowed: more than 0, finite'),
  ('--config.num_epochs=nan', 'num_epochs is nan; allowed: more than 0, finite'),
  ('--config.num_epochs=0', 'num_epochs is 0.0; allowed: more than 0, finite'),
  ('--config.num_epochs=-1', 'num_epochs is -1.0; allowed: more than 0, finite'),
  ('--config.log_every_steps=0', 'log_every_steps is 0; allowed: 1 or more, whole'),
  ('--config.data.image_size=0', 'data.image_size is 0; allowed: 1 to 16384, whole'),
  (
    '--config.data.image_size=16',
    'image size 16x16 is too small for EfficientNet; allowed: 32 or more',
  ),
  ('--config.data.batch_size=0', 'data.batch_size is 0; allowed: 1 or more, whole'),
  ('--config.data.batch_size=-8', 'data.batch_size is -8; allowed: 1 or more, whole'),
  (
    '--config.data.batch_size=6',
    'data.batch_size is 6, to be split over 4 ... multiples of 4, from 4 on',
  ),
  (
    '--config.data.eval_batch_size=9',
    'data.eval_batch_size is 9, to be split over 4 ... multiples of 4, from 4 on',
  ),
  (
    '--config.data.shuffle_window=0',
    'data.shuffle_window is 0; allowed: 1 or more, whole',
  ),
  (
    '--config.data.crop_area=(0.9,0.5)',
    'data.crop_area is (0.9, 0.5); allowed: the smaller share first',
  ),
  (
    '--config.data.crop_area=(0.0,0.5)',
    'data.crop_area is (0.0, 0.5); allowed: 2 ... more than 0, up to 1',
  ),
  (
    '--config.data.crop_area=(0.5,)',
    'data.crop_area is (0.5,); allowed: 2 numbers ... more than 0, up to 1',
  ),
  (
    '--config.data.crop_area=(0.5,2.0)',
    'data.crop_area is (0.5, 2.0); allowed: 2 ... more than 0, up to 1',
  ),
  (
    '--config.data.crop_padding=-1',
    'data.crop_padding is -1; allowed: 0 to 16384, whole',
  ),
  ('--config.data.max_bad_share=2', 'data.max_bad_share is 2.0; allowed: 0 to 1'),
  (
    '--config.data.max_megapixels=0',
    'data.max_megapixels is 0.0; allowed: more than 0, finite',
  ),
  (
    '--config.eval.suites=() --config.data.exif_orientation=maybe',
    "unknown data.exif_orientation 'maybe'",
  ),
  ('--config.data.holdout_share=2', 'data.holdout_share is 2.0; allowed: 0 to 1'),
  (
    '--config.data.holdout_share=0.1',
    "data.holdout_share is 0.1 and data set ... and 'train[90%:]'",
  ),
  (
    '--config.model.mean=(0.5,0.5)',
    'model.mean is (0.5, 0.5); allowed: 3 numbers in brackets, finite numbers',
  ),
  (
    '--config.model.mean=(nan,nan,nan)',
    "model.mean is ('(nan,nan,nan)',); allowed: 3 ... in brackets, finite numbers",
  ),
  (
    '--config.model.std=(0.5,0.0,0.5)',
    'model.std is (0.5, 0.0, 0.5); allowed: 3 ... brackets, more than 0, finite',
  ),
  (
    '--config.model.drop_connect_rate=-0.1',
    'model.drop_connect_rate is -0.1; allowed: 0 to 1',
  ),
  ('--config.model.bn_momentum=2', 'model.bn_momentum is 2.0; allowed: 0 to 1'),
  (
    '--config.optim.optimizer.momentum=1.5',
    'optim.optimizer.momentum is 1.5; allowed: 0 to 1',
  ),
  (
    '--config.optim.optimizer.epsilon=0',
    'optim.optimizer.epsilon is 0.0; allowed: more than 0, finite',
  ),
  (
    '--config.optim.optimizer.weight_decay=-1',
    'optim.optimizer.weight_decay is -1.0; allowed: 0 or more, finite',
  ),
  (
    '--config.optim.schedule.learning_rate=-1',
    'optim.schedule.learning_rate is -1.0; allowed: 0 or more, finite',
  ),
  (
    '--config.optim.schedule.learning_rate=inf',
    'optim.schedule.learning_rate is inf; allowed: 0 or more, finite',
  ),
  (
    '--config.optim.schedule.warmup_epochs=-1',
    'optim.schedule.warmup_epochs is -1.0; allowed: 0 or more, finite',
  ),
  (
    '--config.optim.schedule.decay_epochs=0',
    'optim.schedule.decay_epochs is 0.0; allowed: more than 0, finite',
  ),
  (
    '--config.optim.label_smoothing=-0.1',
    'optim.label_smoothing is -0.1; allowed: 0 to 1',
  ),
  (
    '--config.optim.layer_decay=0',
    'optim.layer_decay is 0.0; allowed: more than 0, up to 1',
  ),
  ('--config.optim.layer_decay=1.1', 'optim.layer_decay is 1.1; allowed: more than 0'),
  ('--config.optim.ema_decay=1.5', 'optim.ema_decay is 1.5; allowed: 0 to 1'),
  (
    '--config.eval.every_epochs=0',
    'eval.every_epochs is 0.0; allowed: more than 0, finite',
  ),
  (
    '--config.checkpoint.every_epochs=0',
    'checkpoint.every_epochs is 0.0; allowed: more than 0, finite',
  ),
  (
    '--config.checkpoint.keep_last=0',
    'checkpoint.keep_last is 0; allowed: 1 or more, whole',
  ),
  # Names.
  (
    '--config.attack.name=pdg',
    "unknown attack.name 'pdg'; did you mean 'pgd'? ... ifgsm, pgd",
  ),
  (
    '--config.eval.attack.name=pdg',
    "unknown eval.attack.name 'pdg'; did you mean 'pgd'? ... ifgsm, pgd",
  ),
  (
    '--config.attack.statistics=both',
    "unknown attack.statistics 'both'; did you mean 'batch'? ... running",
  ),
  (
    '--config.model.name=resnet_51',
    "unknown model.name 'resnet_51'; did you mean 'resne ... efficientnet_tiny",
  ),
  (
    '--config.model.activation=gellu',
    "unknown activation 'gellu'; did you mean 'gelu'? ... celu, ... silu, smooth_relu",
  ),
  (
    '--config.model.dtype=float8',
    "unknown model.dtype 'float8'; did you mean 'float32'? ... float32",
  ),
  (
    '--config.model.bn_scope=galaxy',
    "unknown model.bn_scope 'galaxy'; allowed: all, device, tpu_group",
  ),
  (
    '--config.optim.optimizer.name=adam',
    "unknown optim.optimizer.name 'adam'; allowed: rmsprop, sgd",
  ),
  (
    '--config.optim.schedule.name=linear',
    "unknown optim.schedule.name 'linear'; allowed: cosine, milestones",
  ),
  (
    '--config.data.augmentation.name=auto',
    "unknown data.augmentation.name 'auto'; ... none, randaugment",
  ),
  (
    '--config.data.resize_method=nearby',
    "unknown resize_method 'nearby'; allowed: bicubic, bicubic_tf1, bilinear",
  ),
  (
    '--config.data.exif_orientation=maybe',
    "unknown data.exif_orientation 'maybe'; allowed: all, folders, none",
  ),
  (
    "--config.eval.suites=('vall',)",
    "unknown suite 'vall'; did you mean 'val'? ... val",
  ),
  (
    '--config.eval.suites=vall',
    "unknown suite 'vall'; did you mean 'val'? ... val",
  ),
  (
    "--config.optim.freeze=('stem_*','block_0/*')",
    "optim.freeze has 'block_0/*', ... did you mean 'blocks_0/*'? ... blocks_0 ... ",
  ),
  # Data.
  (
    '--config.data.name=digitz',
    "unknown data set 'digitz'; nearest names: ... or a tensorflow-datasets name",
  ),
  (
    '--config.data.name=imagenet2012',
    "data set 'imagenet2012' is not prepared in DATA; ... tfds build",
  ),
  (
    '--config.data.name=folder:DIR/none',
    "cannot read folder 'DIR/none': expected ... *.png or the like",
  ),
  (
    '--config.data.name=folder:DIR/empty',
    "folder 'DIR/empty' has no class folders: ... *.png or the like",
  ),
  ('--config.data.data_dir=DIR/file', "data_dir 'DIR/file' is not a readable folder"),
  (
    '--config.data.train_split=trian',
    "unknown split 'trian' of data set 'digits'; allowed: test, train",
  ),
  (
    '--config.data.eval_split=validation',
    "unknown split 'validation' of data set 'digits'; allowed: test, train",
  ),
  (
    '--config.data.eval_split=',
    "unknown split '' of data set 'digits'; allowed: test, train",
  ),
  (
    '--config.data.train_split=train[:0]',
    "split 'train[:0]' of data set 'digits' is empty",
  ),
  (
    '--config.data.train_split=train[:2',
    "unknown split 'train[:2' of data set 'digits'; allowed: test, train",
  ),
  (
    "--config.data.class_names=('a','b')",
    "digits is another data set: the network does ... some or all of 2: 'a', 'b'",
  ),
  # What has no effect.
  (
    '--config=configs/digits_fast_advprop.py --config.attack.epsilon=4/255',
    "--config.attack.epsilon has no effect: method 'fast_advprop' ... method.epsilon",
  ),
  (
    '--config=configs/digits_fast_advprop.py --config.streams[0].weight=2',
    '--config.streams[0].weight has no effect: ... clean, noise, adv does not use it',
  ),
  (
    '--config=configs/digits_vanilla.py --config.attack.epsilon=4/255',
    "--config.attack.epsilon has no effect: method 'streams' with the streams clean d",
  ),
  (
    '--config=configs/effnet_fine_grained.py:b0,strengths,smoke '
    '--config.attack.num_steps=2',
    '--config.attack.num_steps has no effect: ... adv_3 does not use it; allowed: ',
  ),
  (
    '--config=configs/digits_pilot.py --config.streams[1].weight=0.5',
    '--config.streams[1].weight has no effect: every phase has ... or another config',
  ),
  (
    '--config=configs/digits_pilot.py:smoke --config.num_epochs=3',
    '--config.num_epochs has no effect: ... allowed: --config.phases[0].num_epochs or',
  ),
  (
    '--config=digits_sat:sillu',
    "unknown config argument 'sillu'; did you mean 'silu'? allowed: relu, softplus",
  ),
  # Evaluation and the workdir.
  (
    '--config.init_from=DIR/none',
    "init_from is 'DIR/none', no --workdir with a checkpoint; as published weights: "
    'there is no DIR/none; allowed: a folder with',
  ),
  (
    '--mode=evaluate',
    'there is no WORKDIR/config.json; allowed: ... --workdir that was trained in',
  ),
  (
    '--mode=evaluate --config=configs/digits_advprop.py',
    'WORKDIR has no checkpoint; allowed: a --workdir that was trained in',
  ),
  (
    '--mode=evaluate --workdir=DIR/file',
    'DIR/file/config.json cannot be read: Not a ... a file as a run writes it',
  ),
  (
    '--workdir=DIR/file',
    'cannot write to --workdir DIR/file: File ... that you may create files in',
  ),
  (
    '--workdir=DIR/file/run',
    'cannot write to --workdir DIR/file/run: Not a ... that you may create files in',
  ),
]


@pytest.fixture(scope='module')
def run_main(tmp_path_factory, digits_dir):
  """Returns f(arguments) -> status and stderr of `python main.py arguments`."""
  path = tmp_path_factory.mktemp('stderr') / 'stderr'
  with subprocess.Popen(
    [sys.executable, '-c', RUN_MAIN],
    cwd=ROOT,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '4',
      'TFDS_DATA_DIR': str(digits_dir),
    },
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:

    def run(*arguments):
      path.unlink(missing_ok=True)
      process.stdin.write(json.dumps([arguments, str(path)]) + '\n')
      process.stdin.flush()
      ready, _, _ = select.select([process.stdout], [], [], 60.0)
      assert ready, f'no end after 60 s: {path.read_text()}'
      return int(process.stdout.readline()), path.read_text()

    yield run
    process.stdin.close()
    process.kill()


@pytest.fixture
def odd_files(tmp_path):
  """Returns a folder of what is no workdir, no config and no data set."""
  folder = tmp_path / 'odd'
  (folder / 'empty').mkdir(parents=True)
  (folder / 'file').write_text('x')
  (folder / 'broken.json').write_text('{"a": 1')
  (folder / 'list.json').write_text('[1]')
  (folder / 'section.json').write_text('{"data": 5}')
  (folder / 'streams.json').write_text('{"streams": {"a": 1}}')
  (folder / 'returns_nothing.py').write_text('def get_config():\n  pass')
  (folder / 'looks_up.py').write_text("def get_config():\n  return {}['foo']")
  (folder / 'imports.py').write_text('import no_such_module')
  return folder


@pytest.mark.parametrize('line, message', WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_line_is_one_line_and_no_traceback(
  line, message, tmp_path, odd_files, digits_dir, run_main
):
  workdir = tmp_path / 'workdir'

  def fill_in(text):
    for word, path in [('WORKDIR', workdir), ('DIR', odd_files), ('DATA', digits_dir)]:
      text = text.replace(word, str(path))
    return text

  arguments = fill_in(line).split(' ')
  if '--workdir' not in line:
    arguments.insert(0, f'--workdir={workdir}')
  if '--config=' not in line and '--mode=evaluate' not in line:
    arguments.insert(0, '--config=configs/effnet_b0_advprop.py:smoke')
  before = sorted(odd_files.rglob('*'))
  status, stderr = run_main(*arguments)
  assert status == 1
  assert 'Traceback' not in stderr
  last = stderr.strip().splitlines()[-1]
  assert last.startswith('error: ')
  begin, *rest = fill_in(message).split(' ... ')
  assert last.removeprefix('error: ').startswith(begin)
  for part in rest:
    assert part in last
  assert not workdir.exists() and sorted(odd_files.rglob('*')) == before


@pytest.mark.parametrize('words', [['--mode=evaluate'], ['--replay_step', '7']])
def test_a_run_that_was_made_is_looked_at_with_its_own_config(tmp_path, words):
  (tmp_path / 'config.json').write_text('{"seed": 3}')
  argv, source = command_line.choose_config(
    ['main.py', f'--workdir={tmp_path}', *words], default_config='a', saved_config='b'
  )
  assert argv[1] == '--config=b:{"seed": 3}'
  assert source == f'{tmp_path}/config.json'


def test_tuples_may_hold_fractions():
  argv = ['main.py', '--config.eval.robustness.epsilons=(2/255, 4/255,0.5)']
  (_, word) = command_line.write_out_fractions(argv)
  assert word == f'--config.eval.robustness.epsilons=({2 / 255!r}, {4 / 255!r},0.5)'
  for same in (
    "--config.eval.suites=('1/2',)",
    '--workdir=(1/2)',
    '--config=(1/2)',
    '--config.attack.epsilon=4/255',  # A number, see `FractionParser`.
    '--config.eval.robustness.epsilons=(1/0,)',
  ):
    assert command_line.write_out_fractions(['main.py', same]) == ['main.py', same]
