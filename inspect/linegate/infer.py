"""Frame → Prediction, with onnxruntime.

Rules kept here: the one path from camera pixels to scores, for training's evaluation and the line alike; the provider is
chosen once, reported, and proved by replaying the package's parity samples; one session serves many threads. Deciding is
left to `decide`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from linegate.decide import ViewRecipe
from linegate.errors import PackageError, ParityError, ProviderError
from linegate.package import InputSpec, ModelPackage
from linegate.stages import Frame, Image, PixelFormat, Prediction, Region

PROVIDERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tensorrt": "TensorrtExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "openvino": "OpenVINOExecutionProvider",
        "cpu": "CPUExecutionProvider",
    }
)
"""Names by which people choose a provider, in order of preference."""


def available_providers() -> list[str]:
    """Return the names of the providers that the installed onnxruntime offers, in order of preference."""
    offered = set(onnxruntime.get_available_providers())
    return [name for name, provider in PROVIDERS.items() if provider in offered]


class Inspector:
    """A model package, loaded, proved and ready to judge frames; `predict` may be called from several threads.

    `provider` is one of `PROVIDERS` or `"auto"`, the first of them that works here; `self.provider` says which it is.
    `threads` is how many cores one `predict` uses on the CPU.

    Raises:
        ProviderError: the provider is unknown or not to be had here.
        PackageError: onnxruntime cannot load the graph, or the graph does not fit `package.json`.
        ParityError: the scores differ from the package's by more than its tolerance.
    """

    def __init__(self, package: ModelPackage, provider: str = "auto", threads: int = 1) -> None:
        self.package = package
        self.provider, self._session = _open_session(package, provider, threads)
        manifest = package.manifest
        self._input = manifest.input
        self._output_names = [manifest.outputs.score.name, manifest.outputs.map.name]
        _check_signature(package, self._session)
        self.parity_difference = self._replay_parity()

    @property
    def view_recipe(self) -> ViewRecipe:
        """The thresholds that the package was calibrated to."""
        thresholds = self.package.manifest.thresholds
        return ViewRecipe(thresholds.score, thresholds.undecided_below)

    def predict(self, frame: Frame) -> Prediction:
        """Return what the model says of a frame."""
        started = time.perf_counter()
        pixels, roi = prepare(frame.image, frame.pixel_format, self.package.manifest.input)
        prepared = time.perf_counter()
        score, anomaly_map = self.run(pixels)
        inferred = time.perf_counter()
        regions = self._regions(anomaly_map, roi)
        located = time.perf_counter()
        durations = {
            "prepare": (prepared - started) * 1e3,
            "inference": (inferred - prepared) * 1e3,
            "regions": (located - inferred) * 1e3,
        }
        return Prediction(frame.frame_id, frame.camera, frame.view, score, anomaly_map, roi, frame.size_wh, regions, durations)

    def run(self, pixels: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Return score and anomaly map float32 (h, w) of prepared pixels uint8 (1, H, W, 3)."""
        score, anomaly_map = self._session.run(self._output_names, {self._input.name: pixels})
        return float(score[0]), anomaly_map[0]

    def _regions(self, anomaly_map: NDArray[np.float32], roi_xyxy: tuple[int, int, int, int]) -> tuple[Region, ...]:
        thresholds = self.package.manifest.thresholds
        label = self.package.manifest.labels[-1]
        return find_regions(anomaly_map, thresholds.map, thresholds.min_region_share, roi_xyxy, label)

    def _replay_parity(self) -> float:
        """Replay the package's samples, which also warms the session up; return the greatest score difference."""
        samples, tolerance = self.package.parity_samples, self.package.manifest.parity
        if samples.pixels.shape[1:] != (self._input.size_wh[1], self._input.size_wh[0], self._input.channels):
            raise PackageError(f"{self.package.location}: parity frames of {samples.pixels.shape[1:]} do not fit the input")
        worst = 0.0
        for pixels, expected, expected_map in zip(samples.pixels, samples.scores, samples.maps, strict=True):
            score, anomaly_map = self.run(pixels[np.newaxis])
            if anomaly_map.shape != expected_map.shape:
                raise PackageError(f"{self.package.location}: parity maps do not fit the model's output")
            score_difference = abs(score - float(expected))
            map_difference = float(np.max(np.abs(anomaly_map - expected_map)))
            # Written so that a NaN is refused too.
            if not (score_difference <= tolerance.score_tolerance and map_difference <= tolerance.map_tolerance):
                raise ParityError(
                    f"{self.package.location}: on {self.provider} the score differs by {score_difference:.3g} "
                    f"(tolerated {tolerance.score_tolerance:.3g}) and the map by {map_difference:.3g} "
                    f"(tolerated {tolerance.map_tolerance:.3g}): choose another provider or export for this one"
                )
            worst = max(worst, score_difference)
        return worst


