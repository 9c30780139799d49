r"""Trains configs with several seeds and prints a table of accuracies, in Markdown.

  python benchmarks/methods.py digits_vanilla digits_advprop digits_sat:silu \
      --seeds 0 1 2 3

Of each run the last evaluation counts; a run of phases has that of its last phase. Runs
that are there already are not trained again. With --num-steps 50 the last checkpoints
are also evaluated under an attack of 50 steps.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from advprop_jax.workdir import directory

ROOT = pathlib.Path(__file__).parent.parent


def train(config: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
  """Returns the workdir of a finished run."""
  workdir = folder / f'{config.replace(":", "_").replace(",", "_")}_{seed}'
  name, _, argument = config.partition(':')
  subprocess.run(
    [
      sys.executable,
      ROOT / 'main.py',
      f'--config={ROOT}/configs/{name}.py' + (f':{argument}' if argument else ''),
      f'--config.seed={seed}',
      f'--workdir={workdir}',
    ],
    check=True,
  )
  return workdir


def evaluate(workdir: pathlib.Path, num_steps: int):
  """Evaluates the last checkpoint of a run under an attack of so many steps."""
  subprocess.run(
    [
      sys.executable,
      ROOT / 'main.py',
      '--mode=evaluate',
      f'--workdir={workdir}',
      f'--config.eval.attack.num_steps={num_steps}',
    ],
    check=True,
  )


def read(workdir: pathlib.Path, num_steps: list[int]) -> dict[str, float]:
  """Returns what a run has measured, by the norm that was evaluated.

  Returns:
    'secs', of the training, and of each norm 'clean_top1' and 'clean_pgd_top1' after
    the training, and 'clean_pgd_50_top1' of an evaluation with 50 steps.
  """
  runs = [pathlib.Path(directory.phase_workdir(str(workdir), i)) for i in range(100)]
  runs = [run for run in runs if run.exists()] or [workdir]
  result = {'secs': 0.0}
  for run in runs:
    lines = [json.loads(x) for x in (run / 'results.jsonl').read_text().splitlines()]
    # Of all starts of the run; one with more epochs added has a line of before, too.
    result['secs'] += [x['secs/train'] for x in lines if 'secs/train' in x][-1]
    last = [x for x in lines if 'val/clean_top1' in x][-1]
    values = {k.removeprefix('val/'): v for k, v in last.items() if 'val/' in k}
  for steps in num_steps:
    for line in lines:
      is_last = 'checkpoint' in line and line['step'] == last['step']
      if is_last and line['attack'].get('num_steps') == steps:
        for key, value in line.items():
          if key.endswith('_pgd_top1'):
            name = key.rpartition('/')[2].replace('_pgd_', f'_pgd_{steps}_')
            values[name] = value
  return result | values


def describe(values: list[float]) -> str:
  """Returns '99.3 +- 0.7 %' of shares; of a single one '99.3 %'."""
  mean = f'{100 * statistics.mean(values):.1f}'
  if len(values) == 1:
    return f'{mean} %'
  return f'{mean} +- {100 * statistics.stdev(values):.1f} %'


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('configs', nargs='+', help='digits_advprop, digits_sat:silu, ...')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3])
  parser.add_argument(
    '--num-steps',
    type=int,
    nargs='*',
    default=[],
    help='evaluate under attacks of so many steps, too',
  )
  parser.add_argument('--folder', type=pathlib.Path, default=ROOT / 'runs' / 'methods')
  args = parser.parse_args()
  scores = ['', '_pgd', *(f'_pgd_{steps}' for steps in args.num_steps)]
  titles = ['clean', "under the config's attack"]
  titles += [f'in {steps} steps' for steps in args.num_steps]
  rows = [f'| config | norm | {" | ".join(titles)} | training |']
  rows.append('|---' * (len(titles) + 3) + '|')
  for config in args.configs:
    runs = []
    for seed in args.seeds:
      workdir = train(config, seed, args.folder)
      for steps in args.num_steps:
        if f'clean_pgd_{steps}_top1' not in read(workdir, args.num_steps):
          evaluate(workdir, steps)
      runs.append(read(workdir, args.num_steps))
    secs = [run['secs'] for run in runs]
    norms = [x.removesuffix('_pgd_top1') for x in runs[0] if x.endswith('_pgd_top1')]
    for norm in norms:
      accuracies = [
        describe([x[f'{norm}{score}_top1'] for x in runs]) for score in scores
      ]
      rows.append(
        f'| `{config}` | {norm} | {" | ".join(accuracies)} | '
        f'{min(secs):.0f}-{max(secs):.0f} s |'
      )
  print('\n'.join(rows))


if __name__ == '__main__':
  main()
