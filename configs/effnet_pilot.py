r"""AdvProp's pilot study: adversarial images only, then fine-tuning on clean ones.

  python main.py --config=configs/effnet_pilot.py:b3 --workdir=gs://bucket/pilot_b3
  python main.py --config=configs/effnet_pilot.py:b3,smoke

Two phases, `phase_0` and `phase_1` of the workdir; the same command resumes in either.
The sources that we could read have no numbers; they say that after the first the
network is worse than by vanilla training, and after the second better (AdvProp, pilot
study). How long the second is, and its
rate, stand in none of the sources: 35 epochs, a tenth, from a tenth of the peak is our
choice. Everything else is the AdvProp config's of the same size, on one shared norm.
Run of b3: 448 million images (350 epochs) and 1.5e19 operations, 3 times those of clean
images; then 45 million (35 epochs) and 5.1e17 (counted by models/arithmetic.py).
"""

from configs import arguments, default, effnet_sizes


def get_config(argument=None):
  size, words = effnet_sizes.parse(argument, allowed=('smoke',))
  config = effnet_sizes.get_config(size)
  fine_tuning = dict(default.COSINE, learning_rate=0.0016, warmup_epochs=0.0)
  config.phases = (
    {'streams': default.ADVERSARIAL_ONLY},
    {
      'streams': default.VANILLA,
      'num_epochs': 35.0,
      'optim': {'schedule': fine_tuning},
    },
  )
  return arguments.finish(config, words)
