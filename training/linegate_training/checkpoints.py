"""The checkpoint of a training: one file, written whole or not at all, refused when it is of something else.

Rules kept here: only tensors and plain values are written and read, so that a checkpoint can run no code; temp file,
fsync, rename. What is in it is the loop's affair (`fit`), but for what a checkpoint is of.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from linegate.errors import LinegateError

CHECKPOINT_FILE: Final = "checkpoint.pt"
FORMAT: Final = 1
"""Raised by one when an older checkpoint can no longer be resumed."""
_LITTLE_BYTES: Final = 1 << 20
"""With less room than this, a file that could not be written had too little of it."""


def write_checkpoint(path: Path, facts: Mapping[str, object], state: Mapping[str, Any]) -> None:
    """Write `state` with the plain `facts` (settings, digests, counts) that a resumed training must agree in.

    Raises:
        LinegateError: it cannot be written.
    """
    save_whole({"format": FORMAT, "facts": dict(facts), "state": dict(state)}, path, "checkpoint")


def save_whole(content: Mapping[str, Any], path: Path, what: str) -> None:
    """Write tensors and plain values to `path`, whole or not at all; `what` names the file to people.

    Raises:
        LinegateError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")  # one name, so that killed runs do not leave many
    try:
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        # torch tells a full disk as a RuntimeError of other words, so the disk itself is asked, before room is made on it.
        full = shutil.disk_usage(path.parent).free < _LITTLE_BYTES
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):
            raise
        why = "the disk is full: make room, or name another folder" if full else str(error)
        raise LinegateError(f"{path}: the {what} cannot be written: {why}") from error


def read_checkpoint(path: Path, facts: Mapping[str, object]) -> dict[str, Any]:
    """Return the state in the checkpoint at `path`, its tensors on the CPU.

    Raises:
        LinegateError: it cannot be read, is of another format version, or differs in a fact; the text names both values.
    """
    mend = "delete it to train from the beginning"
    try:
        with zipfile.ZipFile(path) as archive:  # what torch.save writes; torch.load does not check its sums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        zipfile.BadZipFile,
        pickle.PickleError,
    ) as error:
        reason = str(error).strip().split("\n")[0]
        raise LinegateError(f"{path}: the checkpoint cannot be read ({reason}): {mend}") from error
    if not isinstance(content, dict) or not {"format", "facts", "state"} <= content.keys():
        raise LinegateError(f"{path}: this is no checkpoint of a training: {mend}")
    if content["format"] != FORMAT:
        raise LinegateError(
            f"{path}: the checkpoint is of format version {content['format']}, this Linegate resumes version {FORMAT}: "
            f"resume it with the Linegate that wrote it, or {mend}"
        )
    there: dict[str, object] = content["facts"]
    differing = [key for key in {**there, **facts} if there.get(key) != facts.get(key)]
    if differing:
        words = ", ".join(
            f"{key} {there.get(key, 'not set')!s} there and {facts.get(key, 'not set')!s} here" for key in differing
        )
        raise LinegateError(f"{path}: the checkpoint is of another training: {words}: set them back, or {mend}")
    state: dict[str, Any] = content["state"]
    return state
