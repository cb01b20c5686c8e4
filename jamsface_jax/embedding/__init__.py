"""From a network to vectors."""
