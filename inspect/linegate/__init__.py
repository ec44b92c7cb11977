"""Linegate's core: the vocabulary of inspection, and inspection itself."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("linegate")
except PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
