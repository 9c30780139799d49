r"""The other control: clean and adversarial images share one norm (AdvProp, fig. 5).

  python main.py --config=configs/effnet_adversarial_training.py:b7 \
      --workdir=gs://bucket/adversarial_training_b7
  python main.py --config=configs/effnet_adversarial_training.py:b7,alpha=0.5
  python main.py --config=configs/effnet_adversarial_training.py:b7,smoke

With `alpha` the loss is alpha * J(clean) + (1 - alpha) * J(adversarial), alpha 0.1 to
0.9; without it the sum of both.
Attack, recipe and cost are those of the AdvProp config of the same size. Accuracies are
published as a figure only: below AdvProp's, most of all for small networks.
"""

from configs import arguments, default, effnet_sizes


def get_config(argument=None):
  size, words = effnet_sizes.parse(argument, allowed=(*arguments.ALPHAS, 'smoke'))
  config = effnet_sizes.get_config(size)
  config.streams = default.ADVERSARIAL_TRAINING
  if words & arguments.ALPHAS.keys():
    alpha = arguments.choose(words, 'alpha', arguments.ALPHAS)
    config.streams = default.alpha_weighted(arguments.ALPHAS[alpha])
  return arguments.finish(config, words)
