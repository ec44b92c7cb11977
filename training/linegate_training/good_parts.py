"""Good parts → what the good-only head knows of them, and the scores that its threshold is set from.

Rules kept here: every calibration score comes from a head that has not seen the part; features are computed once, by torch
or by the int8 graph that the line will run, and heads are fitted to those very features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from linegate.infer import prepare
from linegate.package import InputSpec
from linegate_training.augment import Augmenter, augmenter, recipe_from
from linegate_training.data.parts import Sample, read_part
from linegate_training.data.splits import Split, split_goods
from linegate_training.graphs import FeatureSession
from linegate_training.models.gaussian import estimate_shrinkage
from linegate_training.models.good_only import FeatureNet, GoodOnlyHead, Units, fit_head
from linegate_training.models.learned_net import Guard, LearnedNet, guard_weight
from linegate_training.progress import tell
from linegate_training.settings import TrainSettings

Floats: TypeAlias = NDArray[np.float64]
Extractor: TypeAlias = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
MIN_GOODS = 10
GUARD_RANK = 128
"""Axes of the global Gaussian beside a net that has learned from many defects, and knows most by itself."""
GUARD_FEW_DEFECTS = 100
"""Beside a net that has learned from fewer, the Gaussian has all the axes that it has for good parts alone."""
GUARD_FOLDS = 3
UNIT_ROUNDS = 5
PLACES_BYTES = 1 << 30
"""Local features kept in memory at most; of more parts than fit, only so many have a say in the local Gaussian."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of good parts: statistics (N, D) of all, local ones (M, C, h, w) of those numbered `kept` (M,).

    Row n of either belongs to part `owner[n]`: a part that was varied has several rows, its photograph first.
    """

    statistics: Floats
    places: NDArray[np.float16]
    kept: NDArray[np.int64]
    owner: NDArray[np.int64]

    def of(self, parts: Sequence[int]) -> tuple[Floats, NDArray[np.float16]]:
        """Return statistics and local features of the given parts, with their variants."""
        rows = np.isin(self.owner, parts)
        return self.statistics[rows], self.places[np.isin(self.owner[self.kept], parts)]


@dataclass(frozen=True, slots=True, eq=False)
class FittedHead:
    """The head, and of the calibration parts scores (n,) and greatest map values (m,)."""

    head: GoodOnlyHead
    scores: Floats
    peaks: Floats


def torch_extractor(net: FeatureNet) -> Extractor:
    """Return a function from frames uint8 (B, H, W, 3) to their features, computed by torch."""

    def extract_batch(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            statistics, places = net(torch.from_numpy(pixels))
        return statistics.numpy(), places.numpy()

    return extract_batch


def session_extractor(session: FeatureSession) -> Extractor:
    """Return the same, computed by onnxruntime."""

    def extract_batch(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        statistics, places = session(pixels)
        return statistics, places

    return extract_batch


def extract(
    extractor: Extractor,
    goods: Sequence[Sample],
    spec: InputSpec,
    settings: TrainSettings,
    vary: Augmenter | None = None,
) -> Features:
    """Compute the features of good parts, and of `settings.variants` variants of each where `vary` is given."""
    variants = settings.variants if vary is not None else 0
    count = len(goods) * (1 + variants)
    # Photographs come before variants where not all can be kept.
    owner = np.tile(np.arange(len(goods)), 1 + variants)
    cells = spec.size_wh[0] * spec.size_wh[1] // 256
    limit = min(settings.patch_images, max(50, PLACES_BYTES // (cells * 1500)))
    kept = np.sort(np.random.default_rng(settings.seed).permutation(count)[:limit]) if count > limit else np.arange(count)
    wanted = set(kept.tolist())
    statistics, places = [], []
    with tqdm(total=count, desc="features", unit="part", disable=None) as progress:
        for start in range(0, count, settings.batch):
            rows = range(start, min(start + settings.batch, count))
            batch = np.concatenate([_frame(goods, row, spec, vary) for row in rows])
            whole, local = extractor(batch)
            statistics.append(whole.astype(np.float64))
            places.append(local[[row in wanted for row in rows]].astype(np.float16))
            progress.update(len(rows))
            tell(rows.stop / count, f"features of {rows.stop} of {count} photographs")
    return Features(np.concatenate(statistics), np.concatenate(places), kept, owner)


def _frame(goods: Sequence[Sample], row: int, spec: InputSpec, vary: Augmenter | None) -> NDArray[np.uint8]:
    variant, part = divmod(row, len(goods))
    pixels = prepare(*read_part(goods[part]), spec)[0]
    return pixels if variant == 0 or vary is None else vary(pixels[0], None, (), variant, part).image[np.newaxis]


def fit(features: Features, split: Split, settings: TrainSettings) -> FittedHead:
    """Fit the head to good parts; each calibration part is scored by a head that has not seen it.

    Units weigh the kinds of evidence against each other, so they are measured over rounds drawn image by image: rounds of
    whole groups move the global distance far more than the local one, and would leave it without weight.
    """
    # One for all rounds: estimated in each, it would fall as parts are added, and the final model's distances would be
    # greater than those that the threshold is set from.
    shrinkage = estimate_shrinkage(features.statistics if split.refit else features.of(split.rounds[0][0])[0])
    found = _cross_fitted(features, split.rounds, shrinkage, settings)
    learned = tuple(sorted(set(features.owner.tolist()))) if split.refit else split.rounds[0][0]
    weighing = found
    if split.grouped and split.refit:
        order = np.random.default_rng(settings.seed).permutation(len(learned))
        drawn = [tuple(sorted(order[start::UNIT_ROUNDS].tolist())) for start in range(UNIT_ROUNDS)]
        rounds = [(tuple(sorted(set(learned) - set(held))), held) for held in drawn]
        weighing = _cross_fitted(features, rounds, shrinkage, settings)
    units = Units.of_good_parts(*weighing)
    head = GoodOnlyHead(fit_head(*features.of(learned), shrinkage, settings), units, settings.local_weight)
    with torch.inference_mode():
        scores, maps = head.judge(*(torch.from_numpy(values).float() for values in found))
    return FittedHead(head, scores.double().numpy(), maps.double().amax((1, 2)).numpy())


def learn_guard(
    net: LearnedNet, goods: Sequence[Sample], groups: Sequence[int], defects: int, spec: InputSpec, settings: TrainSettings
) -> Guard | None:
    """Return what stands beside a net that learned from `defects` defective parts, fitted to its own features of good ones.

    `groups` are those of `goods`. None where there are too few, or all of them are one group.
    """
    if len(goods) < MIN_GOODS or len(set(groups)) < 2:
        return None
    # Cross-fitting only says in which units to count here; the threshold is set from other parts.
    fewer = {
        "global_rank": settings.global_rank if defects < GUARD_FEW_DEFECTS else min(settings.global_rank, GUARD_RANK),
        "cross_fit_folds": min(settings.cross_fit_folds, GUARD_FOLDS),
    }
    settings = settings.model_copy(update=fewer)
    split = split_goods(
        groups, settings.seed, settings.calibration_share, settings.cross_fit_below, settings.cross_fit_folds
    )  # fmt: skip
    extractor = torch_extractor(FeatureNet(spec.size_wh, backbone=net.backbone))
    vary = augmenter(recipe_from(settings.augment), settings.seed) if len(goods) < settings.vary_below else None
    head = fit(extract(extractor, goods, spec, settings, vary), split, settings).head
    return Guard(head, spec.size_wh, guard_weight(defects))


def _cross_fitted(
    features: Features,
    rounds: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    shrinkage: float,
    settings: TrainSettings,
) -> tuple[Floats, Floats, Floats]:
    """Return the three kinds of distance of all parts that calibrate, each by a head fitted to others."""
    columns: tuple[list[Floats], ...] = ([], [], [])
    for fitted, calibrating in tqdm(rounds, "fitting", unit="round", disable=None):
        head = GoodOnlyHead(fit_head(*features.of(fitted), shrinkage, settings), Units(), settings.local_weight)
        for column, values in zip(columns, distances(head, features, calibrating, settings.batch), strict=True):
            column.append(values)
    whole, local, part = (np.concatenate(column) for column in columns)
    return whole, local, part


def distances(head: GoodOnlyHead, features: Features, parts: Sequence[int], batch: int) -> Iterator[Floats]:
    """Yield global distances (n,), local ones (n, h, w) and places' parts (n, h, w) of the photographs of `parts`."""
    rows = {int(row): index for index, row in enumerate(features.kept)}
    known = [part for part in parts if part in rows]  # the first rows are the photographs themselves
    outputs: tuple[list[Floats], ...] = ([], [], [])
    for start in range(0, len(known), batch):
        chosen = known[start : start + batch]
        statistics = torch.from_numpy(features.statistics[chosen]).float()
        places = torch.from_numpy(features.places[[rows[part] for part in chosen]]).float()
        with torch.inference_mode():
            for column, output in zip(outputs, head.distances(statistics, places), strict=True):
                column.append(output.double().numpy())
    yield from (np.concatenate(column) if column else np.zeros(0) for column in outputs)
