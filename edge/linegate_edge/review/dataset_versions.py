"""Reviewed images → a data set version on the disk, frozen, in the form of `linegate.dataset_version`.

Rules kept here: a version appears whole or not at all (temporary folder, fsync, rename), and its files are read-only; the same
content is the same version and is not made twice; one builder at a time; the list of versions is made from the versions. What
is a picture is left to `dataset_pictures`, where it goes to `dataset_split`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from linegate.dataset_version import (
    IMAGES,
    MANIFEST_FILE,
    MASKS,
    VERSION_FILE,
    Counts,
    Version,
    VersionItem,
    VersionName,
    VersionRecord,
    is_version,
    items_digest,
    to_bytes,
)
from linegate.errors import DataError
from linegate_edge.durable import sync_folder
from linegate_edge.review.dataset_pictures import Gathered, Picture, ReviewedImage, gather
from linegate_edge.review.dataset_split import Placed, own_group, place

__all__ = ["ReviewedImage", "build_version", "list_versions"]

_LOCK_FILE: Final = ".lock"
_LISTED: Final = ("name", "number", "digest", "parent", "created_at", "created_by", "stations", "note", "counts")
_READ_ONLY: Final = 0o444
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def build_version(
    reviewed: Iterable[ReviewedImage],
    out: Path,
    *,
    name: str,
    base: Path | None = None,
    parent: Path | None = None,
    created_by: str,
    test_share: float = 0.3,
    note: str = "",
    settled: Collection[str] = (),
) -> Version:
    """Make a version of what was reviewed in the folder of versions `out`, and return it; or the one there is of that content.

    `base` is a folder in MVTec AD layout, the photographs that the first package was made of: what lies in its train is learned
    from, what lies in its test measured on. `parent` is the version before: what it has and `reviewed` lacks is taken over, and
    its groups keep their splits. `settled` are SHA-256 of images whose labels a person has confirmed though other images that
    look the same have another one.

    Raises:
        DataError: nothing is reviewed, an image, mask or box is wrong, or the disk is full; nothing is left half-written.
    """
    _check_arguments(name, test_share)
    before = None if parent is None else Version.load(parent)
    gathered = gather(reviewed, base, before)
    placed = place(gathered, {} if before is None else before.record.groups, test_share, settled)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            found = list_versions(out)
            items, masks = _items(gathered, placed)
            digest = items_digest(items)
            record = VersionRecord(
                name=name,
                number=1 + max((version.record.number for version in found if version.record.name == name), default=0),
                digest=digest,
                parent=None if before is None else before.record.digest,
                created_at=datetime.now(UTC).replace(microsecond=0),
                created_by=created_by,
                stations=gathered.stations,
                note=note,
                test_share=test_share,
                counts=_counts(items, len(gathered.pictures)),
                conflicts=placed.conflicts,
                near_duplicates=placed.near_duplicates,
                groups=dict(sorted(placed.groups.items())),
                items=tuple(items),
            )
            for version in found:
                if _says_the_same(version.record, record):
                    return Version.load(version.folder)
            made = _write(out, record, gathered, masks)
            _write_manifest(out, [*found, made])
            return made
    except OSError as error:
        raise _refused(out, error) from error


def list_versions(out: Path) -> list[Version]:
    """Return the versions in a folder by name and number, their records checked and their files not.

    Raises:
        DataError: one of them was changed.
    """
    folders = [folder for folder in out.glob("*-v*-*") if not folder.name.startswith(".") and is_version(folder)]
    found = [Version.load(folder, verify=False) for folder in folders]
    return sorted(found, key=lambda version: (version.record.name, version.record.number))


def _check_arguments(name: str, test_share: float) -> None:
    try:
        TypeAdapter(VersionName).validate_python(name)
    except ValidationError:
        raise DataError(f"name {name!r}: use a-z, 0-9, '_', '.', '-', beginning with a letter or digit") from None
    if re.search(r"-v\d+-", f"{name}-"):
        raise DataError(f"name {name!r}: looks like a version of its own: leave the number out")
    if not 0 < test_share < 1:
        raise DataError(f"test_share {test_share:g}: give a share between 0 and 1, as 0.3")


def _says_the_same(one: VersionRecord, other: VersionRecord) -> bool:
    """Say whether two versions have the same items, and wait for people with the same."""
    same_items = one.name == other.name and one.digest == other.digest
    return same_items and (one.conflicts, one.near_duplicates, one.groups) == (
        other.conflicts, other.near_duplicates, other.groups,
    )  # fmt: skip


def _items(gathered: Gathered, placed: Placed) -> tuple[list[VersionItem], dict[str, bytes]]:
    """Return the items in order of their images, and the masks by their paths."""
    items, masks = [], {}
    for digest, split in sorted(placed.splits.items()):
        picture = gathered.pictures[digest]
        mask = None
        if picture.mask is not None:
            mask = f"{MASKS}/{hashlib.sha256(picture.mask).hexdigest()}.png"
            masks[mask] = picture.mask
        try:
            items.append(
                VersionItem(
                    image=f"{IMAGES}/{digest}{picture.suffix}", sha256=digest, view=picture.view,
                    group=own_group(picture, split, placed.groups), verdict_id=next(iter(picture.verdict_ids), None),
                    label=picture.label, source=picture.source, disposition=picture.disposition, split=split, mask=mask,
                    boxes=picture.boxes, reviewed_at=picture.reviewed_at, reviewed_by=picture.reviewed_by,
                    score=picture.score, threshold=picture.threshold,
                )
            )  # fmt: skip
        except ValidationError as error:
            detail = error.errors()[0]
            where = ".".join(str(one) for one in detail["loc"])
            said = f"{where} is {detail['input']!r}: {detail['msg']}"
            raise DataError(f"{picture.path} (part {picture.groups[0]}): {said}: review it again") from error
    return items, masks


def _counts(items: Iterable[VersionItem], pictures: int) -> Counts:
    counted = Counter((item.split, item.label) for item in items)
    labels = sorted({label for _, label in counted}, key=lambda label: (label != "good", label))
    by_split: dict[str, Any] = {
        split: {label: counted[split, label] for label in labels if counted[split, label]} for split in ("train", "test")
    }
    return Counts(**by_split, left_out=pictures - counted.total())


def _write(out: Path, record: VersionRecord, gathered: Gathered, masks: dict[str, bytes]) -> Version:
    place_of = out / record.folder_name
    staging = Path(tempfile.mkdtemp(prefix=f".{record.folder_name}-", dir=out))
    try:
        staging.chmod(0o755)
        for kind in (IMAGES, MASKS):
            (staging / kind).mkdir()
        for item in record.items:
            _place_image(gathered.pictures[item.sha256], staging / item.image)
        for name, data in masks.items():
            _write_file(staging / name, data)
        _write_file(staging / VERSION_FILE, to_bytes(record))
        for folder in (staging / IMAGES, staging / MASKS, staging):
            sync_folder(folder)
        version = Version.load(staging)
        staging.rename(place_of)
        sync_folder(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Version(place_of, version.record)


def _place_image(picture: Picture, target: Path) -> None:
    if picture.path.parent.name == IMAGES and is_version(picture.path.parents[1]):
        try:
            # A file of the version before is frozen as this one is: a second name costs no space.
            os.link(picture.path, target)
            return
        except OSError:
            pass  # another file system, or one without links
    _write_file(target, picture.path.read_bytes())


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(_READ_ONLY)


def _write_manifest(out: Path, versions: Iterable[Version]) -> None:
    listed = [
        {
            "folder": version.folder.name,
            **version.record.model_dump(
                mode="json", include={"name", "number", "digest", "parent", "created_at", "created_by"}
            ),
            **version.record.model_dump(mode="json", include={"stations", "note", "counts"}),
            "conflicts": len(version.record.conflicts),
        }
        for version in versions
    ]
    text = json.dumps({"schema_version": 1, "versions": listed}, ensure_ascii=False, indent=1) + "\n"
    descriptor, temporary = tempfile.mkstemp(prefix=f".{MANIFEST_FILE}-", dir=out)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(out / MANIFEST_FILE)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Wait until no other builder is at work in the folder, and keep others out."""
    with (out / _LOCK_FILE).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in out.glob(".*-v*-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a builder that was killed
        yield


def _refused(out: Path, error: OSError) -> DataError:
    if error.errno in _FULL:
        free = shutil.disk_usage(out).free / 2**20
        return DataError(f"{out}: the disk is full ({free:.0f} MiB free), no version was made: make room, and try again")
    where = error.filename or out
    return DataError(f"{where}: the version cannot be written ({error.strerror}): look at the folder's rights")
