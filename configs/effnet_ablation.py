r"""AdvProp's comparison of attackers and strengths.

  python main.py --config=configs/effnet_ablation.py:b0,attack=gd,epsilon=2
  python main.py --config=configs/effnet_ablation.py:b0,attack=ifgsm,smoke

`attack=pgd` (the default), `ifgsm`, `fgsm` or `gd`; `epsilon=1` (the default), 2, 3 or
4 of 255, with epsilon + 1 steps, of epsilon 1 with one. Published top-1 in % by
strength, not ours, of PGD (AdvProp, ablation on the attacker's strength; its comparison
of attackers is in none of the sources that we could read):

  epsilon   1     2     3     4
  b0      77.6  77.4  77.3  77.1
  b3      81.8  81.9  81.9  81.8
  b7      85.0  85.0  85.1  85.2

GD has no ball: for it epsilon sets the number of steps alone. FGSM has one step, and no
target. Everything else is the AdvProp config's of the same size. Run: 448 million
images (350 epochs); with epsilon 1, 2, 3 and 4 2.7, 4.0, 4.7 and 5.3 times the
operations of training on clean images, of b0 1.1e18 (counted by models/arithmetic.py).
"""

from configs import arguments, default, effnet_sizes

ATTACKS = {
  'attack=pgd': default.PGD,
  'attack=ifgsm': default.IFGSM,
  'attack=fgsm': default.FGSM,
  'attack=gd': default.GD,
}
EPSILONS = {f'epsilon={i}': i for i in (1, 2, 3, 4)}


def get_config(argument=None):
  size, words = effnet_sizes.parse(argument, allowed=(*ATTACKS, *EPSILONS, 'smoke'))
  attack = arguments.choose(words, 'attack', ATTACKS, default='attack=pgd')
  epsilon = EPSILONS[arguments.choose(words, 'epsilon', EPSILONS, default='epsilon=1')]
  config = effnet_sizes.get_config(size)
  config.attack = ATTACKS[attack]
  values = effnet_sizes.strength(epsilon)
  config.attack.update({key: values[key] for key in values if key in config.attack})
  return arguments.finish(config, words)
