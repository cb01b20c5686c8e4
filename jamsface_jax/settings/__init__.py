"""Sections, defaults, variants, flags."""
