"""The sections of the page, each from the records of the runs on it."""
