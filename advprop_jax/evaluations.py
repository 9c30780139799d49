"""From a config to its evaluation: the suites, opened, and what runs on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging

from advprop_jax import (
  attacks,
  errors,
  hosts,
  images,
  parallel,
  registry,
  robust_config,
  schema,
)
from advprop_jax.evaluation import label_spaces, runner, suites
from advprop_jax.input import batches, corrupted_batches, corruptions, datasets
from advprop_jax.workdir import logs


class Cell(NamedTuple):
  """The images of a cell of a suite, opened; see `suites.Cell`."""

  dataset: datasets.Dataset  # With the labels of the suite.
  split: str
  space: label_spaces.LabelSpace
  batches: Any  # Sized iterable of batches.
  input: dict[str, Any]  # How an image becomes the network's; JSON values.
  notes: tuple[str, ...]  # What must be said beside the numbers.


def open_cell(
  config: schema.Section, cell: suites.Cell, *, dataset: datasets.Dataset | None = None
) -> Cell:
  """Opens the images of a cell, in the order and the batches that they come in.

  Args:
    config: whose `data.class_names` are those of the network's logits, in their order.
    cell: which images; they are not corrupted here, see `corrupt`.
    dataset: `config.data.name`, if it is open already.

  Raises:
    UserError: there are no such images, or the network does not know their classes.
  """
  label_spaces.check_network(cell.labels, config.data.class_names)
  opened, split = _open_source(config, cell, dataset)
  space = label_spaces.LABEL_SPACES[cell.labels](
    opened.class_names, config.data.class_names, data_name=opened.name
  )
  if space.new_labels is not None:
    opened = opened.with_labels(space.new_labels, space.class_names)
  change = {'image_size': cell.image_size, 'crop_padding': cell.crop_padding}
  data = schema.Section(
    config.data | {key: x for key, x in change.items() if x is not None}
  )
  recipe = images.create_recipe(
    schema.Section(config | {'data': data}),
    opened,
    border=cell.border,
    resize=cell.resize,
  )
  found: Any = batches.eval_batches(
    opened,
    split=split,
    batch_size=config.data.eval_batch_size,
    recipe=recipe,
    max_bad_share=config.data.max_bad_share,
    hosts=images.hosts(),
  )
  keys = (
    *('image_size', 'crop_padding', 'resize_method', 'border', 'resize'),
    *('exif_orientation', 'max_megapixels'),
  )
  return Cell(
    opened,
    split,
    space,
    found,
    input={key: getattr(recipe, key) for key in keys},
    notes=(*opened.notes, *space.notes),
  )


def corrupt(cell: Cell, name: str, severity: int, *, seed: int) -> Cell:
  """Returns a cell with its images corrupted; see `corrupted_batches`."""
  return cell._replace(
    batches=corrupted_batches.corrupt_batches(cell.batches, name, severity, seed=seed),
    notes=(*cell.notes, *corruptions.NOTES),
  )


def _open_source(config, cell: suites.Cell, dataset: datasets.Dataset | None):
  """Returns the first data set of a cell that is there, and its split."""
  if not cell.sources:
    split = config.data.eval_split
    return dataset or images.open_to_evaluate(config, split), split
  problems = []
  data_dir = config.data.data_dir or datasets.default_data_dir()
  for name, split in cell.sources:
    name = name.format(data_dir=data_dir)
    try:
      found = images.open_to_evaluate(config, split, name, label_key=cell.label_key)
    except errors.UserError as e:
      problems.append(str(e))
    else:
      found.spans(split)  # An unknown split is reported here.
      return found, split
  origin = cell.origin.format(data_dir=data_dir)
  raise errors.UserError(
    '; or: '.join(problems) + (f'; where they come from: {origin}' if origin else '')
  )


class Evaluators:
  """Makes what evaluates a model; what is compiled is shared among sets of images."""

  def __init__(self, config: schema.Section, model):
    """Keeps a config and the network, which maps images to logits.

    Raises:
      UserError: the batch size cannot be split over the devices.
    """
    parallel.check_batch_size('data.eval_batch_size', config.data.eval_batch_size)
    self._config, self._model = config, model
    self._made: dict[tuple, runner.Evaluator] = {}

  def get(self, cell: Cell, *, clean: bool, attacked: bool) -> runner.Evaluator:
    """Returns the evaluator of images with the labels of a cell.

    Args:
      cell: some images.
      clean: whether they are evaluated as they are.
      attacked: whether they are evaluated under `config.eval.attack`.
    """
    columns, sets = cell.space.columns, cell.space.sets
    parts = [None if x is None else x.tobytes() for x in (columns, sets)]
    key = (*parts, clean, attacked)
    if key not in self._made:
      attack = registry.create(
        'eval.attack',
        attacks.ATTACKS,
        self._config.eval.attack,
        num_classes=len(cell.space.class_names),
      )
      self._made[key] = runner.Evaluator(
        self._model,
        attack if attacked else None,
        seed=self._config.seed,
        columns=columns,
        sets=sets,
        clean=clean,
      )
    return self._made[key]


class Evaluation(NamedTuple):
  """What a config says of evaluation while it trains."""

  cells: dict[str, Cell]  # Of the suites of `config.eval.suites`.
  # {'params', 'norms', 'batch_stats'} -> {suite: result}; raises Preempted.
  run: Callable[[dict], dict[str, runner.Result]]


def create_evaluation(config, model, *, dataset=None) -> Evaluation:
  """Opens the suites of a config, to evaluate a model on them again and again.

  Suites of the same images are evaluated together, under the name that comes first in
  `suites.SUITES`: 'val/clean_pgd_top1' is of the suite 'pgd'.

  Args:
    config: whose `data.class_names` are those of the model's logits, in their order.
    model: maps images to logits.
    dataset: `config.data.name`, if it is open already.

  Raises:
    UserError: a suite is unknown, has classes that the model does not know, or takes
      too long.
  """
  evaluators = Evaluators(config, model)
  opened: dict[str, Cell] = {}
  bases: dict[suites.Cell, Cell] = {}
  kinds: dict[str, set[bool]] = {}  # Of each name, whether attacked: False, True, both.
  for name in config.eval.suites:
    suite = find_suite(name)
    if name == robust_config.AUTOATTACK:
      raise errors.UserError(
        f'eval.suites has {name!r}, which takes too long while training; allowed: '
        f'--mode=evaluate --suites={name}'
      )
    for cell_name, cell in suite.cells.items():
      place = _place(name, cell_name, cell)
      if place not in opened:
        opened[place] = open_once(config, cell, bases, dataset=dataset)
        log_masked(opened[place], config)
      kinds.setdefault(place, set()).add(suite.attacked)
  run_on = {
    place: evaluators.get(
      cell, clean=False in kinds[place], attacked=True in kinds[place]
    )
    for place, cell in opened.items()
  }

  def run(variables):
    found = {}
    for place, cell in opened.items():
      report = logs.create_progress(len(cell.batches), every_secs=10.0)

      def progress(num_done, report=report):
        report(num_done)
        hosts.stop_if_preempted()

      found[place] = run_on[place](**variables, batches=cell.batches, progress=progress)
    return found

  return Evaluation(opened, run)


def open_once(
  config: schema.Section,
  cell: suites.Cell,
  opened: dict[suites.Cell, Cell],
  *,
  dataset: datasets.Dataset | None = None,
) -> Cell:
  """Opens the images of a cell; corruptions of the same images share their reader.

  Args:
    config: see `open_cell`.
    cell: likewise.
    opened: receives what is opened, without corruption.
    dataset: see `open_cell`.
  """
  plain = cell._replace(corruption=None)
  if plain not in opened:
    opened[plain] = open_cell(config, plain, dataset=dataset)
  if cell.corruption is None:
    return opened[plain]
  return corrupt(opened[plain], *cell.corruption, seed=config.seed)


def find_suite(name: str) -> suites.Suite:
  """Returns a suite of the table; UserError if it is not there."""
  errors.check_choice('suite', name, suites.SUITES)
  return suites.SUITES[name]


def _place(suite_name: str, cell_name: str, cell: suites.Cell) -> str:
  """Returns the name under which a cell's metrics stand in the log of a training."""
  if len(suites.SUITES[suite_name].cells) > 1:
    return f'{suite_name}/{cell_name}'
  return next(k for k, x in suites.SUITES.items() if list(x.cells.values()) == [cell])


def log_masked(cell: Cell, config: schema.Section):
  """Logs that the logits of some classes do not count, if it is so."""
  num_classes = len(config.data.class_names)
  if cell.space.columns is not None and len(cell.space.columns) < num_classes:
    logging.info(
      '%s has %d of the %d classes of the network: the logits of the others are '
      'masked, accuracy is over these: %s',
      cell.dataset.name,
      len(cell.space.columns),
      num_classes,
      ', '.join(cell.space.class_names[:10]),
    )
