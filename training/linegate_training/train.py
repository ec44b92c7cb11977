"""Good parts → a model package, reading from top to bottom.

Rules kept here: nothing but good parts is learned from; the threshold comes from parts that the model scoring them has
not seen; the package is written only when onnxruntime agrees with torch; the same seed gives the same graph.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import linegate
from linegate.errors import DataError
from linegate.infer import prepare
from linegate.package import (
    CARD_FILE,
    MODEL_FILE,
    PARITY_FILE,
    SPLIT_FILE,
    Dataset,
    InputSpec,
    Manifest,
    ModelPackage,
    Outputs,
    OutputSpec,
    Parity,
    Thresholds,
    Training,
    write_package,
)
from linegate_training.calibrate import Threshold, threshold_for
from linegate_training.card import write_card
from linegate_training.data.parts import (
    PartSet,
    Sample,
    check_masks,
    check_sizes,
    digest_of,
    read_part,
    sha256_of,
)
from linegate_training.data.splits import Split, split_goods
from linegate_training.evaluate import evaluate
from linegate_training.export import LINE_TOLERANCE, MAP, SCORE, ParityProof, parity_samples, prove, to_onnx
from linegate_training.models.gaussian import estimate_shrinkage
from linegate_training.models.good_only import (
    MAP_SCALE,
    FeatureNet,
    GoodOnlyNet,
    HeadFit,
    Unit,
    Units,
    fit_head,
    local_peak,
)
from linegate_training.settings import TrainSettings

MIN_GOODS = 10
PARITY_PARTS = 32
"""Export is proved over this many calibration parts."""
LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "scikit-learn", "scipy", "opencv-python")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of good parts: statistics (N, D) of all, local ones (M, C, g, g) of those numbered `kept` (M,)."""

    statistics: NDArray[np.float64]
    places: NDArray[np.float16]
    kept: NDArray[np.int64]

    def of(self, indices: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float16]]:
        """Return statistics and local features of the given parts."""
        rows = np.flatnonzero(np.isin(self.kept, indices))
        return self.statistics[list(indices)], self.places[rows]


def train(parts: PartSet, out: Path, name: str, version: str, settings: TrainSettings, command: str) -> ModelPackage:
    """Train on the good parts of `parts`, write the package to `out` and return it.

    Raises:
        DataError: there are too few good parts, or an image or mask is wrong.
        ParityError: the export computes other numbers than torch; nothing is written.
    """
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    goods = parts.goods()
    if len(goods) < MIN_GOODS:
        raise DataError(f"{parts.name}: {len(goods)} good images, at least {MIN_GOODS} are needed (better 100): add more")
    check_sizes(parts.samples, parts.name)
    check_masks(parts.tests(), parts.name)
    digests = {sample.name: sha256_of(sample.path) for sample in parts.samples}
    if len({digests[sample.name] for sample in goods}) == 1:
        raise DataError(f"{parts.name}: all {len(goods)} good images are one and the same: photograph different parts")
    split = split_goods(
        [digests[sample.name] for sample in goods],
        settings.seed, settings.calibration_share, settings.cross_fit_below, settings.cross_fit_folds,
    )  # fmt: skip
    say(f"{parts.name}: {split.words}")

    spec = InputSpec(size_wh=(settings.size_px, settings.size_px))
    feature_net = FeatureNet(settings.size_px)
    features = extract(feature_net, goods, spec, settings)
    net, calibration_scores, calibration_peaks = fit(feature_net, features, split, settings)
    score_threshold = threshold_for(calibration_scores, settings.false_reject_rate)
    map_threshold = threshold_for(calibration_peaks, settings.false_reject_rate)
    say(promise(score_threshold, settings.false_reject_rate))

    model = to_onnx(net, settings.size_px)
    held = [goods[index] for _, indices in split.rounds for index in indices][:PARITY_PARTS]
    frames = (prepare(*read_part(sample), spec)[0] for sample in held)
    proof = prove(net, model, tqdm(frames, "parity", total=len(held), unit="part", disable=None), settings.threads)
    say(f"parity: torch and onnxruntime differ by {proof.score:.1e} in score, {proof.map:.1e} in map, {proof.parts} parts")

    samples = parity_samples(model, settings.size_px, settings.seed)
    manifest = describe(
        parts, name, version, settings, split, spec, digests, (score_threshold, map_threshold), proof, samples.maps.shape[1:]
    )
    limit = LINE_TOLERANCE * max(1.0, float(np.abs(samples.scores).max()))
    map_limit = LINE_TOLERANCE * max(1.0, float(np.abs(samples.maps).max()))
    manifest = manifest.model_copy(update={"parity": Parity(score_tolerance=limit, map_tolerance=map_limit)})
    files = {MODEL_FILE: model, PARITY_FILE: samples.to_bytes(), SPLIT_FILE: split_csv(parts, goods, split, digests)}
    card = write_card(manifest, parts, command, sum(map(len, files.values())))
    package = write_package(out, manifest, {**files, CARD_FILE: card.encode()})
    if parts.tests():
        # Through the line's own path, from the package as it lies on the disk.
        say("measuring on the test parts")
        metrics = {**manifest.metrics, "test": evaluate(package, parts, checked=True)}
        manifest = manifest.model_copy(update={"metrics": metrics})
        card = write_card(manifest, parts, command, sum(map(len, files.values())))
        package = write_package(out, manifest, {**files, CARD_FILE: card.encode()})
    return package


