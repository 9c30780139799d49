"""Reads JSON that anybody may have written: whatever is wrong with it, one exception.

What is read is data, and nothing of it is executed.
"""

import itertools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

# Of a file that is read as a whole; those that we write have some megabytes at most.
MAX_BYTES = 2**28
_MAX_DIGITS = 300  # Of a whole number: what a float can be.
_MAX_DEPTH = 50  # Of brackets inside each other; we write ten at most.


class UnreadableError(ValueError):
  """Says in a few words what is wrong: 'is no file', 'is no JSON'."""


def is_file(path) -> bool:
  """Returns whether a path is a file, and no device or pipe, which would not end.

  Args:
    path: of `pathlib` or of `etils.epath`, which may be in a bucket.

  Raises:
    FileNotFoundError: there is nothing.
    OSError: it cannot be told.
  """
  if '://' in os.fspath(path):
    return path.exists()
  return stat.S_ISREG(os.stat(path).st_mode)


def read_bytes(path, max_bytes: int = MAX_BYTES) -> bytes:
  """Returns the content of a file.

  Raises:
    FileNotFoundError: there is nothing.
    UnreadableError: it is no file, cannot be read, or is larger than `max_bytes`.
  """
  try:
    if not is_file(path):
      raise UnreadableError('is no file')
    with path.open('rb') as file:
      content = file.read(max_bytes + 1)
  except FileNotFoundError:
    if os.path.lexists(path):
      raise UnreadableError('is a link to nothing') from None
    raise
  except OSError as e:
    raise UnreadableError(f'cannot be read: {e.strerror or e}') from e
  if len(content) > max_bytes:
    raise UnreadableError(f'has more than {max_bytes} bytes')
  return content


def read_object(path) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Raises:
    FileNotFoundError: there is nothing.
    UnreadableError: it is no file, or holds something else.
  """
  return parse_object(read_bytes(path))


def parse_object(text: bytes | str) -> dict[str, Any]:
  """Returns a JSON object.

  Raises:
    UnreadableError: it is none.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode()
    found = json.loads(text, parse_int=_parse_int)
  except UnreadableError:
    raise
  except UnicodeDecodeError as e:
    raise UnreadableError('is no UTF-8') from e
  except ValueError as e:
    raise UnreadableError('is no JSON') from e
  except RecursionError as e:
    raise UnreadableError('is nested too deeply') from e
  if not isinstance(found, dict):
    raise UnreadableError('is no JSON object')
  _check_values(found)
  return found


def read_lines(path) -> Iterator[dict[str, Any]]:
  """Yields the objects of a file with one on each line; none if there is no file.

  Lines that are none are left out: a run that was killed leaves half of one.

  Raises:
    UnreadableError: it is no file, or cannot be read.
  """
  try:
    content = read_bytes(path, 2**32)
  except FileNotFoundError:
    return
  for line in content.split(b'\n'):
    try:
      yield parse_object(line)
    except UnreadableError:
      continue


def _check_values(found: dict[str, Any]):
  """Raises UnreadableError for what JSON can say and the rest of a program cannot."""
  level: list[Any] = [found]
  for _ in range(_MAX_DEPTH):
    sections = [x for x in level if isinstance(x, dict)]
    values = [value for section in sections for value in section.values()]
    values += [x for items in level if isinstance(items, list) for x in items]
    texts = [x for x in values if isinstance(x, str)]
    for text in itertools.chain(texts, *sections):
      try:
        text.encode('utf-8', 'surrogateescape')  # As Python names files.
      except UnicodeEncodeError:
        raise UnreadableError('has half a character') from None
    level = [x for x in values if isinstance(x, dict | list)]
    if not level:
      return
  raise UnreadableError('is nested too deeply')


def _parse_int(digits: str) -> int:
  if len(digits) > _MAX_DIGITS:
    raise UnreadableError(f'has a number of {len(digits)} digits')
  return int(digits)


def numbers(names: Iterable[str]) -> list[int]:
  """Returns the numbers among some names, as we write them: '7', and not '007', '²'."""
  return sorted(int(x) for x in names if re.fullmatch('0|[1-9][0-9]*', x))
