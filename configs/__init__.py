"""Recipes, one a file; installed as jamsface_jax.configs."""
