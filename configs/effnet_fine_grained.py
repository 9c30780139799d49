r"""Fine-grained AdvProp: clean, augmented and adversarial images have a norm each.

  python main.py --config=configs/effnet_fine_grained.py:b0 --workdir=gs://bucket/fine
  python main.py --config=configs/effnet_fine_grained.py:b0,strengths
  python main.py --config=configs/effnet_fine_grained.py:b0,smoke

Of every example the input gives two views of the same crop, with AutoAugment and
without. `strengths`: AdvProp with three adversarial norms instead, one for each of
epsilon 1, 2 and 3 of 255. The sources that we could read have no numbers; they say
that it helps small networks most (AdvProp, on fine-grained disentangled learning).

Attack and recipe are those of the AdvProp config of the same size. Cost: an attack and
three passes an image, AdvProp's plus one; of `strengths` three attacks, of 1, 3 and 4
steps, and four passes. Run: 448 million images (350 epochs); b0: 4.0e18 operations, 3.7
times those of clean images; b3: 2.6e19, 5.0 times; b7: 6.6e20, 6.3 times (counted by
models/arithmetic.py).
"""

from configs import arguments, default, effnet_sizes

STRENGTHS = tuple(
  dict(
    default.ADV,
    name=f'adv_{epsilon}',
    branch=f'adv_{epsilon}',
    attack=effnet_sizes.strength(epsilon),
  )
  for epsilon in (1, 2, 3)
)


def get_config(argument=None):
  size, words = effnet_sizes.parse(argument, allowed=('strengths', 'smoke'))
  config = effnet_sizes.get_config(size)
  config.streams = default.FINE_GRAINED
  if 'strengths' in words:
    config.streams = (default.CLEAN, *STRENGTHS)
  return arguments.finish(config, words)
