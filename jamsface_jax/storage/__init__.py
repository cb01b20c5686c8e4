"""Files whole, locked and checked."""
