"""The model package, version 1: the only thing that crosses from training to the line.

A folder, or one zip of it: `model.onnx`, `package.json`, `parity.npz`, `card.md`, and what else `package.json` lists.

Rules kept here: every byte is covered by a SHA-256 (`package.json` by its own `digest`, taken over its canonical form
without that field); a package is read whole and checked before any of it is used; it is written beside its place and
then renamed; thresholds lie in `package.json`, never in the graph. Running the model is left to `infer`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from linegate.errors import PackageError
from linegate.settings import describe

SCHEMA_VERSION: Final = 1
MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "package.json"
PARITY_FILE: Final = "parity.npz"
CARD_FILE: Final = "card.md"
SPLIT_FILE: Final = "split.csv"
MAX_PACKAGE_BYTES: Final = 1 << 30

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Model(BaseModel):
    """Base of the parts of `package.json`: frozen and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Model):
    """What the graph takes: uint8 (1, H, W, channels), cut from the frame and resized by the stated rule.

    `roi_xyxy` is the region of interest in fractions of the frame, left, top, right, bottom; None is the whole frame.
    The rule `stretch` resizes the region to `size_wh` whatever its aspect (area average to shrink, linear to grow).
    """

    name: str = "pixels"
    size_wh: tuple[Annotated[int, Field(ge=16, le=8192)], Annotated[int, Field(ge=16, le=8192)]]
    channels: Literal[3] = 3
    colour_order: Literal["RGB"] = "RGB"
    roi_xyxy: tuple[float, float, float, float] | None = None
    resize: Literal["stretch"] = "stretch"

    @field_validator("roi_xyxy")
    @classmethod
    def _inside(cls, roi: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        if roi is not None and not (0 <= roi[0] < roi[2] <= 1 and 0 <= roi[1] < roi[3] <= 1):
            raise ValueError("roi_xyxy must be fractions with 0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1")
        return roi


class OutputSpec(_Model):
    """One output of the graph: its name, fixed shape and meaning."""

    name: str
    shape: tuple[int, ...]
    meaning: str


class Outputs(_Model):
    """The graph's outputs: one score for the frame, and a map (1, h, w) over the region of interest.

    A typed model, which knows K defect classes, also gives `class_scores` (1, K), their probabilities if the part is defective,
    and one or both of `class_map` (1, K, h, w), the same per place, and `detections` (1, N, 6): left, top, right, bottom
    in shares of the region of interest, score 0 … 1, and the class from 0.
    """

    score: OutputSpec
    map: OutputSpec
    class_scores: OutputSpec | None = None
    class_map: OutputSpec | None = None
    detections: OutputSpec | None = None

    def listed(self) -> dict[str, OutputSpec]:
        """Return those that the graph has, by the name of their field."""
        values = {field: getattr(self, field) for field in type(self).model_fields}
        return {field: value for field, value in values.items() if value is not None}


class Thresholds(_Model):
    """Where scores become decisions; `version` counts the changes, `set_by` and `set_at` say who and when.

    A score ≥ `score` fails; one within `undecided_below` under it is undecided. Map pixels ≥ `map` form regions, of
    which those under `min_region_share` of the region of interest are dropped. Detections ≥ `detection` are regions.
    """

    version: int = Field(default=1, ge=1)
    score: Finite
    undecided_below: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    map: Finite
    min_region_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    detection: Annotated[float, Field(ge=0, le=1)] = 0.3
    set_by: str
    set_at: datetime
    calibration: dict[str, Any]


class Dataset(_Model):
    """What the model learned from; `digest` covers the names and bytes of all its images."""

    name: str
    digest: Sha256
    licence: str
    source: str
    split: dict[str, Any]


class Training(_Model):
    """How the model was made, so that it can be made again."""

    settings: dict[str, Any]
    seed: int
    code_version: str
    libraries: dict[str, str]


class Parity(_Model):
    """How far scores, maps and the further outputs may differ from `parity.npz` on the line, absolutely."""

    score_tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    map_tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    other_tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01


class Manifest(_Model):
    """`package.json`, less its `digest`."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?$")
    task: Literal["anomaly", "typed"] = "anomaly"
    labels: tuple[str, ...] = ("good", "defect")
    created_at: datetime
    input: InputSpec
    outputs: Outputs
    thresholds: Thresholds
    dataset: Dataset
    training: Training
    metrics: dict[str, Any]
    parity: Parity
    files: dict[str, Sha256]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        for name in (MODEL_FILE, PARITY_FILE, CARD_FILE):
            if name not in self.files:
                raise ValueError(f"files must list {name}")
        if self.outputs.class_scores is not None and self.outputs.class_scores.shape != (1, len(self.labels) - 1):
            shape = self.outputs.class_scores.shape
            raise ValueError(
                f"class_scores must be (1, {len(self.labels) - 1}) for {len(self.labels) - 1} classes, got {shape}"
            )
        for name in self.files:
            if name == MANIFEST_FILE or PurePosixPath(name).name != name or "\\" in name or name.startswith("."):
                raise ValueError(f"files must be plain names in the package, got {name!r}")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class ParitySamples:
    """Frames with the outputs they must give: pixels uint8 (n, H, W, 3), scores float32 (n,), maps float32 (n, h, w).

    `others` are the further outputs of a typed model by field name, each (n, …).
    """

    pixels: NDArray[np.uint8]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=lambda: MappingProxyType({}))

    def to_bytes(self) -> bytes:
        """Return the samples as the bytes of `parity.npz`."""
        target = io.BytesIO()
        arrays: dict[str, Any] = {"pixels": self.pixels, "scores": self.scores, "maps": self.maps, **self.others}
        np.savez_compressed(target, **arrays)
        return target.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> ParitySamples:
        """Return the samples in the bytes of a `parity.npz`.

        Raises:
            PackageError: it is no such file, or its shapes disagree.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                others = {name: arrays[name] for name in arrays.files if name not in ("pixels", "scores", "maps")}
                samples = ParitySamples(arrays["pixels"], arrays["scores"], arrays["maps"], others)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PackageError(f"{PARITY_FILE} cannot be read: {error}") from error
        count = len(samples.pixels)
        if count == 0 or samples.pixels.ndim != 4 or samples.pixels.dtype != np.uint8:
            raise PackageError(f"{PARITY_FILE}: pixels must be uint8 (n ≥ 1, H, W, 3), got {samples.pixels.shape}")
        if samples.scores.shape != (count,) or samples.maps.shape[:1] != (count,):
            shapes = f"{samples.scores.shape} scores, {samples.maps.shape} maps"
            raise PackageError(f"{PARITY_FILE}: {count} frames need as many scores and maps, got {shapes}")
        for name, values in others.items():
            if values.shape[:1] != (count,):
                raise PackageError(f"{PARITY_FILE}: {count} frames need as many rows of {name}, got {values.shape}")
        return samples


@dataclass(frozen=True, slots=True, eq=False)
class ModelPackage:
    """A package that has been read whole and whose every byte was checked."""

    location: Path
    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]

    @property
    def reference(self) -> str:
        """Name, version and the first 12 digits of the digest, as logs and pages show it."""
        return f"{self.manifest.name} {self.manifest.version} ({self.digest[:12]})"

    @property
    def model(self) -> bytes:
        """The ONNX graph."""
        return self.files[MODEL_FILE]

    @property
    def parity_samples(self) -> ParitySamples:
        """The frames that the line replays at load."""
        try:
            return ParitySamples.from_bytes(self.files[PARITY_FILE])
        except PackageError as error:
            raise PackageError(f"{self.location}: {error}") from error

    @staticmethod
    def load(location: Path) -> ModelPackage:
        """Read and check the package at `location`, a folder or a zip.

        Raises:
            PackageError: it is missing, damaged, incomplete, or of another schema version.
        """
        contents = _read_all(location)
        manifest, digest = _parse_manifest(contents, location)
        for name, expected in manifest.files.items():
            if name not in contents:
                raise PackageError(f"{location}: {name} is missing: copy the whole package again")
            found = hashlib.sha256(contents[name]).hexdigest()
            if found != expected:
                text = f"SHA-256 is {found[:12]}…, package.json says {expected[:12]}…: copy the package again"
                raise PackageError(f"{location}: {name} is damaged: {text}")
        return ModelPackage(location, manifest, digest, {name: contents[name] for name in manifest.files})


