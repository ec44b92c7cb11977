"""Linegate's training: data sets → model packages. Nothing here is imported by the line."""
