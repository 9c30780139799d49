"""Which files are images, by their names; what a file is, its first bytes say."""

# Of what can be read; see `decode.py`.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.jpe', '.png', '.bmp', '.webp')


def is_image(path: str) -> bool:
  """Returns whether a file is an image that can be read, by its name."""
  return path.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
  """Returns whether a file or a folder is never data; `name` without its path."""
  return name.startswith('.')
