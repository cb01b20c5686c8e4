"""Faces that are drawn."""
