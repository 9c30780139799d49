"""Attacks: from images and a model's logits to adversarial images."""
