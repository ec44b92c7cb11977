"""Good and defective parts → a net that has learned from them.

Rules kept here: what is learned follows from which labels there are, and is said in words; the validation parts choose the
weights and teach nothing; weights are rounded to fp16 before anybody measures them. The loop is `fit`, the losses are in
`models.losses`, export and thresholds are left to others.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from linegate.errors import DataError, LinegateError
from linegate.infer import boxes_to_regions
from linegate.package import InputSpec
from linegate_training import metrics
from linegate_training.augment import augmenter
from linegate_training.checkpoints import save_whole
from linegate_training.data.parts import Sample, digest_of, sha256_of
from linegate_training.data.splits import LearningSplit
from linegate_training.evaluate import DETECTION_FLOOR
from linegate_training.fit import Fact, FitResult, fit
from linegate_training.learn_data import PartData, Prepared, collate, prepare_part
from linegate_training.learn_settings import LearnSettings
from linegate_training.models.backbone import round_to_half
from linegate_training.models.gaussian import Gaussian
from linegate_training.models.good_only import GoodOnlyHead, HeadFit, Places, Unit, Units
from linegate_training.models.learned_net import Guard, LearnedNet, LearnedShape
from linegate_training.models.losses import losses
from linegate_training.steps import deterministic

STANDARDISED_ON = 64
"""Images at most that the scales of features are taken from."""
MAX_VALIDATED_GOODS = 200
MAP_THRESHOLDS = tuple(float(value) for value in np.arange(-3.0, 3.01, 0.5))
"""Logits that regions of the map may begin at."""


@dataclass(frozen=True, slots=True)
class RegionThresholds:
    """Where regions begin: in the map, a logit, and in the score of detections, 0 … 1."""

    map: float = 0.0
    detection: float = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A net that has learned, on the CPU, in evaluation mode, its matrices rounded to fp16.

    `thresholds` are those that the masks (`metrics.map_threshold`) and boxes (best F1) that validate ask for; `words` say what
    was learned from what, `notes` what the data lacks.
    """

    net: LearnedNet
    fitted: FitResult
    thresholds: RegionThresholds
    words: str
    notes: tuple[str, ...] = ()

    @property
    def history(self) -> tuple[dict[str, float], ...]:
        """The lines of log.jsonl."""
        return self.fitted.history

    @property
    def validation(self) -> float | None:
        """The number that chose the weights (see `Validation`); None without parts to validate on."""
        return self.fitted.validation


