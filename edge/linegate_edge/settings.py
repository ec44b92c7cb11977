"""STATION.toml → one frozen object, read once.

Rules kept here: an unknown key is an error that names the nearest; every limit carries its unit; a relative path is taken
from the folder of STATION.toml. `edge/README.md` documents every key, and a test holds it to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from linegate.settings import Settings, load_toml
from linegate_edge.plc_settings import ModbusTrigger


def _resolve(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str | Path):
        return value
    if "\0" in str(value):
        raise ValueError("a path cannot hold a NUL character")
    folder = (info.context or {}).get("folder", Path())
    try:
        return Path(folder) / Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError("no such user's home folder") from error


def _resolve_address(value: object, info: ValidationInfo) -> object:
    """Resolve what names a file as any path; a device number and an address with a scheme stay as they are."""
    if not isinstance(value, str) or not value or value.isdigit() or "://" in value:
        return value
    return str(_resolve(value, info))


def _as_tuple(value: object) -> object:
    """Let a TOML array become the frozen tuple that strict settings ask for."""
    return tuple(value) if isinstance(value, list) else value


def _check_levels(topic: str) -> str:
    levels = topic.split("/")
    if (
        len(levels) != 5
        or not all(level.strip() for level in levels)
        or any(sign in topic for sign in "+#\0")
        or topic[0] == "$"
    ):
        raise ValueError("expected enterprise/site/area/line/station, five names without '+', '#' or a leading '$'")
    return topic


FilePath = Annotated[Path, BeforeValidator(_resolve)]
Name = Annotated[str, Field(min_length=1, max_length=128)]


class StationSection(Settings):
    """`[station]`: what this inspection point is called, and where it keeps its verdicts."""

    topic: Annotated[str, AfterValidator(_check_levels)]
    store: FilePath = Field(default=Path("var"), validate_default=True)


class ModelSection(Settings):
    """`[model]`: the package, and the threads that run it; `workers = 0` is one a core."""

    package: FilePath
    provider: str = "auto"
    workers: int = Field(default=0, ge=0, le=256)
    threads_per_worker: int = Field(default=1, ge=1, le=256)


class RecipeSection(Settings):
    """`[recipe]`: thresholds of this station, where they differ from the package's."""

    name: Name = "default"
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    undecided_below: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class TriggerSection(Settings):
    """`[trigger]`: what says that a part is here; without it each frame, or each serial, is a part."""

    kind: Literal["free_run", "command"] = "free_run"


Trigger = Annotated[TriggerSection | ModbusTrigger, Field(discriminator="kind")]


class FolderSource(Settings):
    """`[[source]] kind = "folder"`: picture files, judged once each, in the order of their names."""

    kind: Literal["folder"]
    path: FilePath
    camera: Name = "folder"
    watch: bool = True
    settle_ms: int = Field(default=200, ge=0, le=60_000)


class OpenCVSource(Settings):
    """`[[source]] kind = "opencv"`: a video file, an RTSP address or a V4L2 device, every frame a part."""

    kind: Literal["opencv"]
    address: Annotated[Name, BeforeValidator(_resolve_address)]
    camera: Name = "camera"
    reconnect_s: float = Field(default=2.0, gt=0, le=3600)
    max_frames_per_second: float | None = Field(default=None, gt=0, le=10_000)


Source = Annotated[FolderSource | OpenCVSource, Field(discriminator="kind")]


class MqttSection(Settings):
    """`[mqtt]`: the broker to which verdicts go."""

    host: Name = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    protocol: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password_file: FilePath | None = None
    keepalive_s: int = Field(default=15, ge=2, le=3600)
    connect_timeout_s: float = Field(default=5.0, gt=0, le=120)
    ack_timeout_s: float = Field(default=20.0, gt=0, le=600)
    settle_s: float = Field(default=2.0, ge=0, le=3600)
    max_inflight: int = Field(default=64, ge=1, le=1000)
    backoff_max_s: float = Field(default=30.0, gt=0, le=3600)


class EvidenceSection(Settings):
    """`[evidence]`: which frames are kept, and for how long. A part that did not pass is always kept."""

    passed_share: float = Field(default=0.01, ge=0, le=1)
    retention_days: float = Field(default=90, gt=0, le=36_500)
    max_gib: float = Field(default=20, gt=0, le=1_000_000)
    min_free_mib: int = Field(default=512, ge=0)


class HttpSection(Settings):
    """`[http]`: the page, the metrics, and `POST /frames`."""

    host: Name = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    names: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)] = ()
    max_upload_mib: float = Field(default=64, gt=0, le=1024)


class LimitsSection(Settings):
    """`[limits]`: what a frame may be, and how many may wait."""

    max_megapixels: float = Field(default=64, gt=0, le=170)
    queue_frames: int = Field(default=16, ge=1, le=10_000)
    stop_timeout_s: float = Field(default=10, gt=0, le=600)


class StationSettings(Settings):
    """The whole of STATION.toml."""

    station: StationSection
    model: ModelSection
    recipe: RecipeSection = RecipeSection()
    trigger: Trigger = TriggerSection()
    source: Annotated[tuple[Source, ...], BeforeValidator(_as_tuple)] = ()
    mqtt: MqttSection = MqttSection()
    evidence: EvidenceSection = EvidenceSection()
    http: HttpSection = HttpSection()
    limits: LimitsSection = LimitsSection()

    @field_validator("source")
    @classmethod
    def _one_camera_each(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        cameras = [source.camera for source in sources]
        twice = {camera for camera in cameras if cameras.count(camera) > 1}
        if twice:
            raise ValueError(f"each source needs a camera name of its own, twice there: {', '.join(sorted(twice))}")
        return sources


def load_station(path: Path) -> StationSettings:
    """Return the settings in a STATION.toml.

    Raises:
        SettingsError: the file is missing, is no TOML, or has an unknown key or a wrong value; one line says which.
    """
    return load_toml(path, StationSettings)
