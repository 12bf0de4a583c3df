"""Showing what was measured and decided."""
