"""Networks judged."""
