"""int8 and fp16 of a small net with a neck, a residual and two heads, over frames made here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from linegate.errors import DataError, PackageError
from linegate_training.graphs import FeatureSession, Frame, assemble, open_session, simplified, to_bytes, trunk
from linegate_training.quantise import (
    Choice,
    SpeedComparison,
    compare_speed,
    keep_if_better,
    quantise,
    rounding_difference,
    speed,
    to_half,
)

SIDE = 64


class Features(nn.Module):
    """uint8 pixels (1, H, W, 3) → statistics (1, 48) and places (1, 48, H/4, W/4), by a trunk with a neck."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 32, 3, 2)
        self.first = nn.Conv2d(32, 48, 3, 2, 1)
        self.second = nn.Conv2d(48, 48, 3, 1, 1)
        self.deep = nn.Conv2d(48, 64, 3, 2, 1)
        self.neck = nn.Conv2d(112, 48, 1)
        for parameter in self.parameters():
            parameter.data = parameter.data.half().float()
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(0, 3, 1, 2).float() * (1.0 / 64.0) - 2.0
        x = functional.relu6(self.stem(functional.pad(x, (0, 1, 0, 1))))
        x = functional.relu(self.first(x))
        x = x + self.second(x)
        deep = functional.interpolate(functional.relu(self.deep(x)), scale_factor=2.0, mode="nearest")
        places = self.neck(torch.cat([x, deep], 1))
        return places.mean((2, 3)), places


class Head(nn.Module):
    """Statistics and places → score (1,) and map (1, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.axes = nn.Parameter(torch.randn(48, 32).half().float(), requires_grad=False)

    def forward(self, statistics: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        score = (statistics @ self.axes).square().mean(1).sqrt()
        return score, places.square().mean(1).sqrt()


class Whole(nn.Module):
    """Both."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = Features(), Head()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], self.head(*self.features(pixels)))


def exported(net: nn.Module, examples: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, examples, cast(Any, target), dynamo=False, opset_version=18, input_names=inputs, output_names=outputs
        )
    return to_bytes(onnx.load_from_string(target.getvalue()))


PIXELS = (torch.zeros((1, SIDE, SIDE, 3), dtype=torch.uint8),)


@pytest.fixture(scope="module")
def model() -> bytes:
    return exported(Whole(), PIXELS, ["pixels"], ["score", "map"])


@pytest.fixture(scope="module")
def features() -> bytes:
    return exported(Features(), PIXELS, ["pixels"], ["statistics", "places"])


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    random = np.random.default_rng(5)
    return [make_frame(random, 20 * index) for index in range(8)]


def make_frame(random: np.random.Generator, spot: int) -> Frame:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    grey = 90 + 40 * np.sin(x / 9 + random.uniform(0, 6)) + spot * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 60)
    noisy = grey[..., np.newaxis] + random.normal(0, 8, (SIDE, SIDE, 3))
    frame: Frame = np.clip(noisy, 0, 255).astype(np.uint8)[np.newaxis]
    return frame


def outputs_of(model: bytes, frame: Frame) -> list[Any]:
    return cast(list[Any], open_session(model).run(None, {"pixels": frame}))


def signature(model: bytes) -> list[tuple[str, str, list[int]]]:
    session = open_session(model)
    return [(item.name, item.type, item.shape) for item in (*session.get_inputs(), *session.get_outputs())]


def test_no_frames_are_told(model: bytes) -> None:
    with pytest.raises(DataError, match="no frames"):
        quantise(model, [])


def test_frames_of_another_size_are_told(model: bytes) -> None:
    with pytest.raises(DataError, match=r"must be uint8 \(1, 64, 64, 3\), got uint8 \(1, 32, 32, 3\)"):
        quantise(model, [np.zeros((1, 32, 32, 3), np.uint8)])


def test_int8_graph_is_the_same_bytes_twice(model: bytes, frames: list[Frame]) -> None:
    assert quantise(model, frames) == quantise(model, iter(frames))


