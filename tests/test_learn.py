"""Learning from defects: from masks, boxes or the image's label alone; what comes out is what the line computes."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from linegate.errors import DataError, LinegateError
from linegate.infer import boxes_to_regions, prepare
from linegate.package import InputSpec
from linegate.settings import parse
from linegate_training import graphs
from linegate_training.data.parts import Box, Sample, read_part
from linegate_training.data.splits import LearningSplit
from linegate_training.good_parts import learn_guard
from linegate_training.learn import Learned, RegionThresholds, Validation, learn, read_learned, write_learned
from linegate_training.learn_data import PartData, prepare_part
from linegate_training.learn_settings import LearnSettings
from linegate_training.models.learned_net import LearnedNet, LearnedShape, guard_weight
from linegate_training.models.losses import losses
from linegate_training.settings import TrainSettings

SIDE = 96
SPEC = InputSpec(size_wh=(SIDE, SIDE))


def settings(**values: Any) -> LearnSettings:
    fit = {"batch": 8, "epochs": 6, "learning_rate": 5e-3, "threads": 2, "warmup_epochs": 0.5, **values.pop("fit", {})}
    table = {"images_shown": 0, "train_from_block": 4, "width": 32, "epoch_defects": 16, "fit": fit, **values}
    return parse(table, LearnSettings, "learning")


@dataclass
class Parts:
    """Photographs of plates in `folder`, some with a dark spot or a bright scratch."""

    folder: Path
    samples: list[Sample] = field(default_factory=list)

    def add(self, label: str, count: int, told: str = "image", at_xy: tuple[int, int] | None = None) -> Parts:
        """Add parts of a class, whose defects are told by mask, box, empty mask or the image's label alone."""
        for _ in range(count):
            number = len(self.samples)
            random = np.random.default_rng(number)
            grey = 120 + cv2.GaussianBlur(random.normal(0, 40, (SIDE, SIDE)), (0, 0), 2)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            x, y = (int(v) for v in random.integers(24, SIDE - 24, 2)) if at_xy is None else at_xy
            if label == "spot":
                cv2.circle(mask, (x, y), 8, 1, -1)
                grey[mask > 0] = 30
            elif label == "scratch":
                cv2.line(mask, (x - 16, y - 8), (x + 16, y + 8), 1, 3)
                grey[mask > 0] = 240
            path = self.folder / f"{number:03}.png"
            cv2.imwrite(str(path), np.clip(grey, 0, 255).astype(np.uint8))
            sample = Sample(path.name, path, "train", label)
            if told in ("mask", "empty"):
                drawn = self.folder / f"{number:03}_mask.png"
                cv2.imwrite(str(drawn), mask * 255 if told == "mask" else mask * 0)
                sample = replace(sample, mask=drawn)
            if told == "box" and mask.any():
                left, top, width, height = cv2.boundingRect(mask)
                sample = replace(sample, boxes=(Box(label, (left, top, left + width, top + height)),))
            self.samples.append(sample)
        return self

    def split(self, validated_each: int = 4) -> LearningSplit:
        """Return a split in which every so many part validates."""
        held = tuple(range(0, len(self.samples), validated_each)) if validated_each else ()
        return LearningSplit(tuple(i for i in range(len(self.samples)) if i not in held), held, (), "made up")

    def learn(self, classes: tuple[str, ...], folder: Path, **values: Any) -> Learned:
        """Learn from the parts."""
        return learn(self.samples, self.split(), classes, SPEC, settings(**values), folder)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    (tmp_path / "images").mkdir()
    return Parts(tmp_path / "images")


def looked_at(net: LearnedNet, sample: Sample) -> dict[str, NDArray[np.float32]]:
    image, pixel_format = read_part(sample)
    with torch.inference_mode():
        found = net(torch.from_numpy(prepare(image, pixel_format, SPEC)[0]))
    return {name: value[0].numpy() for name, value in zip(net.output_names, found, strict=True)}


