"""STATION.toml → one frozen object, read once.

Rules kept here: an unknown key is an error that names the nearest; every limit carries its unit; a relative path is taken
from the folder of STATION.toml. `edge/README.md` documents every key, and a test holds it to that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from linegate.settings import Settings, load_toml
from linegate_edge.access_settings import AccessSection
from linegate_edge.plc_settings import ModbusTrigger
from linegate_edge.setting_types import VIEW, FilePath, Name, as_tuple, resolve
from linegate_edge.source_settings import AravisSource, GenicamSource

_SHIFT_BEGIN: Final = re.compile(r"([01]\d|2[0-3]):(00|15|30|45)")


def _resolve_address(value: object, info: ValidationInfo) -> object:
    """Resolve what names a file as any path; a device number and an address with a scheme stay as they are."""
    if not isinstance(value, str) or not value or value.isdigit() or "://" in value:
        return value
    return str(resolve(value, info))


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


def _check_roi(roi: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if not (0 <= roi[0] < roi[2] <= 1 and 0 <= roi[1] < roi[3] <= 1):
        raise ValueError("expected shares of the frame, left < right and top < bottom, from 0 to 1")
    return roi


def _check_shifts(shifts: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(shifts) <= 24 or not all(_SHIFT_BEGIN.fullmatch(begin) for begin in shifts):
        raise ValueError('expected 1 to 24 quarters of an hour, as ["06:00", "14:00", "22:00"]')
    if list(shifts) != sorted(set(shifts)):
        raise ValueError("expected the beginnings of shifts in the order of the day, each once")
    return shifts


def _check_zone(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("no such time zone on this machine: expected one as 'Europe/Berlin'") from None


class StationSection(Settings):
    """`[station]`: what this inspection point is called, where it keeps its verdicts, and how long a part may take."""

    topic: Annotated[str, AfterValidator(_check_levels)]
    store: FilePath = Field(default=Path("var"), validate_default=True)
    deadline_ms: int = Field(default=5_000, ge=10, le=3_600_000)


class ModelSection(Settings):
    """`[model]`: the package, and the threads that run it; `workers = 0` is one a core."""

    package: FilePath | None = None
    provider: str = "auto"
    workers: int = Field(default=0, ge=0, le=256)
    threads_per_worker: int = Field(default=1, ge=1, le=256)
    timeout_ms: int = Field(default=10_000, ge=10, le=3_600_000)


class RecipeSection(Settings):
    """`[recipe]`: thresholds of a station that names its package in `[model]`, where they differ from the package's."""

    name: Name = "default"
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    undecided_below: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class ViewSettings(Settings):
    """`[recipes.NAME.views.VIEW]`: what judges one view of these parts, and how its camera is set."""

    package: FilePath
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    undecided_below: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    roi_xyxy: Annotated[tuple[float, float, float, float], BeforeValidator(as_tuple), AfterValidator(_check_roi)] | None = None
    exposure_us: float | None = Field(default=None, gt=0, le=60_000_000)
    gain_db: float | None = Field(default=None, ge=0, le=96)


class RecipeSettings(Settings):
    """`[recipes.NAME]`: which parts it serves, and its views; every view named must be seen of every part."""

    views: dict[Name, ViewSettings] = Field(min_length=1)
    part_types: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    default: bool = False
    min_failing_views: int = Field(default=1, ge=1, le=64)


class TriggerSection(Settings):
    """`[trigger]`: what says that a part is here; without it each frame, or each serial, is a part."""

    kind: Literal["free_run", "command"] = "free_run"


Trigger = Annotated[TriggerSection | ModbusTrigger, Field(discriminator="kind")]


class FolderSource(Settings):
    """`[[source]] kind = "folder"`: picture files, judged once each, in the order of their names."""

    kind: Literal["folder"]
    path: FilePath
    camera: Name = "folder"
    view: Name = VIEW
    watch: bool = True
    settle_ms: int = Field(default=200, ge=0, le=60_000)


class OpenCVSource(Settings):
    """`[[source]] kind = "opencv"`: a video file, an RTSP address or a V4L2 device, every frame a part."""

    kind: Literal["opencv"]
    address: Annotated[Name, BeforeValidator(_resolve_address)]
    camera: Name = "camera"
    view: Name = VIEW
    reconnect_s: float = Field(default=2.0, gt=0, le=3600)
    max_frames_per_second: float | None = Field(default=None, gt=0, le=10_000)


Source = Annotated[FolderSource | OpenCVSource | AravisSource | GenicamSource, Field(discriminator="kind")]


class MqttSection(Settings):
    """`[mqtt]`: the broker to which verdicts go."""

    host: Name = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    protocol: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password_file: FilePath | None = None
    tls: bool = False
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    keepalive_s: int = Field(default=15, ge=2, le=3600)
    connect_timeout_s: float = Field(default=5.0, gt=0, le=120)
    ack_timeout_s: float = Field(default=20.0, gt=0, le=600)
    settle_s: float = Field(default=2.0, ge=0, le=3600)
    confirm: Literal["broker", "mes"] = "broker"
    confirm_timeout_s: float = Field(default=30.0, gt=0, le=86_400)
    max_inflight: int = Field(default=64, ge=1, le=1000)
    backoff_max_s: float = Field(default=30.0, gt=0, le=3600)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if not self.tls and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError("ca_file, cert_file and key_file are for TLS: set tls = true")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together: give both, or neither")
        return self