def prepare(image: Image, pixel_format: PixelFormat, spec: InputSpec) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Return a graph's input, uint8 (1, H, W, 3) RGB, and the region of interest in pixels of the frame.

    Training calls it too, before there is a package: what the line sees is what was learned.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = roi = _roi_in_pixels(spec.roi_xyxy, width, height)
    cut: Any = image[top:bottom, left:right]  # OpenCV's stubs know no dtype
    if (right - left, bottom - top) != spec.size_wh:
        shrinks = right - left > spec.size_wh[0] or bottom - top > spec.size_wh[1]
        cut = cv2.resize(cut, spec.size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    # Colour comes after the resize: there are fewer pixels to convert.
    if pixel_format is PixelFormat.MONO8:
        cut = cv2.cvtColor(cut, cv2.COLOR_GRAY2RGB)
    elif pixel_format is PixelFormat.BGR8:
        cut = cv2.cvtColor(cut, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(cut)[np.newaxis], roi


def find_regions(
    anomaly_map: NDArray[np.float32],
    threshold: float,
    min_region_share: float,
    roi_xyxy: tuple[int, int, int, int],
    label: str,
) -> tuple[Region, ...]:
    """Return the 8-connected regions of a map (h, w) at or above `threshold`, the highest score first.

    Boxes are in frame pixels, laid over `roi_xyxy`; regions under `min_region_share` of the map's area are dropped.
    """
    mask = (anomaly_map >= threshold).astype(np.uint8)
    if not mask.any():
        return ()
    count, labelled, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    left, top, right, bottom = roi_xyxy
    height, width = anomaly_map.shape
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    regions = []
    for index in range(1, count):
        x, y, box_width, box_height, area = (int(value) for value in stats[index])
        if area < min_region_share * width * height:
            continue
        inside = labelled[y : y + box_height, x : x + box_width] == index
        score = float(anomaly_map[y : y + box_height, x : x + box_width][inside].max())
        box = (
            left + int(x * scale_x),
            top + int(y * scale_y),
            left + min(right - left, int(np.ceil((x + box_width) * scale_x))),
            top + min(bottom - top, int(np.ceil((y + box_height) * scale_y))),
        )
        regions.append(Region(label, score, box, round(area * scale_x * scale_y)))
    return tuple(sorted(regions, key=lambda region: -region.score))


def _roi_in_pixels(roi: tuple[float, float, float, float] | None, width: int, height: int) -> tuple[int, int, int, int]:
    if roi is None:
        return 0, 0, width, height
    left, top = int(roi[0] * width), int(roi[1] * height)
    return left, top, max(left + 1, round(roi[2] * width)), max(top + 1, round(roi[3] * height))


def _open_session(package: ModelPackage, provider: str, threads: int) -> tuple[str, onnxruntime.InferenceSession]:
    candidates = _candidates(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the cores that cameras, the store and the publisher need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    failures: list[str] = []
    for name in candidates:
        try:
            session = onnxruntime.InferenceSession(package.model, options, providers=[PROVIDERS[name]])
        except Exception as error:  # noqa: BLE001 - onnxruntime raises its own types, none of them documented
            failures.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        # onnxruntime falls back to the CPU in silence when a provider's library does not load.
        if session.get_providers()[0] == PROVIDERS[name]:
            return name, session
        failures.append(f"{name}: onnxruntime fell back to {session.get_providers()[0]}")
    text = "; ".join(failures)
    if provider in ("auto", "cpu"):
        raise PackageError(f"{package.location}: onnxruntime cannot load model.onnx: {text}")
    raise ProviderError(f"provider '{provider}' does not work here: {text}; choose one of: auto, {', '.join(PROVIDERS)}")


def _candidates(provider: str) -> Sequence[str]:
    offered = available_providers()
    if provider == "auto":
        return offered
    if provider not in PROVIDERS:
        raise ProviderError(f"unknown provider '{provider}': choose one of: auto, {', '.join(PROVIDERS)}")
    if provider not in offered:
        raise ProviderError(f"provider '{provider}' is not in the installed onnxruntime, which offers: {', '.join(offered)}")
    return [provider]


def _check_signature(package: ModelPackage, session: onnxruntime.InferenceSession) -> None:
    manifest = package.manifest
    inputs = {item.name: (item.type, tuple(item.shape)) for item in session.get_inputs()}
    outputs = {item.name: (item.type, tuple(item.shape)) for item in session.get_outputs()}
    width, height = manifest.input.size_wh
    expected_input = {manifest.input.name: ("tensor(uint8)", (1, height, width, manifest.input.channels))}
    expected_outputs = {
        spec.name: ("tensor(float)", tuple(spec.shape)) for spec in (manifest.outputs.score, manifest.outputs.map)
    }
    if inputs != expected_input or outputs != expected_outputs:
        raise PackageError(
            f"{package.location}: model.onnx takes {inputs} and gives {outputs}, "
            f"package.json says {expected_input} and {expected_outputs}: export it again"
        )
