"""A trained net → the bytes of `model.onnx`, proved against torch over real parts.

Rules kept here: fixed shapes, one opset, weights stored as fp16 and used as fp32; the same net gives the same bytes; a
graph whose outputs differ from torch's is never written. int8 and fp16 are left to `quantise`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from linegate.errors import ParityError
from linegate.package import ParitySamples
from linegate_training.graphs import open_session, to_bytes

OPSET = 18
INPUT, SCORE, MAP = "pixels", "score", "map"
DETECTIONS = "detections"
TOLERANCE = 1e-4
"""Greatest difference of torch and onnxruntime, as a share of max(1, the largest value beside it)."""
HALF_TOLERANCE = 0.02
"""The same for graphs in fp16, which torch computes in fp32."""
LINE_TOLERANCE = 1e-3
"""The same for the line's replay: other processors and providers sum in another order."""

Arrays: TypeAlias = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ParityProof:
    """How far onnxruntime was from torch over `parts` real parts, as shares of max(1, the largest value)."""

    parts: int
    score: float
    map: float
    others: float = 0.0


def to_onnx(net: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return the graph of a net, its shapes fixed to those of the examples."""
    target = io.BytesIO()
    with warnings.catch_warnings():
        # Notes on tracing and deprecation concern the exporter's authors; what it made is proved elsewhere.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            tuple(examples),
            cast(Any, target),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
        )
    return to_bytes(onnx.load_from_string(target.getvalue()))


def frame_example(size_wh: tuple[int, int]) -> Tensor:
    """Return a black frame uint8 (1, H, W, 3) to export with."""
    return torch.zeros((1, size_wh[1], size_wh[0], 3), dtype=torch.uint8)


def prove(
    expected: Callable[[NDArray[np.uint8]], Arrays],
    model: bytes,
    frames: Iterable[NDArray[np.uint8]],
    threads: int = 1,
    tolerance: float = TOLERANCE,
) -> ParityProof:
    """Compare what torch gives, by name of output, with onnxruntime over prepared frames uint8 (1, H, W, 3).

    Raises:
        ParityError: an output differs by more than `tolerance`, or is not finite.
    """
    session = open_session(model, threads)
    names = [output.name for output in session.get_outputs()]
    parts, worst = 0, dict.fromkeys(names, 0.0)
    for pixels in frames:
        wanted = expected(pixels)
        parts += 1
        for name, found in zip(names, session.run(names, {INPUT: pixels}), strict=True):
            one, other = found, wanted[name]
            if name == DETECTIONS:  # near-equal rows may change places
                one, other = np.sort(one[:, :, 4]), np.sort(other[:, :, 4])
            worst[name] = max(worst[name], _difference(one, other))
    # Written so that a NaN, or a proof over nothing, is refused too.
    if not (parts and all(value <= tolerance for value in worst.values())):
        found_text = ", ".join(f"{name} {value:.3g}" for name, value in worst.items())
        said = f"{found_text} over {parts} parts; allowed {tolerance:g}"
        raise ParityError(f"torch and onnxruntime disagree ({said}): no package was written")
    others = max((value for name, value in worst.items() if name not in (SCORE, MAP)), default=0.0)
    return ParityProof(parts, worst[SCORE], worst[MAP], others)


def _difference(value: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(value - expected).max()) / scale
    return difference if np.isfinite(difference) else float("inf")


def run_graph(model: bytes, frames: Iterable[NDArray[np.uint8]], threads: int = 1) -> dict[str, NDArray[np.float32]]:
    """Return every output of a graph, by name, stacked over frames uint8 (1, H, W, 3)."""
    session = open_session(model, threads)
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {INPUT: pixels}) for pixels in frames]
    return {name: np.concatenate([row[index] for row in rows]) for index, name in enumerate(names)}


def parity_samples(model: bytes, size_wh: tuple[int, int], seed: int, count: int = 4) -> ParitySamples:
    """Return made-up frames with the outputs that onnxruntime gives for them here.

    Gradients, noise of several scales and spots: enough to exercise every layer, and nobody's photographs.
    """
    random = np.random.default_rng(seed)
    pixels = np.stack([_made_up_frame(random, size_wh, index) for index in range(count)])
    outputs = run_graph(model, (one[np.newaxis] for one in pixels))
    others = {name: values for name, values in outputs.items() if name not in (SCORE, MAP)}
    return ParitySamples(pixels, outputs[SCORE], outputs[MAP], others)


def _made_up_frame(random: np.random.Generator, size_wh: tuple[int, int], index: int) -> NDArray[np.uint8]:
    width, height = size_wh
    y, x = np.mgrid[0:height, 0:width] / max(size_wh)
    angle = random.uniform(0, 2 * np.pi)
    grey = 110 + 60 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    for scale in (4, 8, 16, 32):
        coarse = random.normal(0, 8 + 4 * index, (height // scale + 1, width // scale + 1))
        grey += np.kron(coarse, np.ones((scale, scale)))[:height, :width]
    for _ in range(3 * index):
        centre_x, centre_y, radius = random.uniform(0.1, 0.9), random.uniform(0.1, 0.9), random.uniform(0.01, 0.06)
        grey += random.choice([-80, 80]) * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / radius**2)
    tint = random.uniform(0.8, 1.2, 3) if index % 2 else np.ones(3)
    # Multiples of 8 keep the file small; the network does not mind.
    frame: NDArray[np.uint8] = np.clip(grey[..., np.newaxis] * tint, 0, 255).astype(np.uint8)
    return frame & np.uint8(0xF8)
