"""A data set version: reviewed photographs with their labels, frozen, as the line writes it and training reads it.

    <name>-v<number>-<first 12 of the digest>/
        version.json             this module's `VersionRecord`, with a seal
        images/<sha256>.<ext>    the very bytes that were judged
        masks/<sha256>.png       8-bit grey, 0 or 255, at the image's size

Rules kept here: `digest` is the SHA-256 over the canonical JSON of the items, and every file is named by its own SHA-256, so
one digest stands for all labels, splits and bytes; `seal` is the SHA-256 over version.json with 64 zeros in its place; a
group lies in one split; a version is checked whole before any of it is used. What becomes an item, and in which split, is
left to whoever builds one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from linegate.errors import DataError
from linegate.settings import describe

SCHEMA_VERSION: Final = 1
VERSION_FILE: Final = "version.json"
MANIFEST_FILE: Final = "datasets-manifest.yaml"
"""Lists all versions in a folder of versions; JSON, which is YAML too."""
IMAGES: Final = "images"
MASKS: Final = "masks"
GOOD: Final = "good"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Split = Literal["train", "test"]
Label = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f/\\]{1,64}$")]
VersionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
_UNSEALED: Final = "0" * 64
_SEAL_LINE: Final = f'\n "seal": "{_UNSEALED}"\n}}\n'
_MEND: Final = "copy the version again, or build it anew"


class _Model(BaseModel):
    """Base of the parts of `version.json`: frozen and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VersionBox(_Model):
    """A marked defect: its class, and left, top, right, bottom in pixels of the image, right and bottom exclusive."""

    label: Label
    xyxy: tuple[int, int, int, int]


class VersionItem(_Model):
    """One photograph.

    `image` and `mask` are paths in the version. `group` is the part's serial, or what else must stay in one split. `source`
    tells reviewed parts from those that the first package was made of. `score` and `threshold` are those of the line's
    verdict, `disposition` what the reviewer said of it.
    """

    image: str
    sha256: Sha256
    view: str
    group: str
    verdict_id: str | None = None
    label: Label
    source: Literal["review", "base"]
    disposition: str | None = None
    split: Split
    mask: str | None = None
    boxes: tuple[VersionBox, ...] = ()
    reviewed_at: AwareDatetime | None = None
    reviewed_by: str | None = None
    score: float | None = None
    threshold: float | None = None

    @model_validator(mode="after")
    def _named_by_bytes(self) -> VersionItem:
        folder, _, name = self.image.partition("/")
        if folder != IMAGES or name.partition(".")[0] != self.sha256 or "/" in name or "\\" in name:
            raise ValueError(f"image must be {IMAGES}/<its sha256>.<ext>, got {self.image!r}")
        if self.mask is not None and self.mask != f"{MASKS}/{mask_digest(self)}.png":
            raise ValueError(f"mask must be {MASKS}/<its sha256>.png, got {self.mask!r}")
        return self


