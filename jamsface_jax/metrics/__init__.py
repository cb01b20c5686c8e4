"""From scores to figures, in NumPy alone."""
