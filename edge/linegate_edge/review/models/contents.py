"""A package as it comes, a folder, a zip or a training run → its files in memory, read with suspicion.

Rules kept here: nothing is unpacked to disk by the names that a zip gives; no more is read than the limit says, whatever the
zip promises; what is no plain file, or lies outside, is refused in one line. Whether the files make a package is left to the
core.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from linegate.comparison import COMPARISON_FILE, DIFFERENCES
from linegate.errors import PackageError
from linegate.package import MANIFEST_FILE

PACKAGE_FOLDER: Final = "package"
RUN_FOLDERS: Final = ("candidate", PACKAGE_FOLDER)
"""Where the package lies in a run's folder: as `linegate retrain` names it, or as the shelf does."""
PICTURE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.(?:jpg|png)")
MAX_PICTURES: Final = 500
_MAX_ENTRIES: Final = 4096
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Contents:
    """What was brought: the package's files by name, and, where it comes from a run, its comparison and pictures."""

    package: Mapping[str, bytes]
    comparison: bytes | None
    pictures: Mapping[str, bytes]


def read_contents(location: Path, max_bytes: int, called: str | None = None) -> Contents:
    """Read a package folder, a run's folder that holds `package/`, or one zip of either; `called` names it in errors.

    Raises:
        PackageError: it is none, larger than `max_bytes`, or a zip that must not be trusted.
    """
    name = called or str(location)
    try:
        if location.is_dir():
            return _gather(name, _files_of(location), max_bytes)
        if location.is_file():
            with zipfile.ZipFile(location) as archive:
                return _gather(name, _entries_of(name, archive), max_bytes)
    except zipfile.BadZipFile as error:
        raise PackageError(f"{name}: neither a package folder nor a whole zip: {error}") from error
    except (OSError, RuntimeError, NotImplementedError, zlib.error, EOFError, ValueError) as error:
        raise PackageError(f"{name}: the package cannot be read: {error}") from error
    raise PackageError(f"{name}: no such model package: name a folder or zip that holds {MANIFEST_FILE}")


_Readable = dict[PurePosixPath, tuple[int, Callable[[], bytes]]]
"""Size and reader of each file, by its path inside."""


def _files_of(folder: Path) -> _Readable:
    found: _Readable = {}
    for inner in ("", *RUN_FOLDERS, DIFFERENCES):
        for path in sorted((folder / inner).iterdir()) if (folder / inner).is_dir() else ():
            if path.is_file() and not path.is_symlink():
                found[PurePosixPath(inner, path.name)] = path.stat().st_size, path.read_bytes
    return found


def _entries_of(name: str, archive: zipfile.ZipFile) -> _Readable:
    found: _Readable = {}
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > _MAX_ENTRIES:
        raise PackageError(f"{name}: the zip has {len(entries)} files, more than {_MAX_ENTRIES}: this is no model package")
    for entry in entries:
        path, shown = PurePosixPath(entry.filename), entry.filename[:80]
        outside = path.is_absolute() or ".." in path.parts or "\\" in entry.orig_filename or ":" in entry.filename
        if outside or "\0" in entry.orig_filename or not path.parts:
            raise PackageError(f"{name}: the zip names {shown!r}, a place outside of itself: it is refused")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise PackageError(f"{name}: {shown!r} in the zip is no plain file: it is refused")
        if entry.flag_bits & 1:
            raise PackageError(f"{name}: {shown!r} in the zip is encrypted: zip it without a password")
        if entry.compress_type not in _COMPRESSIONS:
            raise PackageError(f"{name}: {shown!r} in the zip is compressed in a rare way: zip it with deflate")
        if path in found:
            raise PackageError(f"{name}: the zip has {shown!r} twice: it is refused")
        found[path] = entry.file_size, _reader(archive, entry)
    return found


def _reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], bytes]:
    # zipfile reads no more than the size that the entry states, and checks its CRC.
    return lambda: archive.read(entry)


def _gather(name: str, files: _Readable, max_bytes: int) -> Contents:
    manifests = [path for path in files if path.name == MANIFEST_FILE and len(path.parts) <= 3]
    if not manifests:
        raise PackageError(f"{name}: {MANIFEST_FILE} is missing: this is no model package")
    if len(manifests) > 1:
        raise PackageError(f"{name}: holds {len(manifests)} packages: bring them one by one")
    root = manifests[0].parent
    base = root.parent if root.name in RUN_FOLDERS else root
    package = {
        path: entry
        for path, entry in files.items()
        if path.parent == root and path.name != COMPARISON_FILE and not path.name.startswith(".")
    }
    pictures = {
        path: entry for path, entry in files.items() if path.parent == base / DIFFERENCES and PICTURE_NAME.fullmatch(path.name)
    }
    comparison = files.get(base / COMPARISON_FILE)
    wanted = [*package.values(), *pictures.values(), *([comparison] if comparison is not None else [])]
    size = sum(entry[0] for entry in wanted)
    if size > max_bytes:
        limit = f"{max_bytes / 2**20:.0f} MiB: see [review] max_package_mib"
        raise PackageError(f"{name}: {size / 2**20:.0f} MiB unpacked is more than a package may have, {limit}")
    if len(pictures) > MAX_PICTURES:
        raise PackageError(f"{name}: {len(pictures)} pictures of differences are more than {MAX_PICTURES}")
    return Contents(
        {path.name: read() for path, (_, read) in package.items()},
        None if comparison is None else comparison[1](),
        {path.name: read() for path, (_, read) in pictures.items()},
    )
