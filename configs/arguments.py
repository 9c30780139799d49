"""What stands behind the colon in `--config=file.py:one,two`."""

import difflib

# Words for the weight of the clean loss.
ALPHAS = {f'alpha=0.{i}': i / 10 for i in range(1, 10)}


def parse(argument: str | None, allowed=('smoke',)) -> set[str]:
  """Returns the words of a comma-separated argument; '' and None have none.

  Raises:
    ValueError: a word is not among those that the config knows.
  """
  words = {word for word in (argument or '').split(',') if word}
  unknown = sorted(words - set(allowed))
  if unknown:
    nearest = difflib.get_close_matches(unknown[0], allowed, n=1)
    hint = f'did you mean {nearest[0]!r}? ' if nearest else ''
    raise ValueError(
      f'unknown config argument {", ".join(unknown)!r}; {hint}allowed: '
      f'{", ".join(allowed)}'
    )
  return words


def choose(words: set[str], what: str, allowed, *, default: str | None = None) -> str:
  """Returns the one word of a group that was given.

  Args:
    words: of the argument, see `parse`.
    what: the group, for the message: 'size'.
    allowed: its words.
    default: what none means; None: one has to be given.

  Raises:
    ValueError: none or several were given.
  """
  found = sorted(words & set(allowed))
  if not found and default is not None:
    return default
  if len(found) != 1:
    raise ValueError(
      f'the config needs one {what}, but was given {", ".join(found) or "none"}; '
      f'allowed: {", ".join(allowed)}, as in file.py:{next(iter(allowed))}'
    )
  return found[0]


def finish(config, words: set[str]):
  """Returns the config, shrunk if the words say 'smoke', locked in all its sections."""
  config = _smoke(config) if 'smoke' in words else config
  return config.unlock().lock()  # A section that was put in later is not locked yet.


def _smoke(config):
  """Shrinks any config to about a minute on two cores; the code path stays whole.

  One epoch of the embedded digits, a network of a quarter of B0's depth and width,
  steps and evaluations with all attacks, two checkpoints.
  """
  config.data.update(
    name='digits',
    train_split='train',
    eval_split='test',
    image_size=32,
    batch_size=64,
    eval_batch_size=120,
    shuffle_window=2048,
    crop_padding=0,  # A padding of 32 would leave 4 of a digit's 8 pixels.
  )
  # Statistics and averages that have settled after twenty steps.
  is_resnet = config.model.name.startswith('resne')
  name = 'resnet_tiny' if is_resnet else 'efficientnet_tiny'
  config.model.update(name=name, bn_momentum=0.8)
  config.init_from = ''  # Of another network.
  config.num_epochs = 1.0
  config.phases = tuple({**phase, 'num_epochs': 1.0} for phase in config.phases)
  config.log_every_steps = 5
  config.optim.schedule.warmup_epochs = 0.2
  config.optim.ema_decay = 0.8
  config.eval.every_epochs = 0.5
  config.eval.attack.num_steps = 2
  config.checkpoint.every_epochs = 0.5
  return config
