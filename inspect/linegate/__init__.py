"""Linegate's core: the vocabulary of inspection, and inspection itself."""

import os
from importlib.metadata import PackageNotFoundError, version

# Before anything imports onnxruntime: on a line nothing calls home, and nothing is written to a home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("linegate")
except PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