def extract(net: FeatureNet, goods: Sequence[Sample], spec: InputSpec, settings: TrainSettings) -> Features:
    """Run the backbone over the good parts."""
    random = np.random.default_rng(settings.seed)
    count = len(goods)
    kept = np.sort(random.permutation(count)[: settings.patch_images])
    statistics, places = [], []
    wanted = set(kept.tolist())
    with tqdm(total=count, desc="features", unit="part", disable=None) as progress:
        for start in range(0, count, settings.batch):
            batch = [prepare(*read_part(sample), spec)[0] for sample in goods[start : start + settings.batch]]
            with torch.inference_mode():
                whole, local = net(torch.from_numpy(np.concatenate(batch)))
            statistics.append(whole.double().numpy())
            rows = [row for row in range(len(batch)) if start + row in wanted]
            places.append(local[rows].half().numpy())
            progress.update(len(batch))
    return Features(np.concatenate(statistics), np.concatenate(places), kept)


def fit(
    feature_net: FeatureNet, features: Features, split: Split, settings: TrainSettings
) -> tuple[GoodOnlyNet, NDArray[np.float64], NDArray[np.float64]]:
    """Return the net and, of the calibration parts, scores (n,) and the greatest map values (m,)."""
    whole: list[NDArray[np.float64]] = []
    local: list[NDArray[np.float64]] = []
    part: list[NDArray[np.float64]] = []
    net = None
    # One for all rounds: estimated in each, it would fall as parts are added, and the final model's distances would be
    # greater than those that the threshold is set from.
    shrinkage = estimate_shrinkage(features.statistics if split.refit else features.of(split.rounds[0][0])[0])
    for fitted, calibrating in tqdm(split.rounds, "fitting", unit="round", disable=None):
        net = _net(feature_net, fit_head(*features.of(fitted), shrinkage, settings), settings)
        for columns, values in zip((whole, local, part), _distances(net, features, calibrating, settings), strict=True):
            columns.append(values)
    all_whole, all_local, all_part = np.concatenate(whole), np.concatenate(local), np.concatenate(part)
    if net is None or split.refit:
        everything = tuple(range(len(features.statistics)))
        net = _net(feature_net, fit_head(*features.of(everything), shrinkage, settings), settings)
    peaks = local_peak(torch.from_numpy(all_local)).numpy()
    net.units = Units(Unit.of_scores(all_whole), Unit.of_scores(peaks), Unit.of_cells(all_local), Unit.of_cells(all_part))
    units = net.units
    scores = (all_whole - units.whole.centre) / units.whole.spread
    scores = scores + settings.local_weight * (peaks - units.peak.centre) / units.peak.spread
    maps = net.coarse_map(torch.from_numpy(all_local), torch.from_numpy(all_part)).numpy()
    return net, scores, maps.max((1, 2))


def _net(feature_net: FeatureNet, head: HeadFit, settings: TrainSettings) -> GoodOnlyNet:
    return GoodOnlyNet(feature_net, head, Units(), settings.local_weight)


