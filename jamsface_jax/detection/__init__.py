"""Faces found in photographs, and cut out upright."""
