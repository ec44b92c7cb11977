"""`model.onnx` in fp32 → in int8 for processors or in fp16 for GPUs, and whether that one is kept.

Rules kept here: ranges come from real frames; only the convolutional trunk changes its arithmetic, the heads behind it
compute in fp32; the same graph and frames give the same bytes; inputs and outputs keep names, types and shapes; a graph
that is not both as good and faster is not kept. How good it is, is measured by others, through the line's own inspection.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from linegate.errors import DataError, PackageError
from linegate_training.graphs import CONVOLUTIONS, Frame, open_session, simplified, to_bytes, trunk

MAX_AUROC_DROP = 0.003
"""An int8 graph whose image AUROC falls by more is not kept."""
CALIBRATION_FRAMES = 64
"""So many good frames are enough to set ranges from."""
COVERED = 0.9999
"""The share of a tensor's values that its range covers; the rest saturate, which leaves finer steps for all others."""
MAX_TIME_SHARE = 0.95
"""An int8 graph that takes more than this share of fp32's time is not faster: so much is within a measurement's noise."""
_THIN_CHANNELS = 4
"""Convolutions of so few input channels (the camera's) stay fp32: int8 is no faster there, and costs precision."""
_HALF_JOINTS = ("HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Sigmoid")


def quantise(
    model: bytes,
    frames: Iterable[Frame],
    *,
    weight_bits: Literal[7, 8] = 7,
    keep: Collection[str] = (),
) -> bytes:
    """Return the graph with the convolutions of its trunk in int8, ranges set from frames uint8 (1, H, W, 3).

    Weights are int8 per output channel, activations uint8. With 7 bits of weight the sums of processors without VNNI
    cannot saturate, so that every processor computes the same; `keep` names nodes that stay in fp32.

    Raises:
        DataError: there are no frames, or they do not fit the input.
        PackageError: the graph has no convolution to quantise, or its weights or activations are not finite.
    """
    plain = simplified(model)
    _refuse_infinite_weights(plain.graph)
    chosen = trunk(plain.graph, keep={*keep, *_thin(plain.graph), *_last(plain.graph)})
    types = {node.name: node.op_type for node in plain.graph.node}
    if not any(types[name] in CONVOLUTIONS for name in chosen):
        raise PackageError("nothing to quantise: the graph has no convolution between its first and its last: keep it in fp32")
    ranges = _ranges(plain, chosen, frames)
    quantizer = QDQQuantizer(
        plain,
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=quantization.QuantType.QInt8,
        # Eight bits without a sign times eight with one is what processors multiply fastest.
        activation_qType=quantization.QuantType.QUInt8,
        tensors_range=TensorsData(quantization.CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=chosen,
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({types[name] for name in chosen}),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return to_bytes(quantizer.model.model)


def _thin(graph: onnx.GraphProto) -> list[str]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and 1 < shapes.get(node.input[1], (0, 0))[1] <= _THIN_CHANNELS
        and all(attribute.i == 1 for attribute in node.attribute if attribute.name == "group")
    ]


def _last(graph: onnx.GraphProto) -> list[str]:
    """Name the convolutions that lead to no other one: what they say goes to the heads.

    They stay fp32, for ranges set from good frames would cut off just what defects say louder.
    """
    inside = set(trunk(graph))
    leading: set[str] = set()
    last = []
    for node in reversed(graph.node):
        if node.name not in inside:
            continue
        if node.op_type in CONVOLUTIONS and not leading.intersection(node.output):
            last.append(node.name)
        if node.op_type in CONVOLUTIONS or leading.intersection(node.output):
            leading.update(node.input)
    return last


def _refuse_infinite_weights(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            # Limits of a clip may be infinite; weights may not.
            values = numpy_helper.to_array(tensor)
            if values.size > 1 and not np.isfinite(values).all():
                raise PackageError(f"the weights {tensor.name} are not finite: train again")


def _ranges(plain: onnx.ModelProto, chosen: Collection[str], frames: Iterable[Frame]) -> dict[str, TensorData]:
    """Return the range of every tensor at the chosen nodes: the mean over frames of the limits that cover `COVERED`."""
    wanted = set(chosen)
    constants = {tensor.name for tensor in plain.graph.initializer}
    nodes = [node for node in plain.graph.node if node.name in wanted]
    floats = {value.name for value in plain.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    floats |= {name for node in nodes for name in node.output}
    near = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    names = [name for name in near if name in floats and name not in constants]
    probe = onnx.ModelProto()
    probe.CopyFrom(plain)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = open_session(probe.SerializeToString(), 1)
    (taken,) = session.get_inputs()
    limits = []
    for frame in frames:
        if frame.dtype != np.uint8 or list(frame.shape) != taken.shape:
            raise DataError(f"a calibration frame must be uint8 {tuple(taken.shape)}, got {frame.dtype} {frame.shape}")
        limits.append([_covering(values) for values in session.run(names, {taken.name: frame})])
    if not limits:
        raise DataError("no frames to set the ranges of int8 from: give some good parts, 64 are enough")
    means = np.mean(np.array(limits), axis=0)
    for name, limit in zip(names, means, strict=True):
        if not np.isfinite(limit).all():
            raise PackageError(f"the net gives numbers that are not finite at {name}: train again")
    return {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in zip(names, means, strict=True)
    }


def _covering(values: NDArray[np.float32]) -> tuple[float, float]:
    flat = values.reshape(-1)
    if not np.isfinite(flat).all():
        return float("nan"), float("nan")
    last = len(flat) - 1
    low, high = round((1.0 - COVERED) * last), round(COVERED * last)
    ordered = np.partition(flat, (low, high))
    return float(ordered[low]), float(ordered[high])


def rounding_difference(model: bytes, frames: Iterable[Frame]) -> dict[str, float]:
    """Return by output how far an int8 graph comes from itself computed in fp32 with the same steps, at most.

    A value halfway between two steps may go either way, and what stands behind it follows. So far, then, may a provider
    with other arithmetic differ without fault: the line's parity tolerance must not be narrower.

    Raises:
        DataError: there are no frames.
    """
    fused, stepwise = open_session(model), open_session(model, fuse=False)
    names = [output.name for output in fused.get_outputs()]
    (taken,) = fused.get_inputs()
    worst: dict[str, float] = {}
    for frame in frames:
        pairs = zip(names, fused.run(names, {taken.name: frame}), stepwise.run(names, {taken.name: frame}), strict=True)
        for name, value, other in pairs:
            difference = np.abs(np.subtract(value, other, dtype=np.float64))
            worst[name] = max(worst.get(name, 0.0), float(difference.max()) if difference.size else 0.0)
    if not worst:
        raise DataError("no frames to measure the rounding of int8 on: give some good parts")
    return worst


def to_half(model: bytes, keep: Collection[str] = ()) -> bytes:
    """Return the graph with its trunk in fp16 for GPUs; heads, inputs and outputs stay as they are.

    Nodes named in `keep` stay in fp32. A processor without fp16 computes it in fp32, after a cast.

    Raises:
        PackageError: the graph has no convolution, or weights that fp16 cannot hold.
    """
    plain = simplified(model)
    graph = plain.graph
    _refuse_infinite_weights(graph)
    chosen = set(trunk(graph, _HALF_JOINTS, keep))
    if not any(node.op_type in CONVOLUTIONS for node in graph.node if node.name in chosen):
        raise PackageError("nothing to store as fp16: the graph has no convolution: keep it in fp32")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    halves: dict[str, str] = {}
    used_full = {name for node in graph.node if node.name not in chosen for name in node.input}
    used_full |= {output.name for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if not name or (node.op_type == "Resize" and index > 0):
                continue
            if name not in halves:
                halves[name] = f"{name}.fp16"
                if name in weights:
                    graph.initializer.append(_half_of(weights[name], halves[name]))
                else:
                    nodes.append(helper.make_node("Cast", [name], [halves[name]], to=onnx.TensorProto.FLOAT16))
            node.input[index] = halves[name]
        for index, name in enumerate(node.output):
            halves[name] = f"{name}.fp16"
            node.output[index] = halves[name]
        nodes.append(node)
        for name in [name for name, half in halves.items() if half in node.output and name in used_full]:
            nodes.append(helper.make_node("Cast", [halves[name]], [name], to=onnx.TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    needed = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(tensors)
    return to_bytes(plain)


def _half_of(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(values).all():
        raise PackageError(f"the weights {tensor.name} reach {np.abs(values).max():.3g}, fp16 holds 65504: keep fp32")
    return numpy_helper.from_array(half, name)


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """Median milliseconds of two graphs, run in turn, and the median of the second's share of the first's time."""

    first_ms: float
    second_ms: float
    ratio: float
    threads: int


def compare_speed(first: bytes, second: bytes, threads: int = 1, rounds: int = 40) -> SpeedComparison:
    """Time two graphs in turn on one made-up frame: what else the machine does meanwhile meets both alike."""
    times = _times([first, second], threads, rounds)
    medians = np.median(times, axis=0)
    return SpeedComparison(float(medians[0]), float(medians[1]), float(np.median(times[:, 1] / times[:, 0])), threads)


def speed(model: bytes, threads: int = 1, rounds: int = 40) -> float:
    """Return the median milliseconds of the whole graph for a frame, after warming up."""
    return float(np.median(_times([model], threads, rounds)))


def _times(models: list[bytes], threads: int, rounds: int) -> NDArray[np.float64]:
    sessions = [open_session(model, threads) for model in models]
    random = np.random.default_rng(0)
    feeds = [
        {taken.name: random.integers(0, 256, taken.shape, np.uint8)} for (taken,) in (one.get_inputs() for one in sessions)
    ]
    times = np.empty((rounds, len(models)))
    for index in range(-max(3, rounds // 10), rounds):
        for column, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            started = time.perf_counter()
            session.run(None, feed)
            if index >= 0:
                times[index, column] = (time.perf_counter() - started) * 1e3
    return times


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a quantised graph is kept, and why in one sentence."""

    kept: bool
    reason: str


def keep_if_better(auroc: float | None, quantised_auroc: float | None, speeds: SpeedComparison) -> Choice:
    """Decide by the rule: image AUROC falls by at most `MAX_AUROC_DROP`, and the graph is faster than the fp32 one."""
    took = f"{speeds.second_ms:.1f} ms a frame instead of {speeds.first_ms:.1f}"
    if auroc is None or quantised_auroc is None:
        return Choice(False, "int8 is not kept: without good and defective test parts its image AUROC cannot be measured")
    moved = f"image AUROC {quantised_auroc:.4f}, {auroc:.4f} in fp32"
    # Written so that a NaN is refused too; the hair's breadth is for decimal fractions.
    if not auroc - quantised_auroc <= MAX_AUROC_DROP + 1e-9:
        return Choice(False, f"int8 is not kept: {moved}; it may fall by {MAX_AUROC_DROP} at most")
    if not speeds.ratio <= MAX_TIME_SHARE:
        return Choice(False, f"int8 is not kept: it is not faster, {took}; {moved}")
    return Choice(True, f"int8 is kept: {took}; {moved}")