@pytest.mark.parametrize("bits", [7, 8])
def test_int8_scores_and_maps_stay_near(model: bytes, frames: list[Frame], bits: Any) -> None:
    small = quantise(model, frames, weight_bits=bits)
    assert signature(small) == signature(model)
    for frame in frames:
        for value, expected in zip(outputs_of(small, frame), outputs_of(model, frame), strict=True):
            np.testing.assert_allclose(value, expected, atol=0.06 * float(np.abs(expected).max()))


def test_rounding_moves_int8_scores_a_little_and_fp32_scores_hardly(model: bytes, frames: list[Frame]) -> None:
    largest = max(float(np.abs(outputs_of(model, frame)[0]).max()) for frame in frames)
    assert 0 <= rounding_difference(quantise(model, frames), frames)["score"] < 0.03 * largest
    plain = rounding_difference(model, frames)
    assert set(plain) == {"score", "map"}
    assert plain["score"] < 1e-4 * largest
    with pytest.raises(DataError, match="no frames"):
        rounding_difference(model, [])


def test_weights_between_the_first_and_the_last_convolution_are_int8_and_no_others(model: bytes, frames: list[Frame]) -> None:
    small = onnx.load_from_string(quantise(model, frames))
    kinds = {tensor.name: tensor.data_type for tensor in small.graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 and "weight_quantized" in name for name, kind in kinds.items()) == 3
    assert kinds["features.neck.weight.half"] == onnx.TensorProto.FLOAT16
    assert kinds["features.stem.weight.half"] == kinds["head.axes.half"] == onnx.TensorProto.FLOAT16
    assert not [node for node in small.graph.node if node.doc_string]
    sizes = [tensor for tensor in small.graph.initializer if "weight_quantized" in tensor.name]
    assert all(numpy_helper.to_array(tensor).dtype in (np.int8, np.float32) for tensor in sizes)


def test_seven_bit_weights_cannot_saturate_sixteen_bit_sums(model: bytes, frames: list[Frame]) -> None:
    def largest(bits: Any) -> int:
        small = onnx.load_from_string(quantise(model, frames, weight_bits=bits))
        arrays = [numpy_helper.to_array(one) for one in small.graph.initializer if one.data_type == onnx.TensorProto.INT8]
        return max(int(np.abs(array.astype(int)).max()) for array in arrays)

    assert 2 * 255 * largest(7) <= 2**15 - 1
    assert largest(8) == 127


def test_neck_belongs_to_the_trunk_and_heads_do_not(model: bytes) -> None:
    graph = simplified(model).graph
    inside = set(trunk(graph))
    kinds = sorted(node.op_type for node in graph.node if node.name in inside)
    assert kinds.count("Conv") == 5
    assert {"Add", "Concat", "Resize"} <= set(kinds)
    assert not {"MatMul", "Sqrt", "ReduceMean", "Mul"} & set(kinds)


def test_nodes_to_keep_stay_in_fp32(model: bytes, frames: list[Frame]) -> None:
    deep = [node.name for node in simplified(model).graph.node if "features.deep.weight" in node.input]
    small = onnx.load_from_string(quantise(model, frames, keep=deep))
    kinds = [one.data_type for one in small.graph.initializer if "weight_quantized" in one.name and one.dims]
    assert kinds.count(onnx.TensorProto.INT8) == 2


