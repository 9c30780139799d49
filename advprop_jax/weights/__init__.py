"""Trained networks outside of their training: loaded, and used on any images."""
