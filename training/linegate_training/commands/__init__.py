"""The commands of training, one module each.

Rules kept here: importing them imports neither torch nor anything else that the line does not have, for every `linegate`
command does; a command that needs them and lacks them says how to install them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from linegate.errors import LinegateError

_INSTALL = "pip install 'linegate[training]'"


def load(module: str) -> ModuleType:
    """Return a module of `linegate_training` by its name in it.

    Raises:
        LinegateError: a library that it needs is not installed.
    """
    try:
        return importlib.import_module(f"linegate_training.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "linegate_training":
            raise
        raise LinegateError(f"this command needs {error.name}, which is not installed: {_INSTALL}") from error
