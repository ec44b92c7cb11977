"""A trained net → the bytes of `model.onnx`, proved against torch over real parts.

Rules kept here: fixed shapes, one opset, weights stored as fp16 and used as fp32; the same net gives the same bytes; a
graph whose scores differ from torch's is never written.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from linegate.errors import ParityError
from linegate.package import ParitySamples
from linegate_training.models.good_only import GoodOnlyNet

OPSET = 18
INPUT, SCORE, MAP = "pixels", "score", "map"
TOLERANCE = 1e-4
"""Greatest difference of torch and onnxruntime, as a share of max(1, the largest value beside it)."""
LINE_TOLERANCE = 1e-3
"""The same for the line's replay: other processors and providers sum in another order."""
_MIN_HALF_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ParityProof:
    """How far onnxruntime was from torch over `parts` real parts, as shares of max(1, the largest value)."""

    parts: int
    score: float
    map: float


def to_onnx(net: GoodOnlyNet, size_px: int) -> bytes:
    """Return the graph with input `pixels` uint8 (1, H, W, 3) and outputs `score` (1,) and `map` (1, h, w)."""
    example = torch.zeros((1, size_px, size_px, 3), dtype=torch.uint8)
    target = io.BytesIO()
    with warnings.catch_warnings():
        # Notes on tracing and deprecation concern the exporter's authors; what it made is proved below.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            cast(Any, target),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[SCORE, MAP],
        )
    model = onnx.load_from_string(target.getvalue())
    _store_as_half(model.graph)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "linegate", "", ""
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _store_as_half(graph: onnx.GraphProto) -> None:
    """Keep large weights as fp16 with a cast behind them, which onnxruntime folds away at load.

    Only where that changes nothing: the net's matrices were rounded to fp16 before anything was measured.
    """
    casts = []
    for index, tensor in enumerate(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.nbytes < _MIN_HALF_BYTES:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        graph.initializer[index].CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def open_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return a session on the CPU, as the line opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def prove(net: GoodOnlyNet, model: bytes, frames: Iterable[NDArray[np.uint8]], threads: int = 1) -> ParityProof:
    """Compare torch and onnxruntime over prepared frames uint8 (1, H, W, 3).

    Raises:
        ParityError: score or map differs by more than `TOLERANCE`, or is not finite.
    """
    session = open_session(model, threads)
    parts, worst_score, worst_map = 0, 0.0, 0.0
    for pixels in frames:
        score, anomaly_map = session.run([SCORE, MAP], {INPUT: pixels})
        with torch.inference_mode():
            torch_score, torch_map = (output.numpy() for output in net(torch.from_numpy(pixels)))
        parts += 1
        worst_score = max(worst_score, _difference(score, torch_score))
        worst_map = max(worst_map, _difference(anomaly_map, torch_map))
    # Written so that a NaN, or a proof over nothing, is refused too.
    if not (parts and worst_score <= TOLERANCE and worst_map <= TOLERANCE):
        found = f"score {worst_score:.3g}, map {worst_map:.3g} over {parts} parts"
        raise ParityError(f"torch and onnxruntime disagree ({found}; allowed {TOLERANCE:g}): no package was written")
    return ParityProof(parts, worst_score, worst_map)


def _difference(value: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(value - expected).max()) / scale
    return difference if np.isfinite(difference) else float("inf")


def parity_samples(model: bytes, size_px: int, seed: int, count: int = 4) -> ParitySamples:
    """Return made-up frames with the outputs that onnxruntime gives for them here.

    Gradients, noise of several scales and spots: enough to exercise every layer, and nobody's photographs.
    """
    session = open_session(model, 1)
    random = np.random.default_rng(seed)
    pixels = np.stack([_made_up_frame(random, size_px, index) for index in range(count)])
    outputs = [session.run([SCORE, MAP], {INPUT: one[np.newaxis]}) for one in pixels]
    scores = np.concatenate([score for score, _ in outputs])
    maps = np.concatenate([anomaly_map for _, anomaly_map in outputs])
    return ParitySamples(pixels, scores, maps)


def _made_up_frame(random: np.random.Generator, size_px: int, index: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:size_px, 0:size_px] / size_px
    angle = random.uniform(0, 2 * np.pi)
    grey = 110 + 60 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    for scale in (4, 8, 16, 32):
        coarse = random.normal(0, 8 + 4 * index, (size_px // scale + 1, size_px // scale + 1))
        grey += np.kron(coarse, np.ones((scale, scale)))[:size_px, :size_px]
    for _ in range(3 * index):
        centre_x, centre_y, radius = random.uniform(0.1, 0.9), random.uniform(0.1, 0.9), random.uniform(0.01, 0.06)
        grey += random.choice([-80, 80]) * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / radius**2)
    tint = random.uniform(0.8, 1.2, 3) if index % 2 else np.ones(3)
    # Multiples of 8 keep the file small; the network does not mind.
    frame: NDArray[np.uint8] = np.clip(grey[..., np.newaxis] * tint, 0, 255).astype(np.uint8)
    return frame & np.uint8(0xF8)
