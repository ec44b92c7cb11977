"""What every ONNX graph of a package has in common, whoever made it: no torch here.

Rules kept here: weights are stored as fp16 wherever that changes nothing; the same graph gives the same bytes; a graph
tells nothing of the machine that made it; the trunk is found by operators alone, not by the names of one net.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import compose, helper, numpy_helper

from linegate.errors import PackageError

Frame = NDArray[np.uint8]
PRODUCER = "linegate"
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
ACTIVATIONS = frozenset({"Relu", "Clip"})
JOINTS = frozenset({"Add", "Concat", "Resize", "MaxPool", "AveragePool"})
"""Part of the trunk only where they lead from convolutions to a convolution; elsewhere they belong to a head."""
_MANY_INPUTS = frozenset({"Add", "Concat", "Mul"})
_MIN_HALF_BYTES = 1024


def open_session(model: bytes, threads: int = 1, fuse: bool = True) -> onnxruntime.InferenceSession:
    """Return a session on the CPU, as the line opens it; without `fuse` int8 is computed step by step in fp32.

    Raises:
        PackageError: onnxruntime cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(model, options)


def _session(model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, none of them documented
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PackageError(f"onnxruntime cannot load the graph: {text}: export it again") from error


class FeatureSession:
    """A graph of features in onnxruntime, called as the torch net is: frames in, features out, in the graph's order."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        self._session = open_session(model, threads)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, pixels: Frame) -> tuple[NDArray[np.float32], ...]:
        """Return every output of the graph for frames uint8 (B, H, W, 3), stacked to (B, …)."""
        # One by one: the graph's shapes are fixed to one frame, and so are the numbers then, whatever the batch.
        rows = [self._session.run(None, {self._input: pixels[index : index + 1]}) for index in range(len(pixels))]
        return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def simplified(model: bytes) -> onnx.ModelProto:
    """Return the graph in fp32 and standard operators, constants folded and paddings inside the convolutions.

    Raises:
        PackageError: onnxruntime cannot load the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simplified.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        _session(model, options)
        plain = onnx.load(target)
    used = {node.domain for node in plain.graph.node}
    opsets = [opset for opset in plain.opset_import if opset.domain in used | {""}]
    del plain.opset_import[:]
    plain.opset_import.extend(opsets)
    return onnx.shape_inference.infer_shapes(plain)


def trunk(graph: onnx.GraphProto, more: Collection[str] = (), keep: Collection[str] = ()) -> list[str]:
    """Return the names of the trunk's nodes: convolutions, their activations, and the joints between convolutions.

    `more` are operators of one input that count as joints too; nodes named in `keep` stay outside.
    """
    weights = {tensor.name for tensor in graph.initializer}
    joints = JOINTS | frozenset(more)
    inside: set[str] = set()
    made: set[str] = set()
    users: defaultdict[str, list[str]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node.name)
        if node.op_type in CONVOLUTIONS:
            belongs = node.input[1] in weights
        elif node.op_type in _MANY_INPUTS & joints:
            belongs = all(name in made for name in node.input)
        else:
            belongs = node.op_type in joints | ACTIVATIONS and node.input[0] in made
        if belongs and node.name not in keep:
            inside.add(node.name)
            made.update(node.output)
    for node in reversed(graph.node):
        leads = any(user in inside for name in node.output for user in users[name])
        if node.op_type in joints and not leads:
            inside.discard(node.name)
    return [node.name for node in graph.node if node.name in inside]


def assemble(features: bytes, head: bytes) -> bytes:
    """Return one graph of two: the head takes by name what the features give, and its outputs are the graph's.

    Raises:
        PackageError: the head's inputs and the features' outputs do not fit.
    """
    trunk_model, head_model = onnx.load_from_string(features), onnx.load_from_string(head)
    given = {output.name: output.type for output in trunk_model.graph.output}
    wanted = {value.name: value.type for value in head_model.graph.input}
    if not wanted or not all(name in given and _fits(given[name], kind) for name, kind in wanted.items()):
        said = f"the head takes {_shapes(wanted)}, the features give {_shapes(given)}"
        raise PackageError(f"features and head do not fit: {said}: export both again")
    outputs = [output.name for output in head_model.graph.output]
    head_model = compose.add_prefix(head_model, "head/", rename_inputs=False, rename_outputs=False)
    # A newer form reads older graphs, so the older of the two may be raised; operator sets must be one.
    trunk_model.ir_version = head_model.ir_version = max(trunk_model.ir_version, head_model.ir_version)
    del trunk_model.metadata_props[:], head_model.metadata_props[:]
    try:
        merged = compose.merge_models(trunk_model, head_model, [(name, name) for name in wanted], outputs=outputs)
    except ValueError as error:
        raise PackageError(f"features and head do not fit: {error}: export both again") from error
    return to_bytes(merged)


def _fits(given: onnx.TypeProto, wanted: onnx.TypeProto) -> bool:
    """Say whether types are the same and so are the sizes that both of them fix."""
    one, other = given.tensor_type, wanted.tensor_type
    if one.elem_type != other.elem_type or len(one.shape.dim) != len(other.shape.dim):
        return False
    pairs = zip(one.shape.dim, other.shape.dim, strict=True)
    return all(a.dim_value == b.dim_value for a, b in pairs if a.dim_value and b.dim_value)


def _shapes(values: Mapping[str, onnx.TypeProto]) -> str:
    named = [(name, [dim.dim_value or "?" for dim in kind.tensor_type.shape.dim]) for name, kind in values.items()]
    return ", ".join(f"{name} ({', '.join(map(str, sizes))})" for name, sizes in named) or "nothing"


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a package's graph: checked, weights as fp16 where exact, without notes of whence it came.

    Raises:
        PackageError: the graph is not valid.
    """
    store_as_half(model.graph)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.graph.name, model.graph.doc_string = PRODUCER, ""
    model.producer_name, model.producer_version, model.doc_string = PRODUCER, "", ""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PackageError(f"the graph is not valid: {str(error).splitlines()[0]}: export it again") from error
    return bytes(model.SerializeToString(deterministic=True))


def store_as_half(graph: onnx.GraphProto) -> None:
    """Keep large weights as fp16 with a cast behind them, which onnxruntime folds away at load.

    Only where that changes nothing: the net's matrices were rounded to fp16 before anything was measured.
    """
    casts = []
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.nbytes < _MIN_HALF_BYTES:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        graph.initializer[index].CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
