"""Test sets and their files."""