def exported(net: LearnedNet) -> bytes:
    target, width, height = io.BytesIO(), *net.shape.size_wh
    example: Any = (torch.zeros((1, height, width, 3), dtype=torch.uint8),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = list(net.output_names)
        file: Any = target
        torch.onnx.export(net, example, file, dynamo=False, opset_version=18, input_names=["pixels"], output_names=names)
    return graphs.to_bytes(onnx.load_from_string(target.getvalue()))


def assert_same_in_onnxruntime(net: LearnedNet, frames: Sequence[NDArray[np.uint8]]) -> None:
    session = graphs.open_session(exported(net))
    for pixels in frames:
        with torch.inference_mode():
            expected = [value.numpy() for value in net(torch.from_numpy(pixels))]
        for name, one, other in zip(net.output_names, session.run(None, {"pixels": pixels}), expected, strict=True):
            assert one.shape == other.shape, name
            assert np.abs(one - other).max() <= 1e-4 * max(1.0, np.abs(other).max()), name


def test_nothing_defective_to_learn_from_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no defective part to learn from: train on good parts alone"):
        parts.add("good", 4).learn(("spot",), tmp_path / "run")


def test_a_class_that_was_not_named_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class scratch is not among spot"):
        parts.add("spot", 4, "mask").add("scratch", 2, "mask").learn(("spot",), tmp_path / "run")


def test_defects_learned_from_masks_are_scored_and_shown_where_they_are(parts: Parts, tmp_path: Path) -> None:
    learned = parts.add("good", 16).add("spot", 16, "mask").learn(("spot",), tmp_path / "run")
    assert learned.net.output_names == ("score", "map")
    fresh = Parts(tmp_path / "images", list(parts.samples)).add("good", 4).add("spot", 4, "mask", (30, 60)).samples[-8:]
    found = [looked_at(learned.net, sample) for sample in fresh]
    scores = [float(one["score"]) for one in found]
    assert max(scores[:4]) < min(scores[4:])
    for one in found[4:]:
        y, x = np.unravel_index(int(one["map"].argmax()), one["map"].shape)
        assert (abs(4 * x - 30), abs(4 * y - 60)) <= (12, 12)
    assert learned.validation is not None
    assert learned.validation > 0.6
    assert "12 defective parts (12 with masks, 0 with boxes) and 12 good ones" in learned.words
    for name, value in learned.net.named_parameters():
        assert value.ndim < 2 or torch.equal(value.half().float(), value), f"{name} would change in an fp16 file"


def test_defects_learned_from_image_labels_alone_are_told_from_good_parts(parts: Parts, tmp_path: Path) -> None:
    learned = parts.add("good", 16).add("spot", 16).learn(("spot",), tmp_path / "run")
    fresh = Parts(tmp_path / "images", list(parts.samples)).add("good", 4).add("spot", 4).samples[-8:]
    scores = [float(looked_at(learned.net, sample)["score"]) for sample in fresh]
    assert max(scores[:4]) < min(scores[4:])


def test_typed_parts_without_any_good_one_are_named_and_boxed_and_onnxruntime_agrees(parts: Parts, tmp_path: Path) -> None:
    parts.add("scratch", 20, "box").add("spot", 20, "box")
    learned = parts.learn(("scratch", "spot"), tmp_path / "run", fit={"epochs": 14})
    net = learned.net
    assert net.output_names == ("score", "map", "class_scores", "detections")
    right = overlapping = 0
    for sample in (parts.samples[index] for index in parts.split().validation):
        found = looked_at(net, sample)
        right += ("scratch", "spot")[int(found["class_scores"].argmax())] == sample.label
        regions = boxes_to_regions(found["detections"], 0.02, (0, 0, SIDE, SIDE), ("scratch", "spot"))
        (left, top, width, height), (x1, y1, x2, y2) = rectangle(regions[0].box_xyxy), sample.boxes[0].xyxy
        shared = max(0, min(left + width, x2) - max(left, x1)) * max(0, min(top + height, y2) - max(top, y1))
        overlapping += shared / (width * height + (x2 - x1) * (y2 - y1) - shared) >= 0.5 and regions[0].label == sample.label
    assert right >= 9
    assert overlapping >= 7
    frames = [prepare(*read_part(sample), SPEC)[0] for sample in parts.samples[::16]]
    assert_same_in_onnxruntime(net, frames)


def rectangle(box_xyxy: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return box_xyxy[0], box_xyxy[1], box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]


def test_mixed_labels_a_class_with_one_example_and_an_empty_mask_are_learned_together(parts: Parts, tmp_path: Path) -> None:
    parts.add("good", 8).add("spot", 3, "mask").add("spot", 3, "box").add("spot", 2).add("spot", 1, "empty").add(
        "scratch", 1, "mask"
    )
    every = LearningSplit(tuple(range(len(parts.samples))), (), (), "made up")
    learned = learn(parts.samples, every, ("scratch", "spot"), SPEC, settings(fit={"epochs": 1}), tmp_path / "run")
    assert learned.validation is None
    assert learned.net.output_names == ("score", "map", "class_scores", "class_map", "detections")
    found = looked_at(learned.net, parts.samples[0])
    assert {name: value.shape for name, value in found.items()} == {
        "score": (), "map": (24, 24), "class_scores": (2,), "class_map": (2, 24, 24), "detections": (100, 6)
    }  # fmt: skip
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["class_scores"].sum() == pytest.approx(1.0, abs=1e-5)
    rows = found["detections"]
    assert (np.diff(rows[:, 4]) <= 0).all()
    assert rows[:, :5].min() >= 0
    assert rows[:, :5].max() <= 1
    assert set(rows[:, 5]) <= {0.0, 1.0}
    assert_same_in_onnxruntime(learned.net, [prepare(*read_part(parts.samples[10]), SPEC)[0]])


def test_a_guard_raises_the_score_of_what_is_unlike_good_parts_and_is_kept_and_exported(parts: Parts, tmp_path: Path) -> None:
    parts.add("good", 24)
    net = LearnedNet(LearnedShape(size_wh=SPEC.size_wh, classes=2, width=16, masks=True)).eval().requires_grad_(False)
    good = prepare(*read_part(parts.samples[0]), SPEC)[0]
    strange = np.random.default_rng(0).integers(0, 255, good.shape, np.uint8)

    def scores() -> list[float]:
        return [float(net(torch.from_numpy(frame))[0]) for frame in (good, strange)]

    alone, quick = scores(), TrainSettings(variants=0, cross_fit_folds=3)
    net.guard = learn_guard(net, parts.samples, list(range(24)), 30, SPEC, quick)
    assert net.guard is not None
    assert net.guard.weight == pytest.approx((1.0 + 0.25) / 2)
    beside = scores()
    assert abs(beside[0] - alone[0]) < 3
    assert beside[1] - alone[1] > 10
    assert_same_in_onnxruntime(net, [good])

    write_learned(net, RegionThresholds(), tmp_path / "trained.pt")
    again, _ = read_learned(tmp_path / "trained.pt")
    assert all(
        torch.equal(one, other) for one, other in zip(net(torch.from_numpy(good)), again(torch.from_numpy(good)), strict=True)
    )


def test_a_guard_counts_less_the_more_defects_were_shown_and_needs_good_parts(parts: Parts) -> None:
    weights = [guard_weight(defects) for defects in (0, 3, 30, 300, 30_000)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 1.0
    assert weights[-1] == pytest.approx(0.25, abs=0.01)
    parts.add("good", 9)
    net = LearnedNet(LearnedShape(size_wh=SPEC.size_wh, classes=2, width=16)).eval()
    assert learn_guard(net, parts.samples, list(range(9)), 5, SPEC, TrainSettings()) is None
    assert learn_guard(net, parts.samples * 2, [0] * 18, 5, SPEC, TrainSettings()) is None


def test_a_training_that_meets_nan_stops_and_names_images(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> dict[str, Tensor]:
        found = losses(*given)
        return {name: value * float("nan") if name == "pixel" else value for name, value in found.items()}

    monkeypatch.setattr("linegate_training.learn.losses", broken)
    with pytest.raises(DataError, match=r"epoch 1, step 1: the loss 'pixel' is nan in the batch of \d{3}\.png, .*look at"):
        parts.add("good", 8).add("spot", 8, "mask").learn(("spot",), tmp_path / "run")


def test_a_resumed_training_ends_in_the_same_weights(parts: Parts, tmp_path: Path) -> None:
    parts.add("good", 8).add("spot", 8, "mask")
    whole = parts.learn(("spot",), tmp_path / "whole", fit={"epochs": 2, "schedule": "constant", "warmup_epochs": 0.0})
    stages = {"schedule": "constant", "warmup_epochs": 0.0, "checkpoint_every_s": 0.0}

    class KilledError(Exception):
        pass

    def kill(*_: object) -> float:
        raise KilledError

    validated = Validation.__call__
    calls = iter([validated, kill])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "__call__", lambda self, net: next(calls)(self, net))
        with pytest.raises(KilledError):
            parts.learn(("spot",), tmp_path / "run", fit={"epochs": 2, **stages})
    resumed = learn(
        parts.samples, parts.split(), ("spot",), SPEC, settings(fit={"epochs": 2, **stages}), tmp_path / "run", resume=True
    )
    assert resumed.fitted.resumed_after == 1
    there = whole.net.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in resumed.net.state_dict().items())


def test_a_written_net_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    net = LearnedNet(LearnedShape(size_wh=(64, 64), classes=2, width=16, boxes=True)).eval()
    write_learned(net, RegionThresholds(0.5, 0.2), tmp_path / "trained.pt")
    frame = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8)
    again, thresholds = read_learned(tmp_path / "trained.pt")
    assert thresholds == RegionThresholds(0.5, 0.2)
    assert all(torch.equal(one, other) for one, other in zip(net(frame), again(frame), strict=True))
    (tmp_path / "trained.pt").write_bytes(b"PK no net")
    with pytest.raises(LinegateError, match=r"trained\.pt: no learned net to read"):
        read_learned(tmp_path / "trained.pt")


