"""The types that settings are made of: paths, names, arrays.

Rules kept here: a relative path is taken from the folder of the file that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, ValidationInfo

VIEW: Final = "main"
"""The view of a camera, and of a package, that names none."""


def resolve(value: object, info: ValidationInfo) -> object:
    """Take a relative path from the folder of the settings file."""
    if not isinstance(value, str | Path):
        return value
    if "\0" in str(value):
        raise ValueError("a path cannot hold a NUL character")
    folder = (info.context or {}).get("folder", Path())
    try:
        return Path(folder) / Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError("no such user's home folder") from error


def as_tuple(value: object) -> object:
    """Let a TOML array become the frozen tuple that strict settings ask for."""
    return tuple(value) if isinstance(value, list) else value


FilePath = Annotated[Path, BeforeValidator(resolve)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