def _distances(
    net: GoodOnlyNet, features: Features, indices: Sequence[int], settings: TrainSettings
) -> Iterator[NDArray[np.float64]]:
    """Yield global distances (n,), local ones (n, g, g) and places' parts (n, g, g) of the given parts."""
    rows = {int(index): row for row, index in enumerate(features.kept)}
    known = [index for index in indices if index in rows]
    outputs: list[list[NDArray[np.float64]]] = [[], [], []]
    for start in range(0, len(known), settings.batch):
        chosen = known[start : start + settings.batch]
        statistics = torch.from_numpy(features.statistics[chosen]).float()
        places = torch.from_numpy(features.places[[rows[index] for index in chosen]]).float()
        with torch.inference_mode():
            for column, output in zip(outputs, net.distances(statistics, places), strict=True):
                column.append(output.double().numpy())
    yield from (np.concatenate(column) for column in outputs)


def promise(threshold: Threshold, false_reject_rate: float) -> str:
    """Say in one line what the threshold promises, and what it cannot."""
    head = f"threshold {threshold.value:.3f} for a false-reject rate of {false_reject_rate * 100:.3g} %"
    if threshold.rate_interval is not None:
        low, high = threshold.rate_interval
        return f"{head}, from {threshold.parts} good parts, each unseen by its scorer (95 %: {low:.2%} to {high:.2%})"
    return (
        f"{head}: {threshold.parts} good parts are too few to promise it ({threshold.parts_needed} are needed), "
        "so the tail is assumed normal; add good parts"
    )


def describe(
    parts: PartSet, name: str, version: str, settings: TrainSettings, split: Split, spec: InputSpec,
    digests: dict[str, str], thresholds: tuple[Threshold, Threshold], proof: ParityProof, map_shape: tuple[int, ...],
) -> Manifest:  # fmt: skip
    """Return `package.json` but for the parity tolerances, the test's metrics and the digests of files."""
    score, anomaly_map = thresholds
    now = datetime.now(UTC).replace(microsecond=0)
    calibration: dict[str, Any] = {
        "false_reject_rate": settings.false_reject_rate,
        "guaranteed": score.guaranteed,
        "score": asdict(score),
        "map": asdict(anomaly_map),
        "parts": split.words,
    }
    subsets = {"train": 0, "calibration": 0}
    for index in range(len(parts.goods())):
        subsets[split.subset(index)] += 1
    versions = {library: _version(library) for library in LIBRARIES}
    return Manifest(
        name=name,
        version=version,
        created_at=now,
        input=spec,
        outputs=Outputs(
            score=OutputSpec(name=SCORE, shape=(1,), meaning="distance from good parts: 0 typical, 1 exceeded by a tenth"),
            map=OutputSpec(
                name=MAP, shape=(1, *map_shape), meaning=f"anomaly per cell of 16 pixels, drawn {MAP_SCALE} times finer"
            ),
        ),
        thresholds=Thresholds(
            score=score.value, map=anomaly_map.value, min_region_share=settings.min_region_share,
            set_by="linegate train", set_at=now, calibration=calibration,
        ),
        dataset=Dataset(
            name=parts.name, digest=digest_of(digests.items()), licence=parts.licence, source=parts.source,
            split={"data_set": parts.split, "good_parts": split.words, **subsets, "test": len(parts.tests())},
        ),
        training=Training(
            settings=settings.model_dump(), seed=settings.seed, code_version=linegate.__version__,
            libraries={"python": platform.python_version(), **versions},
        ),
        metrics={"parity": asdict(proof)},
        parity=Parity(score_tolerance=1.0, map_tolerance=1.0),
        files={MODEL_FILE: "0" * 64, PARITY_FILE: "0" * 64, CARD_FILE: "0" * 64},
    )  # fmt: skip


def split_csv(parts: PartSet, goods: Sequence[Sample], split: Split, digests: dict[str, str]) -> bytes:
    """Return `split.csv`: name, sha256, subset and label of every image of the data set."""
    subsets = {sample.name: split.subset(index) for index, sample in enumerate(goods)}
    rows = [
        f"{_quoted(sample.name)},{digests[sample.name]},{subsets.get(sample.name, sample.subset)},{_quoted(sample.label)}"
        for sample in parts.samples
    ]
    return ("\n".join(["name,sha256,subset,label", *rows]) + "\n").encode()


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def say(text: str) -> None:
    """Tell the person at the terminal; standard output stays for programs."""
    print(text, file=sys.stderr, flush=True)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