class EvidenceSection(Settings):
    """`[evidence]`: which frames are kept, how, and for how long. A part that did not pass is always kept."""

    format: Literal["png", "jpeg"] = "png"
    jpeg_quality: int = Field(default=92, ge=50, le=100)
    passed_share: float = Field(default=0.01, ge=0, le=1)
    retention_days: float = Field(default=90, gt=0, le=36_500)
    max_gib: float = Field(default=20, gt=0, le=1_000_000)
    min_free_mib: int = Field(default=512, ge=0)


class HealthSection(Settings):
    """`[health]`: what a frame must be to be judged at all; a frame that is not makes its part undecided."""

    min_bright_share: float | None = Field(default=0.0005, ge=0, le=1)
    max_saturated_share: float | None = Field(default=0.98, ge=0, le=1)
    max_frozen: int | None = Field(default=3, ge=1, le=1_000_000)
    min_sharpness: float | None = Field(default=None, ge=0, le=1)
    max_shift: float | None = Field(default=None, ge=0, le=1)
    learn_frames: int = Field(default=20, ge=1, le=1000)


class HttpSection(Settings):
    """`[http]`: the page, the metrics, and `POST /frames`."""

    host: Name = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    names: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    max_upload_mib: float = Field(default=64, gt=0, le=1024)


class LimitsSection(Settings):
    """`[limits]`: what a frame may be, and how many may wait."""

    max_megapixels: float = Field(default=64, gt=0, le=170)
    queue_frames: int = Field(default=16, ge=1, le=10_000)
    stop_timeout_s: float = Field(default=10, gt=0, le=600)


class ReviewSection(Settings):
    """`[review]`: shifts, classes, which passed parts people look at beside all that did not pass, what becomes of candidates.

    Folders that are not named lie beside the store.
    """

    shifts: Annotated[tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(_check_shifts)] = ("06:00", "14:00", "22:00")
    time_zone: Annotated[str | None, AfterValidator(_check_zone)] = None
    classes: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    audit_share: float = Field(default=0.0, ge=0, le=1)
    close_share: float = Field(default=0.1, ge=0, le=1)
    models: FilePath | None = None
    datasets: FilePath | None = None
    base: FilePath | None = None
    gate: FilePath | None = None
    approvals: int = Field(default=1, ge=0, le=2)
    max_package_mib: int = Field(default=256, ge=1, le=1024)
    shadow_share: float = Field(default=0.1, gt=0, le=1)


class StationSettings(Settings):
    """The whole of STATION.toml."""

    station: StationSection
    model: ModelSection = ModelSection()
    recipe: RecipeSection = RecipeSection()
    recipes: dict[Name, RecipeSettings] = Field(default_factory=dict)
    trigger: Trigger = TriggerSection()
    source: Annotated[tuple[Source, ...], BeforeValidator(as_tuple)] = ()
    mqtt: MqttSection = MqttSection()
    evidence: EvidenceSection = EvidenceSection()
    health: HealthSection = HealthSection()
    plant_codes: dict[Name, Name] = Field(default_factory=dict)
    http: HttpSection = HttpSection()
    access: AccessSection = AccessSection()
    limits: LimitsSection = LimitsSection()
    review: ReviewSection = ReviewSection()

    @model_validator(mode="after")
    def _one_way_to_name_packages(self) -> Self:
        if not self.recipes and self.model.package is None:
            raise ValueError("no model package is named: give [model] package, or [recipes.NAME.views.VIEW] package")
        if self.recipes and (self.model.package is not None or self.recipe != RecipeSection()):
            raise ValueError("[recipes] and [model] package or [recipe] exclude each other: put the thresholds into [recipes]")
        types = [kind for recipe in self.recipes.values() for kind in recipe.part_types]
        twice = sorted({kind for kind in types if types.count(kind) > 1})
        if twice:
            raise ValueError(f"a part type belongs to one recipe, in several there: {', '.join(twice)}")
        if sum(recipe.default for recipe in self.recipes.values()) > 1:
            raise ValueError("only one recipe can be the default")
        return self

    @property
    def all_recipes(self) -> dict[str, RecipeSettings]:
        """The recipes by name; a station that names its package in `[model]` has one, of one view."""
        if self.recipes:
            return self.recipes
        assert self.model.package is not None  # asked for above
        own = self.recipe
        view = ViewSettings(package=self.model.package, threshold=own.threshold, undecided_below=own.undecided_below)
        return {own.name: RecipeSettings(views={VIEW: view})}

    @property
    def models_folder(self) -> Path:
        """Where candidates are kept."""
        return self.review.models or self.station.store.parent / "models"

    @property
    def datasets_folder(self) -> Path:
        """Where data set versions are."""
        return self.review.datasets or self.station.store.parent / "datasets"

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
