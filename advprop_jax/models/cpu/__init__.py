"""Formulations that XLA's CPU backend is fast at; without them all is slower there."""
