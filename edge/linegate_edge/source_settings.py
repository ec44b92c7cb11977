"""`[[source]]` of machine-vision cameras.

Rules kept here: what the standards name (SFNC) is named so; the other sources stand in `settings`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from linegate.settings import Settings
from linegate_edge.setting_types import VIEW, FilePath, Name, as_tuple

Whole = Annotated[int, Field(ge=0, le=1_000_000)]


class IndustrialSource(Settings):
    """What all machine-vision cameras can be told."""

    camera: Name = "camera"
    view: Name = VIEW
    device: Annotated[str, Field(max_length=256)] = ""
    trigger: Literal["free_run", "software", "hardware"] = "free_run"
    trigger_line: Name = "Line1"
    answer_ms: float = Field(default=1000.0, gt=0, le=120_000)
    exposure_us: float | None = Field(default=None, gt=0, le=60_000_000)
    gain_db: float | None = Field(default=None, ge=0, le=96)
    region_xywh: Annotated[tuple[Whole, Whole, Whole, Whole], BeforeValidator(as_tuple)] | None = None
    pixel_format: Literal["Mono8", "RGB8", "BGR8"] | None = None
    frames_per_second: float | None = Field(default=None, gt=0, le=100_000)
    timestamps: Literal["host", "camera", "ptp"] = "host"
    ring_frames: int = Field(default=16, ge=1, le=10_000)
    reconnect_s: float = Field(default=2.0, gt=0, le=3600)


class AravisSource(IndustrialSource):
    """`[[source]] kind = "aravis"`: GigE Vision and USB3 Vision by the system's libaravis."""

    kind: Literal["aravis"]
    packet_size: int | None = Field(default=None, ge=576, le=16_000)
    packet_resend: bool = True
    packet_timeout_ms: float = Field(default=20.0, gt=0, le=10_000)


class GenicamSource(IndustrialSource):
    """`[[source]] kind = "genicam"`: any camera with a GenTL producer, by harvesters."""

    kind: Literal["genicam"]
    producer: FilePath | None = None