def write_package(location: Path, manifest: Manifest, files: Mapping[str, bytes]) -> ModelPackage:
    """Write a package folder at `location` and return it as the line will read it.

    `files` are the contents by name, all but `package.json`; `manifest.files` is filled in from them. An older package
    at `location` is replaced as a whole; anything else there is left alone and refused.

    Raises:
        PackageError: something that is no package is in the way, or the disk refuses.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    manifest = Manifest.model_validate({**manifest.model_dump(), "files": digests})
    if location.exists() and not (location.is_dir() and ((location / MANIFEST_FILE).exists() or not any(location.iterdir()))):
        raise PackageError(f"{location}: exists and is no model package: name another place")
    try:
        location.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{location.name}-", dir=location.parent))
    except OSError as error:
        raise PackageError(f"{location}: the package cannot be written: {error.strerror}") from error
    try:
        staging.chmod(0o755)
        for name, data in {**files, MANIFEST_FILE: _canonical_with_digest(manifest)}.items():
            with (staging / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        ModelPackage.load(staging)
        if location.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{location.name}-old-", dir=location.parent))
            location.rename(retired / "package")
            staging.rename(location)
            shutil.rmtree(retired)
        else:
            staging.rename(location)
    except OSError as error:
        raise PackageError(f"{location}: the package cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ModelPackage.load(location)


def _read_all(location: Path) -> dict[str, bytes]:
    try:
        if location.is_dir():
            sizes = {path.name: path.stat().st_size for path in location.iterdir() if path.is_file()}
            _check_size(location, sum(sizes.values()))
            return {name: (location / name).read_bytes() for name in sizes}
        if location.is_file():
            with zipfile.ZipFile(location) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                _check_size(location, sum(entry.file_size for entry in entries))
                # A zip of the folder and a zip of its contents are both what people make.
                return {PurePosixPath(entry.filename).name: archive.read(entry) for entry in entries}
    except zipfile.BadZipFile as error:
        raise PackageError(f"{location}: neither a package folder nor a whole zip: {error}") from error
    except (OSError, RuntimeError, NotImplementedError) as error:
        raise PackageError(f"{location}: the package cannot be read: {error}") from error
    raise PackageError(f"{location}: no such model package: name a folder or zip that holds {MANIFEST_FILE}")


def _check_size(location: Path, size: int) -> None:
    if size > MAX_PACKAGE_BYTES:
        raise PackageError(f"{location}: {size / 2**20:.0f} MiB is more than a package may have, 1024 MiB")


def _parse_manifest(contents: Mapping[str, bytes], location: Path) -> tuple[Manifest, str]:
    where = f"{location}: {MANIFEST_FILE}"
    raw = contents.get(MANIFEST_FILE)
    if raw is None:
        raise PackageError(f"{where} is missing: this is no model package")
    damaged = "copy the package again; to move a threshold, make a new package or set it in the station file"
    try:
        values = json.loads(raw)
        stated = values.pop("digest")
        schema = values.get("schema_version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise PackageError(f"{where} is damaged: {damaged}") from error
    if schema != SCHEMA_VERSION:
        raise PackageError(f"{where}: schema version {schema!r}, this Linegate reads {SCHEMA_VERSION}: update Linegate")
    if stated != _digest(values) or raw != _encode({**values, "digest": stated}):
        raise PackageError(f"{where} was changed after it was made: {damaged}")
    try:
        return Manifest.model_validate(values), stated
    except ValidationError as error:
        raise PackageError(f"{where}: {describe(error, Manifest)}") from error


def _encode(values: Mapping[str, Any]) -> bytes:
    """Return the canonical bytes of `package.json`: sorted keys, two spaces, UTF-8, one newline at the end."""
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encode(values)).hexdigest()


def _canonical_with_digest(manifest: Manifest) -> bytes:
    values = manifest.model_dump(mode="json")
    if not math.isfinite(values["thresholds"]["score"]):
        raise PackageError("the threshold is not finite: calibrate on good parts")
    return _encode({**values, "digest": _digest(values)})
