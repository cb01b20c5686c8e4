"""From what people have on disk to ArrayRecord data sets; nothing trains."""

import sys

if sys.argv[:1] == ["-m"]:  # Python looks for the module that it shall run.
  from jamsface_jax.commands import refuse_what_is_no_command

  refuse_what_is_no_command(sys.orig_argv)