def test_an_epoch_shows_as_many_good_parts_as_defective_ones_and_all_good_ones_in_turn(parts: Parts) -> None:
    parts.add("good", 20).add("spot", 3, "mask")
    data = PartData(parts.samples, SPEC, ("spot",), None, 0, epoch_defects=8, cache_mib=1)
    shown: list[str] = []
    for epoch in (1, 2, 3):
        data.set_epoch(epoch)
        items = [data[index] for index in range(len(data))]
        assert [one["label"] for one in items].count(1) == 8 == [one["label"] for one in items].count(0)
        shown += [one["name"] for one in items if one["label"] == 0]
    assert set(shown[:20]) == {sample.name for sample in parts.samples[:20]}


def test_masks_and_boxes_are_cut_and_resized_as_the_frame_is(parts: Parts) -> None:
    parts.add("spot", 1, "mask", (70, 48)).add("spot", 1, "box", (70, 48)).add("spot", 1, "mask", (10, 48))
    right_half = InputSpec(size_wh=(32, 64), roi_xyxy=(0.5, 0.0, 1.0, 1.0))
    masked, boxed, outside = (prepare_part(sample, right_half, ("spot",)) for sample in parts.samples)
    assert masked.pixels.shape == (64, 32, 3)
    assert masked.mask is not None
    rows, columns = np.nonzero(masked.mask)
    # The spot's centre (70, 48) of 96 lies at (22, 48) of 48 x 96 in the region: (14.7, 32) of 32 x 64.
    assert (columns.mean(), rows.mean()) == pytest.approx((14.7, 32), abs=0.6)
    assert masked.boxes is not None
    assert boxed.boxes is not None
    assert boxed.boxes[0].xyxy == pytest.approx(masked.boxes[0].xyxy, abs=1)
    assert not outside.marked
    assert outside.mask is None


