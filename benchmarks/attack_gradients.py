"""Compares the attack's gradients in bfloat16 with those in float32.

  python main.py --config=configs/digits_advprop.py
  python benchmarks/attack_gradients.py --config=configs/digits_advprop.py

A step of the attack follows the sign of the gradient, so what counts is where the signs
agree. Prints one line of JSON for each branch of the last checkpoint, of the first
batch of the evaluation split: the share of agreeing signs, the same weighted by the
gradient's size, and the top-1 in float32 of images attacked in either type.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from advprop_jax import startup

if __name__ == '__main__':
  startup.prepare()

import jax
import jax.numpy as jnp
from absl import app, logging

import main
from advprop_jax import branches, errors, experiment, losses, pixels, train_state
from advprop_jax.attacks import gradient
from advprop_jax.workdir import directory, restore


def compare(model, variables, image, label, attack: dict) -> dict:
  """Returns how gradients and attacks through one branch agree between the two types.

  Args:
    model: maps images to logits; its dtype is replaced.
    variables: of one branch.
    image: float32 [B, H, W, 3] in [0, 1].
    label: int32 [B].
    attack: epsilon, step_size and num_steps, of an untargeted attack from the image.
  """

  @jax.jit
  def in_both(variables, image, label):
    def logits_of(dtype):
      typed = model.clone(dtype=dtype)
      return lambda x: typed.apply(variables, x, train=False)

    logits_fns = [logits_of(dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    grads = [
      jax.grad(lambda x, f=f: losses.cross_entropy(f(x), label).sum())(image)
      for f in logits_fns
    ]
    ifgsm = gradient.make_ifgsm(num_classes=model.num_classes, targeted=False, **attack)
    attacked = [ifgsm(f, image, label, jax.random.key(0)) for f in logits_fns]
    top1 = [
      (model.clone(dtype=jnp.float32).apply(variables, x, train=False).argmax(-1))
      == label
      for x in attacked
    ]
    return grads, top1

  (exact, rounded), (top1_exact, top1_rounded) = in_both(variables, image, label)
  agree = jnp.sign(exact) == jnp.sign(rounded)
  return {
    'images': len(image),
    'sign_agreement': float(agree.mean()),
    'sign_agreement_weighted': float(jnp.where(agree, jnp.abs(exact), 0).sum())
    / float(jnp.abs(exact).sum()),
    'top1_attacked_in_float32': float(top1_exact.mean()),
    'top1_attacked_in_bfloat16': float(top1_rounded.mean()),
  }


def compare_branches(argv):
  """Prints one line for each branch of the newest checkpoint of --workdir."""
  logging.set_verbosity(logging.ERROR)
  config = main.FLAGS.config
  workdir = main.FLAGS.workdir or directory.default_workdir(
    main.FLAGS['config'].config_filename
  )
  exp = experiment.create_experiment(config)
  path = pathlib.Path(workdir) / 'checkpoints'
  with restore.Reader(path.resolve()) as checkpointer:
    if not (steps := checkpointer.steps()):
      raise errors.UserError(f'{workdir} has no checkpoint; train in it first')
    parts, _, _ = checkpointer.restore(steps[-1], exp.abstract_state.parts)
  state = train_state.TrainState.from_parts(parts)
  batch = next(iter(exp.evaluation.cells[config.eval.suites[0]].batches))
  image, label = (batch[key][batch['mask']] for key in ('image', 'label'))
  image = pixels.to_unit(image)
  attack = {
    key: config.eval.attack[key] for key in ('epsilon', 'step_size', 'num_steps')
  }
  for branch in state.norms:
    variables = branches.variables(**state.eval_variables, branch=branch)
    result = compare(exp.model, variables, image, label, attack)
    print(json.dumps({'step': steps[-1], 'branch': branch, **result}))


if __name__ == '__main__':
  try:
    app.run(compare_branches, flags_parser=main.parse_flags)
  except errors.UserError as e:
    sys.exit(f'error: {e}')
