"""Trains image classifiers with adversarial examples, in JAX and Flax."""