def test_a_scratch_thinner_than_a_pixel_stays_marked(tmp_path: Path) -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[:, 100] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "image.png"), mask)
    sample = Sample("image.png", tmp_path / "image.png", "train", "scratch", tmp_path / "mask.png")
    prepared = prepare_part(sample, InputSpec(size_wh=(64, 64)), ("scratch",))
    assert prepared.mask is not None
    assert prepared.mask.sum() == 64


def test_a_checkpoint_of_other_parts_is_not_resumed(parts: Parts, tmp_path: Path) -> None:
    parts.add("good", 4).add("spot", 4, "mask").learn(("spot",), tmp_path / "run", fit={"epochs": 1}, epoch_defects=4)
    shutil.copy(parts.samples[1].path, parts.samples[2].path)
    with pytest.raises(LinegateError, match="the checkpoint is of another training: parts"):
        learn(
            parts.samples, parts.split(), ("spot",), SPEC, settings(fit={"epochs": 1}, epoch_defects=4), tmp_path / "run", True
        )


def test_a_table_of_the_loop_that_names_some_keys_leaves_the_others() -> None:
    default, given = LearnSettings(), LearnSettings.model_validate({"fit": {"batch": 4}})
    assert given.fit == default.fit.model_copy(update={"batch": 4})
    with pytest.raises(ValidationError, match="btach"):
        LearnSettings.model_validate({"fit": {"btach": 4}})
