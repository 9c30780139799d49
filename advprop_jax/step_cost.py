"""What a training step costs: its arithmetic, and the share of the chips' peak."""

from collections.abc import Callable

from advprop_jax import fast_step
from advprop_jax.models import arithmetic

# Most operations a second of a device, as `jax.devices()[0].device_kind` calls it, in
# bfloat16 with sums in float32, without sparsity. Sources: Google Cloud's pages of the
# TPU generations (of v2 and v3 a device is one of two cores); NVIDIA's data sheets.
PEAK_FLOPS = {
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H200': 989e12,
  'NVIDIA L4': 121e12,
  'NVIDIA L40S': 362e12,
}


def train_flops(config, model) -> float:
  """Returns the operations of a training step for each image of the batch.

  They are those that the method cannot do without, counted from the layers: what
  rematerialisation repeats is not among them. See `models/arithmetic.py`.

  Args:
    config: see `schema.read`.
    model: the network.
  """
  count = arithmetic.count_model(model, config.data.image_size)
  if config.method['name'] == 'fast_advprop':  # Its attack trains, too.
    values = {k: x for k, x in config.method.items() if k != 'name'}
    share = fast_step.Components(**values).adversarial_share
    return arithmetic.train(count, clean=1.0, attacked=share, num_steps=0)
  total = 0.0
  for stream in config.streams:
    attack = stream['attack']
    if attack is None:
      total += arithmetic.train(count, clean=1, attacked=0, num_steps=0)
    else:
      same = config.attack['name']  # Of another kind, nothing of the config's stays.
      base = config.attack if attack.get('name', same) == same else {}
      num_steps = {**base, **attack}.get('num_steps', 1)
      total += arithmetic.train(count, clean=0, attacked=1, num_steps=num_steps)
  return total


def create_meter(
  config, model, *, device_kind: str, num_devices: int
) -> Callable[[float], float] | None:
  """Returns what maps images/s to the model FLOP utilisation, 0 to 1.

  That is the operations that the method needs, over those that the devices could do in
  bfloat16 in the same time. Source: PaLM (Chowdhery et al. 2022), appendix B.

  Args:
    config: see `schema.read`.
    model: the network.
    device_kind: see PEAK_FLOPS; of others the result is None.
    num_devices: that train together.
  """
  peak = PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  share = train_flops(config, model) / (peak * num_devices)
  return lambda images_per_sec: share * images_per_sec
