"""From what people have on disk to ArrayRecord data sets; nothing trains."""

# Sees to Ctrl-C and to what is no command, before anything else is imported.
import jamsface_jax as jamsface_jax
