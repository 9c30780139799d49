"""Evaluates a checkpoint: from a workdir to numbers that say what they are of."""

import hashlib
from collections.abc import Iterable

import jax
import numpy as np
from absl import logging

from advprop_jax import (
  branches,
  errors,
  evaluations,
  hosts,
  images,
  model_config,
  passes,
  robust_config,
  run_start,
  schema,
  suite_run,
)
from advprop_jax.evaluation import (
  attack_words,
  label_spaces,
  run_files,
  shapes,
  suites,
  tables,
)
from advprop_jax.input import datasets
from advprop_jax.workdir import contents, directory, metric_writer, restore, results

# Beginnings of keys that have no part in an evaluation.
_UNUSED = (
  *(
    'init_from',
    'num_epochs',
    'log_',
    'profile_steps',
    'on_nonfinite',
    'streams',
    'attack.',
    'optim.',
    'checkpoint.',
  ),
  *('method.', 'phases', 'model.smooth_backward'),
  *('data.train_split', 'data.batch_size', 'data.shuffle_window'),
  *('data.crop_area', 'data.flip', 'data.augmentation'),
)
ALL = 'all'  # Instead of names of suites: those that fit the network.


def evaluate_checkpoint(
  config,
  workdir: str,
  *,
  which: str = 'newest',
  suite_names: tuple[str, ...] = (),
) -> dict[str, float]:
  """Evaluates a checkpoint of a workdir, without changing it.

  Of the config only data, model and evaluation count. The classes and the branches are
  the checkpoint's. What is in eval/<suite>.json of the same weights and the same images
  is not evaluated again.

  Args:
    config: whose model is the checkpoint's; see `directory.read_config`.
    workdir: directory that has been trained in. It receives eval/<suite>.json, a line
      of results.jsonl for every suite, that says what was evaluated, and pictures.
    which: 'newest', 'best' or a step.
    suite_names: keys of `suites.SUITES`, or ('all',); none: `config.eval.suites`.

  Returns:
    The metrics, named '<data set>:<split>/<branch>_<score>', or '<suite>/...' where a
    suite has several sets of images.

  Raises:
    UserError: no such checkpoint, one of another model, or a config that cannot be
      used; or, when all others are evaluated, that a suite could not be.
  """
  config = schema.read(config)
  run_start.check_hosts(config, workdir)
  if not directory.saved_steps(workdir):
    raise errors.UserError(
      f'{workdir} has no checkpoint; allowed: a --workdir that was trained in'
    )
  path = directory.open_workdir(workdir)
  with restore.Reader(path / 'checkpoints') as reader:
    step = reader.find(which)
    saved, _ = reader.describe(step)
    config = _with_held_out(saved, config)
    config = model_config.with_class_names(config, _class_names(saved, config))
    model = model_config.create_model(config, num_classes=len(config.data.class_names))
    names = _chosen(suite_names or config.eval.suites, config)
    work, problems = suite_run.open_work(names, config)
    if hosts.sum_over_hosts(len(problems)) != len(problems) * jax.process_count():
      raise errors.UserError(
        f'hosts see different images; missing on this one: {problems or "nothing"}; '
        'allowed: the same data_dir on all of them'
      )
    variables, averaged = model_config.restore_variables(reader, step, config, model)
  unused = robust_config.unused_keys(names, config)
  contents.warn_of_changes(
    saved, config, is_unused=lambda key: key.startswith(_UNUSED) or key in unused
  )
  for name in names:
    if note := robust_config.describe_radius(name, config):
      logging.info('%s', note)
  _warn_of_seen_images(saved, config)
  weights = {'step': step, 'averaged': averaged, 'sha256': _digest(variables)}
  branch_names = sorted(variables['norms'], key=lambda x: (x != branches.CLEAN, x))
  of_suite = {name: _branches_of(name, config, branch_names) for name in names}
  identities = {
    name: suite_run.identify(name, config, weights, of_suite[name]) for name in names
  }
  files = {
    name: results.SuiteFile(path, name, x, shapes.problem_to_go_on)
    for name, x in identities.items()
  }
  for problem in problems:  # Now, and not after an evaluation of hours.
    logging.warning('%s', problem)
  num_known = len(problems)
  todo = [x for x in work if files[x.suite].find(x.name, x.about) is None]
  _log_plan(todo, len(work), path, weights, of_suite, config)
  run = passes.Passes(
    todo,
    config=config,
    model=model,
    variables=variables,
    branch_names=branch_names,
    open_examples=lambda item, of_attacks: results.ExamplesFile(
      path, item.suite, {**identities[item.suite], **item.about, **of_attacks}
    ),
  )
  metrics: dict[str, float] = {}
  with metric_writer.MetricWriter(path) as writer:
    for name in _same_images_together(names):
      items = [x for x in work if x.suite == name]
      metrics |= suite_run.evaluate_suite(
        files[name], items, of_suite[name], run, problems, writer
      )
  contents_of = {name: x.content for name, x in files.items() if x.content['cells']}
  run_of_table = run_files.Run(path.name, path, config, [], contents_of, [])
  logging.info(
    'results of step %d:\n%s',
    step,
    tables.to_markdown(tables.create_table([run_of_table])),
  )
  if problems:
    for problem in problems[max(1, num_known) :]:
      logging.error('%s', problem)
    raise errors.UserError(
      f'{len(problems)} of {len(names)} suites have no result or lack a part: '
      f'{problems[0]}' + (' (the log has the others)' if len(problems) > 1 else '')
    )
  return metrics


