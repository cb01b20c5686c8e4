"""Moving away what is not what its name says, without losing it."""

import os

ENDING = ".set_aside"


def set_aside(path: str, ending: str = ENDING) -> str:
  """Gives a file or directory another name beside it.

  Args:
    path: what is moved; of a link the link.
    ending: of the new name; a number follows if that is taken.

  Returns:
    The new path.

  Raises:
    OSError: the file system refuses.
  """
  aside, number = path + ending, 1
  while os.path.lexists(aside):
    number += 1
    aside = f"{path}{ending}.{number}"
  os.rename(path, aside)
  return aside
