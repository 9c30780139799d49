r"""Trains configs with several seeds and prints a table of accuracies, in Markdown.

  python benchmarks/methods.py digits_vanilla digits_advprop digits_sat:silu \
      --seeds 0 1 2 3

Of each run the last evaluation counts; a run of phases has that of its last phase. Runs
that are there already are not trained again.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

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


def read(workdir: pathlib.Path) -> dict[str, float]:
  """Returns the last evaluation of a run, and the seconds of its training."""
  phases = sorted(workdir.glob('phase_*')) or [workdir]
  secs, last = 0.0, {}
  for phase in phases:
    lines = [json.loads(x) for x in (phase / 'results.jsonl').read_text().splitlines()]
    # A resumed run has a line of seconds for each of its parts.
    secs += sum(x.get('secs/train', 0.0) for x in lines)
    last = [x for x in lines if 'val/clean_top1' in x][-1]
  return {**last, 'secs': secs}


def describe(values: list[float]) -> str:
  """Returns '99.3 +- 0.7 %' of shares."""
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  return f'{100 * statistics.mean(values):.1f} +- {100 * spread:.1f} %'


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('configs', nargs='+', help='digits_advprop, digits_sat:silu, ...')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3])
  parser.add_argument('--folder', type=pathlib.Path, default=ROOT / 'runs' / 'methods')
  args = parser.parse_args()
  rows = ['| config | clean | under PGD | training |', '|---|---|---|---|']
  for config in args.configs:
    runs = [read(train(config, seed, args.folder)) for seed in args.seeds]
    secs = [run['secs'] for run in runs]
    rows.append(
      f'| `{config}` | {describe([x["val/clean_top1"] for x in runs])} | '
      f'{describe([x["val/clean_pgd_top1"] for x in runs])} | '
      f'{min(secs):.0f}-{max(secs):.0f} s |'
    )
  print('\n'.join(rows))


if __name__ == '__main__':
  main()
