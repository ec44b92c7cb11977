"""Frame → Prediction, with onnxruntime.

Rules kept here: the one path from camera pixels to scores, for training's evaluation and the line alike; the provider is
chosen once, reported, and proved by replaying the package's parity samples; one session serves many threads. Deciding is
left to `decide`.
"""

from __future__ import annotations

import math
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


OVERLAP: Final = 0.5
"""Detections of one class that overlap by more (intersection over union) are one."""
AGREEMENT: Final = 0.65
"""Those that overlap the surest of them by more have a say in where its sides are."""


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
        self._outputs = {field: spec.name for field, spec in manifest.outputs.listed().items()}
        _check_signature(package, self._session)
        self.parity_difference = self._replay_parity()

    @property
    def view_recipe(self) -> ViewRecipe:
        """The thresholds that the package was calibrated to."""
        thresholds = self.package.manifest.thresholds
        return ViewRecipe(thresholds.score, thresholds.undecided_below)

    def predict(self, frame: Frame, roi_xyxy: tuple[float, float, float, float] | None = None) -> Prediction:
        """Return what the model says of a frame; `roi_xyxy`, shares of its sides, replaces the package's region of interest."""
        started = time.perf_counter()
        spec = self._input if roi_xyxy is None else self._input.model_copy(update={"roi_xyxy": roi_xyxy})
        pixels, roi = prepare(frame.image, frame.pixel_format, spec)
        prepared = time.perf_counter()
        outputs = self.run(pixels)
        inferred = time.perf_counter()
        anomaly_map = outputs["map"][0]
        regions = self._regions(outputs, roi)
        located = time.perf_counter()
        durations = {
            "prepare": (prepared - started) * 1e3,
            "inference": (inferred - prepared) * 1e3,
            "regions": (located - inferred) * 1e3,
        }
        classes = None
        if "class_scores" in outputs:
            classes = dict(zip(self.package.manifest.labels[1:], map(float, outputs["class_scores"][0]), strict=True))
        score = float(outputs["score"][0])
        return Prediction(
            frame.frame_id, frame.camera, frame.view, score, anomaly_map, roi, frame.size_wh, regions, durations, classes
        )

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the graph's outputs of prepared pixels uint8 (1, H, W, 3), by field of `linegate.package.Outputs`."""
        values = self._session.run(list(self._outputs.values()), {self._input.name: pixels})
        return dict(zip(self._outputs, values, strict=True))

    def _regions(self, outputs: Mapping[str, NDArray[np.float32]], roi_xyxy: tuple[int, int, int, int]) -> tuple[Region, ...]:
        thresholds, names = self.package.manifest.thresholds, self.package.manifest.labels[1:]
        if "detections" in outputs:
            return boxes_to_regions(outputs["detections"][0], thresholds.detection, roi_xyxy, names)
        score_map, class_map = outputs["map"][0], None
        label = names[-1]
        if "class_map" in outputs:
            class_map = outputs["class_map"][0]
        elif "class_scores" in outputs:
            label = names[int(outputs["class_scores"][0].argmax())]
        regions = find_regions(score_map, thresholds.map, thresholds.min_region_share, roi_xyxy, label)
        if class_map is None:
            return regions
        return tuple(_named(region, class_map, roi_xyxy, names) for region in regions)

    def _replay_parity(self) -> float:
        """Replay the package's samples, which also warms the session up; return the greatest score difference."""
        samples, tolerance = self.package.parity_samples, self.package.manifest.parity
        if samples.pixels.shape[1:] != (self._input.size_wh[1], self._input.size_wh[0], self._input.channels):
            raise PackageError(f"{self.package.location}: parity frames of {samples.pixels.shape[1:]} do not fit the input")
        worst = 0.0
        for index, pixels in enumerate(samples.pixels):
            outputs = self.run(pixels[np.newaxis])
            score, expected = float(outputs["score"][0]), float(samples.scores[index])
            score_difference = abs(score - expected)
            map_difference = self._differs(outputs["map"][0], samples.maps[index], "maps")
            other_difference = max(
                (self._differs(_comparable(name, outputs[name][0]), _comparable(name, values[index]), name)
                 for name, values in samples.others.items() if name in outputs),
                default=0.0,
            )  # fmt: skip
            # Written so that a NaN is refused too.
            if not (
                score_difference <= tolerance.score_tolerance
                and map_difference <= tolerance.map_tolerance
                and other_difference <= tolerance.other_tolerance
            ):
                raise ParityError(
                    f"{self.package.location}: on {self.provider} the score differs by {score_difference:.3g} "
                    f"(tolerated {tolerance.score_tolerance:.3g}), the map by {map_difference:.3g} "
                    f"(tolerated {tolerance.map_tolerance:.3g}) and classes by {other_difference:.3g} "
                    f"(tolerated {tolerance.other_tolerance:.3g}): choose another provider or export for this one"
                )
            worst = max(worst, score_difference)
        return worst

    def _differs(self, found: NDArray[np.float32], expected: NDArray[np.float32], what: str) -> float:
        if found.shape != expected.shape:
            raise PackageError(f"{self.package.location}: parity {what} do not fit the model's output")
        return float(np.max(np.abs(found - expected)))


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
    above = anomaly_map >= threshold
    if not above.any():
        return ()
    # With labels of 32 bits OpenCV would go over to threads, which a map of so few cells does not repay.
    kind = cv2.CV_16U if above.size < 2**16 else cv2.CV_32S
    count, labelled, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8, ltype=kind)
    left, top, right, bottom = roi_xyxy
    height, width = anomaly_map.shape
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    regions = []
    for index in range(1, count):
        x, y, box_width, box_height, area = stats[index].tolist()
        if area < min_region_share * width * height:
            continue
        inside = labelled[y : y + box_height, x : x + box_width] == index
        score = cv2.minMaxLoc(anomaly_map[y : y + box_height, x : x + box_width], inside.view(np.uint8))[1]
        box = (
            left + int(x * scale_x),
            top + int(y * scale_y),
            left + min(right - left, int(np.ceil((x + box_width) * scale_x))),
            top + min(bottom - top, int(np.ceil((y + box_height) * scale_y))),
        )
        regions.append(Region(label, score, box, round(area * scale_x * scale_y)))
    return tuple(sorted(regions, key=lambda region: -region.score))


