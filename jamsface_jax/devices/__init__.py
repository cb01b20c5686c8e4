"""Mesh, processes and compiler."""