def test_graph_without_convolutions_cannot_be_quantised(frames: list[Frame]) -> None:
    class Mean(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.float().mean((1, 2, 3))

    plain = exported(Mean(), PIXELS, ["pixels"], ["score"])
    with pytest.raises(PackageError, match="nothing to quantise"):
        quantise(plain, frames)
    with pytest.raises(PackageError, match="no convolution"):
        to_half(plain)


@pytest.mark.parametrize("make", [lambda model, frames: quantise(model, frames), lambda model, frames: to_half(model)])
def test_weights_that_are_not_finite_are_refused(frames: list[Frame], make: Callable[[bytes, list[Frame]], bytes]) -> None:
    net = Whole()
    net.features.deep.weight.data[0, 0, 0, 0] = float("nan")
    broken = exported(net, PIXELS, ["pixels"], ["score", "map"])
    with pytest.raises(PackageError, match="not finite"):
        make(broken, frames)


def test_activations_that_are_not_finite_are_refused(frames: list[Frame]) -> None:
    net = Whole()
    net.features.first.weight.data.fill_(3e38)
    with pytest.raises(PackageError, match="not finite"):
        quantise(exported(net, PIXELS, ["pixels"], ["score", "map"]), frames)


def test_bytes_that_are_no_graph_are_told(frames: list[Frame]) -> None:
    with pytest.raises(PackageError, match="cannot load the graph"):
        quantise(b"no graph", frames)


def test_fp16_graph_runs_and_scores_stay_near(model: bytes, frames: list[Frame]) -> None:
    half = to_half(model)
    assert half == to_half(model)
    assert signature(half) == signature(model)
    kinds = {one.name: one.data_type for one in onnx.load_from_string(half).graph.initializer}
    assert kinds["features.deep.weight.fp16"] == onnx.TensorProto.FLOAT16
    for frame in frames:
        for value, expected in zip(outputs_of(half, frame), outputs_of(model, frame), strict=True):
            np.testing.assert_allclose(value, expected, atol=5e-3 * float(np.abs(expected).max()))


def test_weights_beyond_fp16_are_told() -> None:
    net = Whole()
    net.features.deep.weight.data[0, 0, 0, 0] = 1e6
    with pytest.raises(PackageError, match=r"reach 1e\+06, fp16 holds 65504"):
        to_half(exported(net, PIXELS, ["pixels"], ["score", "map"]))


def test_features_and_head_assembled_give_what_they_give_apart(features: bytes, frames: list[Frame]) -> None:
    small = quantise(features, frames)
    session = FeatureSession(small)
    statistics, places = session(np.concatenate(frames))
    assert statistics.shape == (8, 48)
    assert places.shape == (8, 48, 16, 16)
    examples = (torch.zeros(1, 48), torch.zeros(1, 48, 16, 16))
    head = exported(Head(), examples, ["statistics", "places"], ["score", "map"])
    merged = assemble(small, head)
    assert merged == assemble(small, head)
    assert [name for name, _, _ in signature(merged)] == ["pixels", "score", "map"]
    for index, frame in enumerate(frames):
        score, anomaly_map = outputs_of(merged, frame)
        one = torch.from_numpy(statistics[index : index + 1]), torch.from_numpy(places[index : index + 1])
        for value, expected in zip((score, anomaly_map), Head()(*one), strict=True):
            np.testing.assert_allclose(value, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_head_that_wants_other_features_is_told(features: bytes, frames: list[Frame]) -> None:
    head = exported(Head(), (torch.zeros(1, 48), torch.zeros(1, 48, 8, 8)), ["statistics", "places"], ["score", "map"])
    with pytest.raises(PackageError, match=r"the head takes .*places \(1, 48, 8, 8\), the features give .*\(1, 48, 16, 16\)"):
        assemble(quantise(features, frames), head)


def test_speeds_are_measured_in_turn(model: bytes, features: bytes) -> None:
    assert speed(model, rounds=5) > 0
    same = compare_speed(model, model, rounds=20)
    assert 0.5 < same.ratio < 2.0
    assert min(same.first_ms, same.second_ms) > 0


FASTER, SLOWER = SpeedComparison(7.4, 4.4, 0.6, 1), SpeedComparison(7.4, 7.6, 1.03, 1)


@pytest.mark.parametrize(
    ("auroc", "int8", "speeds", "kept", "words"),
    [
        (0.96, 0.957, FASTER, True, "int8 is kept: 4.4 ms a frame instead of 7.4; image AUROC 0.9570, 0.9600 in fp32"),
        (0.96, 0.97, FASTER, True, "int8 is kept"),
        (0.96, 0.9569, FASTER, False, "it may fall by 0.003 at most"),
        (0.96, float("nan"), FASTER, False, "it may fall by"),
        (0.96, 0.96, SLOWER, False, "it is not faster, 7.6 ms a frame instead of 7.4"),
        (None, None, FASTER, False, "cannot be measured"),
    ],
)
def test_int8_is_kept_only_if_as_good_and_faster(
    auroc: float | None, int8: float | None, speeds: SpeedComparison, kept: bool, words: str
) -> None:
    choice = keep_if_better(auroc, int8, speeds)
    assert isinstance(choice, Choice)
    assert choice.kept is kept
    assert words in choice.reason