def boxes_to_regions(
    detections: NDArray[np.float32], threshold: float, roi_xyxy: tuple[int, int, int, int], names: Sequence[str]
) -> tuple[Region, ...]:
    """Return detections (N, 6) at or above `threshold` as regions in frame pixels, the highest score first.

    Of boxes of one class that overlap by more than `OVERLAP` only the highest is kept, and its sides are the mean of those
    that agree with it, by their scores ("box voting": Gidaris and Komodakis, 2015). Who votes does not depend on `threshold`.
    """
    scores = detections[:, 4]
    if not (scores >= threshold).any():
        return ()
    left, top, right, bottom = roi_xyxy
    # OpenCV wants corner and size, in pixels.
    scale = np.array([right - left, bottom - top] * 2, np.float32)
    corners = np.clip(detections[:, :4], 0.0, 1.0) * scale
    sizes = np.maximum(corners[:, 2:] - corners[:, :2], 0.0)
    rectangles = np.concatenate([corners[:, :2], sizes], 1)
    classes = detections[:, 5].round().astype(np.int32)
    found = cv2.dnn.NMSBoxesBatched(rectangles.tolist(), scores.tolist(), classes.tolist(), threshold, OVERLAP)
    chosen = np.asarray(found, np.int64).ravel()
    low = np.maximum(corners[chosen, None, :2], corners[None, :, :2])
    high = np.minimum(corners[chosen, None, 2:], corners[None, :, 2:])
    shared, areas = np.maximum(high - low, 0.0).prod(2), sizes.prod(1)
    overlaps = shared / np.maximum(areas[chosen, None] + areas[None] - shared, 1e-6)
    agrees = (overlaps > AGREEMENT) & (classes[chosen, None] == classes[None])
    agrees[np.arange(len(chosen)), chosen] = True
    votes = agrees * np.maximum(scores, 1e-6)
    voted = votes @ corners / votes.sum(1, keepdims=True)
    regions = []
    for index, (x1, y1, x2, y2) in zip(chosen, voted.tolist(), strict=True):
        # Outwards to whole pixels, but for what floats add.
        box = (left + int(x1 + 1e-3), top + int(y1 + 1e-3), left + math.ceil(x2 - 1e-3), top + math.ceil(y2 - 1e-3))
        area = max(1, round((x2 - x1) * (y2 - y1)))
        regions.append(Region(names[classes[index]], float(scores[index]), box, area))
    return tuple(sorted(regions, key=lambda region: -region.score))


def _named(region: Region, class_map: NDArray[np.float32], roi_xyxy: tuple[int, int, int, int], names: Sequence[str]) -> Region:
    """Name a region after the class that is likeliest over its box, in a map (K, h, w)."""
    left, top, right, bottom = roi_xyxy
    scale_x, scale_y = class_map.shape[2] / (right - left), class_map.shape[1] / (bottom - top)
    x1, y1 = int((region.box_xyxy[0] - left) * scale_x), int((region.box_xyxy[1] - top) * scale_y)
    x2 = max(x1 + 1, int(np.ceil((region.box_xyxy[2] - left) * scale_x)))
    y2 = max(y1 + 1, int(np.ceil((region.box_xyxy[3] - top) * scale_y)))
    label = names[int(class_map[:, y1:y2, x1:x2].max((1, 2)).argmax())]
    return Region(label, region.score, region.box_xyxy, region.area_px)


def _comparable(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what providers must agree in: of detections the sorted scores, for near-equal rows may change places."""
    return np.sort(values[:, 4]) if name == "detections" else values


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
    expected_outputs = {spec.name: ("tensor(float)", tuple(spec.shape)) for spec in manifest.outputs.listed().values()}
    if inputs != expected_input or outputs != expected_outputs:
        raise PackageError(
            f"{package.location}: model.onnx takes {inputs} and gives {outputs}, "
            f"package.json says {expected_input} and {expected_outputs}: export it again"
        )
