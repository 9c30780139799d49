"""From records on disk to batches; the only part that runs in TensorFlow."""