def describe_interruption(workdir: str) -> str:
  """Returns the line that says after Ctrl-C what is left of an evaluation."""
  return (
    'interrupted; the same command goes on with the sets of images that have no result '
    'yet, and of several attacks after the last one that is whole, see '
    f'{workdir}/{results.FOLDER}'
  )


def _branches_of(
  name: str, config: schema.Section, branch_names: list[str]
) -> list[str]:
  """Returns the branches that a suite evaluates."""
  if not robust_config.is_worst_case(name, config):
    return branch_names
  section = config.eval.robustness
  for key in ('branch', 'attack_branch'):
    if section[key]:
      errors.check_choice(f'eval.robustness.{key}', section[key], branch_names)
  return [section.branch]


def _same_images_together(names: list[str]) -> list[str]:
  """Returns the names so that what is evaluated in one pass is written at once."""
  cells = [suites.SUITES[x].cells for x in names]
  return sorted(names, key=lambda x: cells.index(suites.SUITES[x].cells))


def _chosen(names: Iterable[str], config: schema.Section) -> list[str]:
  """Returns names of suites without doubles; for 'all' those that fit the network."""
  names = list(dict.fromkeys(names))
  if not names:
    raise errors.UserError(
      'nothing to evaluate: eval.suites is (); allowed: --suites, or names of '
      f'{", ".join(suites.SUITES)}'
    )
  if names != [ALL]:
    for name in names:
      errors.check_choice('suite', name, [*suites.SUITES, ALL])
    if ALL in names:
      raise errors.UserError(
        f'suites are {", ".join(names)}; allowed: {ALL} alone, or names without it'
      )
    return names
  found = [x for x in suites.SUITES if _fits(x, config.data.class_names)]
  if len(found) < len(suites.SUITES):
    logging.info('of all suites %s fit the classes of the network', ', '.join(found))
  return found


def _fits(name: str, class_names: tuple[str, ...]) -> bool:
  """Returns whether a network knows the classes of a suite, whatever its data."""
  try:
    for cell in suites.SUITES[name].cells.values():
      label_spaces.check_network(cell.labels, class_names)
  except errors.UserError:
    return False
  return True


def _log_plan(
  todo: list[suite_run.Work], num_cells: int, path, weights, of_suite, config
):
  """Logs what will be evaluated, and what is known of the images."""
  if not todo:
    return
  attacked = dict.fromkeys(x.suite for x in todo if suites.SUITES[x.suite].attacked)
  described = [
    attack_words.describe(robust_config.describe(name, config)) for name in attacked
  ]
  of_branches: dict[str, list[str]] = {}
  for name in dict.fromkeys(x.suite for x in todo):
    of_branches.setdefault(' and '.join(of_suite[name]), []).append(name)
  logging.info(
    'evaluating step %d (%s weights) of %s; %s; attack %s; %d of %d '
    'results are missing; the first batch is compiled: a minute or more on a CPU',
    weights['step'],
    'averaged' if weights['averaged'] else 'plain',
    path,
    '; '.join(f'{", ".join(x)}: {branch}' for branch, x in of_branches.items()),
    '; '.join(described) or 'none',
    len(todo),
    num_cells,
  )
  for title, item in {suite_run.title(item): item for item in todo}.items():
    logging.info(
      '%s: %d images', title, item.cell.dataset.num_examples(item.cell.split)
    )
    evaluations.log_masked(item.cell, config)
    for note in item.cell.notes:
      logging.warning('%s', note)


def _digest(variables) -> str:
  """Returns the SHA-256 of all weights and statistics, in the order of their names."""
  found = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(variables):
    x = np.asarray(x)
    found.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    found.update(x.tobytes())
  return found.hexdigest()


def _with_held_out(saved: dict, config: schema.Section) -> schema.Section:
  """Returns a config that holds nothing out of other data than those of the training.

  Their split 'train' is whole then, unless their 'holdout' is asked for, too.
  """
  split_names = datasets.split_names(config.data.eval_split)
  if datasets.is_same(saved['data']['name'], config.data.name) or (
    datasets.HOLDOUT in split_names
  ):
    return config
  data = schema.Section(config.data | {'holdout_share': 0.0})
  return schema.Section(config | {'data': data})


def _warn_of_seen_images(saved: dict, config: schema.Section):
  """Logs that images which the network was trained on count as held out."""
  is_held_out = datasets.HOLDOUT in datasets.split_names(config.data.eval_split)
  if is_held_out and datasets.holds_out_seen_images(saved['data'], config.data):
    logging.warning(
      'some images of split %r were trained on: data.holdout_share was %s in the '
      'training and is %s now',
      config.data.eval_split,
      saved['data'].get('holdout_share', 0.0),
      config.data.holdout_share,
    )


def _class_names(saved: dict, config: schema.Section) -> tuple[str, ...]:
  """Returns the names of a checkpoint's classes, in the order of its logits."""
  if names := saved['data'].get('class_names'):
    return tuple(names)
  names = images.open_to_evaluate(config, config.data.eval_split).class_names
  logging.warning(
    'the checkpoint is older than names of classes in checkpoints: they are taken to '
    'be those of %s',
    config.data.name,
  )
  return names
