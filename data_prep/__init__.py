"""From what people have on disk to ArrayRecord data sets; nothing trains."""

import sys

if sys.argv[:1] == ["-m"]:  # Python looks for the module that it shall run.
  from jamsface_jax import interruption

  interruption.end_at_once()  # The first thing, before more is imported.
  from jamsface_jax import commands

  commands.refuse_what_is_no_command(sys.orig_argv)