class Conflict(_Model):
    """Images left out of both splits until a person settles what they show.

    `people`: judged differently by two people. `bytes`: the same bytes, labelled differently. `near-duplicates`: pictures that
    look the same, labelled differently.
    """

    kind: Literal["people", "bytes", "near-duplicates"]
    images: tuple[Sha256, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    verdict_ids: tuple[str, ...] = ()
    text: str


class NearDuplicates(_Model):
    """Groups that were joined because pictures of them look the same.

    `left_out` are images in neither split, since one of the groups had been learned from before and another one measured on.
    """

    groups: tuple[str, ...]
    split: Split | None
    left_out: tuple[Sha256, ...] = ()
    text: str


class Counts(_Model):
    """How many images of each label lie in each split, and how many in neither."""

    train: dict[str, int]
    test: dict[str, int]
    left_out: int


class VersionRecord(_Model):
    """`version.json`, less its `seal`.

    `parent` is the digest of the version before. `groups` has the split of every group that this version or one before it ever
    placed, for a group never changes sides, not even while all its images are left out.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: VersionName
    number: int = Field(ge=1)
    digest: Sha256
    parent: Sha256 | None
    created_at: AwareDatetime
    created_by: str
    stations: tuple[str, ...]
    note: str
    test_share: float = Field(gt=0, lt=1)
    counts: Counts
    conflicts: tuple[Conflict, ...]
    near_duplicates: tuple[NearDuplicates, ...]
    groups: dict[str, Split]
    items: tuple[VersionItem, ...]

    @model_validator(mode="after")
    def _whole(self) -> VersionRecord:
        if len({item.sha256 for item in self.items}) != len(self.items):
            raise ValueError("an image is listed twice")
        for item in self.items:
            if self.groups.get(item.group) != item.split:
                raise ValueError(f"{item.image} is in {item.split}, its group {item.group!r} in {self.groups.get(item.group)}")
        return self

    @property
    def folder_name(self) -> str:
        """The name of the version's folder."""
        return f"{self.name}-v{self.number}-{self.digest[:12]}"

    @property
    def reference(self) -> str:
        """Name, number and the first 12 digits of the digest, as people read them."""
        return f"{self.name} v{self.number} ({self.digest[:12]})"


@dataclass(frozen=True, slots=True)
class Version:
    """A version as it lies on the disk."""

    folder: Path
    record: VersionRecord

    @staticmethod
    def load(folder: Path, verify: bool = True) -> Version:
        """Read the version in `folder`; `verify` reads and checks every file of it too.

        Raises:
            DataError: it is missing, damaged or changed, or of another schema version; the text names the file.
        """
        path = folder / VERSION_FILE
        record = _read_record(path)
        _refuse_if(items_digest(record.items) != record.digest, path, "the items do not give the digest that it states")
        if verify:
            _check_files(folder, record)
        return Version(folder, record)


def is_version(folder: Path) -> bool:
    """Say whether a folder is meant to be a data set version."""
    return (folder / VERSION_FILE).is_file()


def items_digest(items: Iterable[VersionItem]) -> str:
    """Return the digest of a version: the SHA-256 over the canonical JSON of its items, sorted by image."""
    values = [item.model_dump(mode="json") for item in sorted(items, key=lambda item: item.sha256)]
    return hashlib.sha256(_canonical(values)).hexdigest()


def mask_digest(item: VersionItem) -> str:
    """Return the SHA-256 that a mask's name states; nothing where the item has none."""
    return (item.mask or "").removeprefix(f"{MASKS}/").removesuffix(".png")


def to_bytes(record: VersionRecord) -> bytes:
    """Return a record as the bytes of `version.json`, sealed."""
    values = {**record.model_dump(mode="json"), "seal": _UNSEALED}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    return _sealed(text, _seal(text)).encode()


def _read_record(path: Path) -> VersionRecord:
    try:
        text = path.read_bytes().decode()
        values = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{path.parent}: no data set version here, for there is no {VERSION_FILE}: name its folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}): {_MEND}") from error
    _refuse_if(not isinstance(values, dict), path, "holds no JSON object")
    schema = values.get("schema_version")
    if schema != SCHEMA_VERSION:
        raise DataError(f"{path}: schema_version is {schema!r}, this Linegate reads {SCHEMA_VERSION}: use a Linegate that fits")
    seal = str(values.pop("seal", None))
    unsealed = text.replace(_sealed(_SEAL_LINE, seal), _SEAL_LINE)
    _refuse_if(seal != _seal(unsealed), path, "was changed after it was written: its seal does not fit")
    try:
        # By way of JSON, where lists stand for tuples and texts for times.
        return VersionRecord.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise DataError(f"{path}: {describe(error, VersionRecord)}: {_MEND}") from error


def _check_files(folder: Path, record: VersionRecord) -> None:
    listed = {item.image: item.sha256 for item in record.items}
    listed |= {item.mask: mask_digest(item) for item in record.items if item.mask is not None}
    for name, expected in sorted(listed.items()):
        path = folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{path}: is listed in {VERSION_FILE} and cannot be read ({error.strerror}): {_MEND}") from error
        _refuse_if(found != expected, path, f"was changed: SHA-256 is {found[:12]}…, its name says {expected[:12]}…")
    for kind in (IMAGES, MASKS):
        for path in sorted((folder / kind).glob("*")):
            _refuse_if(f"{kind}/{path.name}" not in listed, path, f"is not listed in {VERSION_FILE}")


def _refuse_if(wrong: bool, path: Path, what: str) -> None:
    if wrong:
        raise DataError(f"{path}: {what}: {_MEND}")


def _seal(unsealed: str) -> str:
    return hashlib.sha256(unsealed.encode("utf-8", "surrogatepass")).hexdigest()


def _sealed(text: str, seal: str) -> str:
    return text.replace(_SEAL_LINE, _SEAL_LINE.replace(_UNSEALED, seal))


def _canonical(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
