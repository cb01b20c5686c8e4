"""From what people have on disk to ArrayRecord data sets; nothing trains."""
