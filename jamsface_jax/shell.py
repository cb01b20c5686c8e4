"""Commands to type, quoted as a shell wants them."""

import shlex


def command(module: str, *words: str) -> str:
  """The command that runs a module of this project.

  Args:
    module: such as "jamsface_jax.embed".
    words: flags and arguments, each as the program gets it.

  Returns:
    A line for a shell, which hands over these words whatever is in them.
  """
  return shlex.join(["python", "-m", module, *words])
