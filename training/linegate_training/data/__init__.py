"""Data sets: the manifest of known ones, readers of their layouts, and splits."""
