"""Photographs of plates that people have reviewed, as the adapter of the review database gives them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from linegate_edge.review.dataset_versions import ReviewedImage

NOON = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)


def plate(seed: int, kind: str = "good", side: int = 128) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a plate (side, side) unlike that of any other seed, perhaps with a defect, and the defect's mask."""
    random = np.random.default_rng(seed)
    coarse = cv2.resize(random.normal(0, 9, (8, 8)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    grey = 110 + coarse + random.normal(0, 3, (side, side))
    mask = np.zeros((side, side), np.uint8)
    at = int(random.integers(side // 4, side // 2)), int(random.integers(side // 4, side // 2))
    if kind == "scratch":
        cv2.line(mask, at, (at[0] + side // 4, at[1] + side // 3), 255, max(2, side // 32))
        grey[mask > 0] -= 80
    elif kind != "good":
        cv2.circle(mask, at, side // 12, 255, -1)
        grey[mask > 0] += 95
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def reviewed(
    folder: Path, seed: int, kind: str = "good", side: int = 128, pixels: NDArray[np.uint8] | None = None, **changed: Any
) -> ReviewedImage:
    """Write a plate as evidence into `folder` and return its review; `changed` are other values of its fields."""
    drawn, mask = plate(seed, kind, side)
    data = cv2.imencode(".png", drawn if pixels is None else pixels)[1].tobytes()
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{digest}.png"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
    values: dict[str, Any] = {
        "path": path, "sha256": digest, "media_type": "image/png", "view": "top", "serial": f"part-{seed:05d}",
        "verdict_id": f"verdict-{seed:05d}", "disposition": "confirmed", "label": kind,
        "reviewed_at": NOON + timedelta(minutes=seed), "reviewed_by": "ada", "mask": None if kind == "good" else mask,
        "score": 0.5, "threshold": 0.8, "station": "acme/press-1",
    }  # fmt: skip
    return ReviewedImage(**{**values, **changed})
