"""Others' formats."""