def learn(
    samples: Sequence[Sample],
    split: LearningSplit,
    classes: tuple[str, ...],
    spec: InputSpec,
    settings: LearnSettings,
    run_dir: Path,
    resume: bool = False,
) -> Learned:
    """Learn from the parts that `split` fits, choosing weights by those that it validates on.

    Raises:
        DataError: nothing defective to learn from, a part that cannot be read, or numbers that are not finite.
        SettingsError: there is no such device.
        LinegateError: out of memory, or a checkpoint of another training.
    """
    fitted = [samples[index] for index in split.fit if samples[index].label != "uncertain"]
    if not any(sample.defective for sample in fitted):
        raise DataError("no defective part to learn from: train on good parts alone")
    notes: list[str] = []
    varied = augmenter(settings.augment, settings.fit.seed)
    make = (spec, classes, varied, settings.fit.seed, settings.epoch_defects, settings.cache_mib)
    data = PartData(fitted, *make)
    unseen = {index for index, sample in enumerate(fitted) if sample.defective and not data.part(index).marked}
    if unseen:
        notes.append(f"{len(unseen)} defective parts left out: all that is marked lies outside of the region of interest")
        data = PartData([sample for index, sample in enumerate(fitted) if index not in unseen], *make)
    shape = _shape(data, classes, spec, settings.width)
    torch.manual_seed(settings.fit.seed)
    torch.set_num_threads(settings.fit.threads)
    net = LearnedNet(shape)
    net.train_from(settings.train_from_block)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a step on the CPU takes three quarters of the time
    with deterministic(torch.device("cpu")):
        _standardise(net, data)
    validated = [samples[index] for index in split.validation]
    validation = Validation(validated, spec, classes, settings.fit.batch) if validated else None
    about: dict[str, Fact] = {
        "parts": digest_of((sample.name, sha256_of(sample.path)) for sample in data.samples),
        "shape": shape.model_dump_json(),
        "classes": ", ".join(classes),
        "region of interest": json.dumps(spec.roi_xyxy),
        "augment": settings.augment.model_dump_json(),
        "train_from_block": settings.train_from_block,
    }

    def loss(module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        return losses(cast(LearnedNet, module).logits(batch["pixels"]), batch, shape.goods)

    result = fit(
        net, loss, data, validation, settings.fit_settings(len(data)), run_dir, resume=resume, about=about, collate=collate
    )
    net.requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    round_to_half(net)
    if validation is not None:
        with torch.no_grad():
            validation(net)  # of what was kept, as it was rounded
    thresholds = RegionThresholds() if validation is None else validation.thresholds
    return Learned(net, result, thresholds, _words(data, shape, classes, validation), tuple(notes))


def _shape(data: PartData, classes: tuple[str, ...], spec: InputSpec, width: int) -> LearnedShape:
    defects = [data.part(index) for index, sample in enumerate(data.samples) if sample.defective]
    if not defects:
        raise DataError("no defect lies in the region of interest: move it, or train on good parts alone")
    return LearnedShape(
        size_wh=spec.size_wh,
        classes=len(classes),
        width=width,
        goods=len(defects) < len(data.samples),
        masks=any(part.mask is not None for part in defects),
        # Boxes around masks are learned where boxes are what somebody has drawn.
        boxes=any(sample.boxes for sample in data.samples),
    )


@torch.no_grad()
def _standardise(net: LearnedNet, data: PartData) -> None:
    half = STANDARDISED_ON // 2
    defects = [index for index, sample in enumerate(data.samples) if sample.defective]
    goods = [index for index, sample in enumerate(data.samples) if not sample.defective]
    chosen = _spread(defects, half if goods else 2 * half) + _spread(goods, half)
    batches = [
        net.backbone(torch.from_numpy(np.stack([data.part(index).pixels for index in chosen[start : start + 8]])))
        for start in range(0, len(chosen), 8)
    ]
    net.heads.standardise(batches)


def _spread(indices: list[int], count: int) -> list[int]:
    """Return at most so many, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[place] for place in places]


class Validation:
    """How good a net is on parts that it does not learn from: the mean of what the labels allow, higher is better.

    Average precision of the score over good and defective parts; best pooled IoU of map and masks; share of right classes;
    mean average precision of boxes at IoU 0.5. The cross-entropy of scores and classes weighs a little, to tell equals apart.
    """

    def __init__(self, samples: Sequence[Sample], spec: InputSpec, classes: tuple[str, ...], batch: int) -> None:
        goods = [index for index, sample in enumerate(samples) if not sample.defective and sample.label != "uncertain"]
        kept = set(_spread(goods, MAX_VALIDATED_GOODS)) if goods else set()
        self.samples = [sample for index, sample in enumerate(samples) if sample.defective or index in kept]
        self.classes, self._batch, self._spec = classes, batch, spec
        self._parts: list[Prepared] | None = None
        self.numbers: dict[str, float] = {}
        self.thresholds = RegionThresholds()

    def __call__(self, net: nn.Module) -> float:
        if self._parts is None:
            parts = [prepare_part(sample, self._spec, self.classes) for sample in self.samples]
            self._parts = [part for part in parts if part.marked]
        learned = cast(LearnedNet, net)
        device = next(learned.parameters()).device
        outputs: dict[str, list[NDArray[np.float32]]] = {name: [] for name in learned.output_names}
        for start in range(0, len(self._parts), self._batch):
            pixels = torch.from_numpy(np.stack([part.pixels for part in self._parts[start : start + self._batch]]))
            for name, value in zip(learned.output_names, learned(pixels.to(device)), strict=True):
                outputs[name] += list(value.float().cpu().numpy())
        self.numbers = self._measured(self._parts, outputs, learned.shape)
        penalty = 0.05 * min(1.0, self.numbers.get("cross_entropy", 0.0))
        counted = [value for name, value in self.numbers.items() if name != "cross_entropy"]
        return (float(np.mean(counted)) if counted else 0.0) - penalty

    def _measured(
        self, parts: Sequence[Prepared], outputs: dict[str, list[NDArray[np.float32]]], shape: LearnedShape
    ) -> dict[str, float]:
        scores, labels = np.array(outputs["score"], np.float64), np.array([part.label for part in parts])
        defective, found = labels > 0, dict[str, float]()
        precision = metrics.image_ap(scores, defective) if shape.goods else None
        if precision is not None:
            found["image_ap"] = precision
            signed = torch.from_numpy(np.where(defective, -scores, scores))
            found["cross_entropy"] = float(functional.softplus(signed).mean())
        pairs = zip(parts, outputs["map"], strict=True)
        masked = [(part, value) for part, value in pairs if part.label == 0 or part.mask is not None]
        if any(part.mask is not None for part, _ in masked):
            shared, either = _overlaps(masked)
            found["pixel_iou"] = float((shared.sum(0) / np.maximum(1, either.sum(0))).max())
            self.thresholds = replace(self.thresholds, map=metrics.map_threshold(MAP_THRESHOLDS, shared, either))
        if "class_scores" in outputs and defective.any():
            chances = np.array(outputs["class_scores"], np.float64)[defective]
            right = labels[defective] - 1
            found["class_accuracy"] = float((chances.argmax(1) == right).mean())
            logs = -np.log(np.clip(chances[np.arange(len(right)), right], 1e-6, 1.0))
            found["cross_entropy"] = found.get("cross_entropy", 0.0) + float(logs.mean())
        if "detections" in outputs:
            width, height = shape.size_wh
            rows_of = zip(parts, outputs["detections"], strict=True)
            known = [(part.boxes, rows) for part, rows in rows_of if part.boxes is not None]
            floor, whole = DETECTION_FLOOR, (0, 0, width, height)
            regions = [boxes_to_regions(rows, floor, whole, self.classes) for _, rows in known]
            truths = [boxes for boxes, _ in known]
            precisions = metrics.average_precisions(regions, truths)
            if precisions:
                found["map50"] = float(np.mean(list(precisions.values())))
                best = metrics.best_detection_threshold(regions, truths)
                self.thresholds = self.thresholds if best is None else replace(self.thresholds, detection=best)
        return found


def _overlaps(masked: Sequence[tuple[Prepared, NDArray[np.float32]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels that map and mask share, and those of either, by part and threshold of `MAP_THRESHOLDS` (P, T)."""
    shared = np.zeros((len(masked), len(MAP_THRESHOLDS)), np.int64)
    either = np.zeros_like(shared)
    for row, (part, value) in enumerate(masked):
        height, width = part.pixels.shape[:2]
        drawn = torch.from_numpy(value)[None, None]
        full = functional.interpolate(drawn, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
        truth = np.zeros((height, width), bool) if part.mask is None else part.mask > 0
        for column, threshold in enumerate(MAP_THRESHOLDS):
            said = full >= threshold
            shared[row, column] = (said & truth).sum()
            either[row, column] = (said | truth).sum()
    return shared, either


def _words(data: PartData, shape: LearnedShape, classes: Sequence[str], validation: Validation | None) -> str:
    defects = [sample for sample in data.samples if sample.defective]
    marked = [data.part(index) for index, sample in enumerate(data.samples) if sample.defective]
    masks = sum(part.mask is not None for part in marked)
    boxes = sum(bool(sample.boxes) for sample in defects)
    goods = len(data.samples) - len(defects)
    words = f"learned from {len(defects)} defective parts ({masks} with masks, {boxes} with boxes) and {goods} good ones"
    words += f", {len(classes)} classes told apart" if shape.classes > 1 else ""
    if validation is not None:
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in validation.numbers.items())
        words += f"; validated on {len(validation.samples)} parts ({numbers})"
    return words


LEARNED_FORMAT = 2


def write_learned(net: LearnedNet, thresholds: RegionThresholds, path: Path) -> None:
    """Write a net to `path`: what it is built from, its weights, and where its regions begin.

    Raises:
        LinegateError: it cannot be written.
    """
    content = {
        "format": LEARNED_FORMAT,
        "shape": net.shape.model_dump_json(),
        "weights": {name: value for name, value in net.state_dict().items() if not name.startswith("guard.")},
        "thresholds": asdict(thresholds),
        "guard": None if net.guard is None else _guard_content(net.guard),
    }
    save_whole(content, path, "net")


def read_learned(path: Path) -> tuple[LearnedNet, RegionThresholds]:
    """Return the net that `write_learned` wrote, in evaluation mode, and where its regions begin.

    Raises:
        LinegateError: it is no such file, or of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != LEARNED_FORMAT:
            raise ValueError(f"format {content['format']}, {LEARNED_FORMAT} is read here")
        net = LearnedNet(LearnedShape.model_validate_json(content["shape"]))
        net.load_state_dict(content["weights"])
        thresholds = RegionThresholds(**content["thresholds"])
        if content["guard"] is not None:
            net.guard = _guard_of(content["guard"], net.shape.size_wh)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.PickleError) as error:
        raise LinegateError(f"{path}: no learned net to read ({str(error).splitlines()[0]}): train again") from error
    return net.requires_grad_(False).eval(), thresholds


def _guard_content(guard: Guard) -> dict[str, Any]:
    """Return what a guard is built from, in plain values and tensors."""
    head = guard.head
    return {
        "fit": _with_tensors(asdict(head.fit)),
        "units": _with_tensors(asdict(head.units)),
        "local_weight": head.local_weight,
        "weight": guard.weight,
    }


def _guard_of(content: dict[str, Any], size_wh: tuple[int, int]) -> Guard:
    fitted, units = _with_arrays(content["fit"]), _with_arrays(content["units"])
    whole, local = Gaussian(**fitted["whole"]), Gaussian(**fitted["local"])
    kinds = {name: Unit(**units[name]) for name in ("whole", "peak", "local", "part")}
    head = GoodOnlyHead(
        HeadFit(whole, local, fitted["place_mean"]), Units(**kinds, places=Places(**units["places"])), content["local_weight"]
    )
    return Guard(head, size_wh, content["weight"])


def _with_tensors(values: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return _with_tensors(value)
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else float(value)

    return {name: plain(value) for name, value in values.items()}


def _with_arrays(values: dict[str, Any]) -> dict[str, Any]:
    def array(value: Any) -> Any:
        if isinstance(value, dict):
            return _with_arrays(value)
        return value.numpy() if isinstance(value, Tensor) else value

    return {name: array(value) for name, value in values.items()}
