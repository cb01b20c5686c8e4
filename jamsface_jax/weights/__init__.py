"""Others' files of weights."""
