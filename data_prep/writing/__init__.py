"""How data sets are written."""
