"""What a training step costs: its arithmetic, and the share of the chips' peak."""

from collections.abc import Callable

from advprop_jax.models import arithmetic

# Most operations a second of a device, as `jax.devices()[0].device_kind` calls it, in
# bfloat16 with sums in float32, of dense arrays: what a data sheet gives 'with
# sparsity' is halved.
PEAK_FLOPS = {
  # A device is one of a chip's two cores. Source: Jouppi et al. 2020, 'A domain-
  # specific supercomputer for training deep neural networks'.
  'TPU v2': 46e12 / 2,
  'TPU v3': 123e12 / 2,
  # A device is a chip. Source: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e.
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  # Source: NVIDIA's data sheet of the V100, of float16: it has no bfloat16.
  'Tesla V100-PCIE-16GB': 112e12,
  'Tesla V100-PCIE-32GB': 112e12,
  'Tesla V100-SXM2-16GB': 125e12,
  'Tesla V100-SXM2-32GB': 125e12,
  # Source: NVIDIA's data sheets of the A100, L4, L40S, H100 and H200.
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA L4': 242e12 / 2,
  'NVIDIA L40S': 362.05e12,  # The sheet's number with sparsity is not twice this.
  'NVIDIA H100 PCIe': 1513e12 / 2,
  'NVIDIA H100 NVL': 1671e12 / 2,
  'NVIDIA H100 80GB HBM3': 1979e12 / 2,
  'NVIDIA H200': 1979e12 / 2,
}


def train_flops(method, model, *, image_size: int) -> float:
  """Returns the operations of a training step for each image of the batch.

  They are those that the method cannot do without, counted from the layers: what
  rematerialisation repeats is not among them, nor what belongs to no image (optimizer,
  averages, the mean over devices). See `models/arithmetic.py`.

  Args:
    method: see `methods.Method`.
    model: the network.
    image_size: pixels.
  """
  return method.flops_per_image(arithmetic.count_model(model, image_size))


def create_meter(
  method, model, *, image_size: int, device_kind: str, num_devices: int
) -> Callable[[float], float] | None:
  """Returns what maps images/s to the model FLOP utilisation, 0 to 1.

  That is the operations that the method needs, over those that the devices could do in
  bfloat16 in the same time, whatever type the model computes in. Source: PaLM
  (Chowdhery et al. 2022), appendix B.

  Args:
    method: see `train_flops`, as the next two.
    model: the network.
    image_size: pixels.
    device_kind: see PEAK_FLOPS; of others the result is None.
    num_devices: that train together.
  """
  peak = PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  share = train_flops(method, model, image_size=image_size) / (peak * num_devices)
  return lambda images_per_sec: images_per_sec * share
