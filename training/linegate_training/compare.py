"""Champion and candidate on one frozen test set → `Comparison`: numbers with intervals, differences, speed, the gate's verdict.

Rules kept here: both packages judge every image through the line's own inspection, at their own thresholds, by turns, so that
whatever else the machine does slows both alike; an undecided part does not escape and is no false reject; a candidate that
fails parity is a verdict, a champion that does is an error. Statistics are left to `paired`, the rules to `gate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from linegate.comparison import (
    ComparedVersion,
    Comparison,
    Difference,
    Outcome,
    PackageFacts,
    PackageNumbers,
    Said,
    SetNumbers,
    Speed,
)
from linegate.dataset_version import Version, VersionItem
from linegate.decide import Recipe, decide
from linegate.errors import DataError, ParityError
from linegate.infer import Inspector
from linegate.package import ModelPackage
from linegate.stages import Decision, Frame, Prediction
from linegate_training import metrics
from linegate_training.data.parts import PartSet, Sample, check_masks, check_sizes
from linegate_training.evaluate import VIEW, frame_of, seen_in_training
from linegate_training.gate import GateSettings, judge, refuse
from linegate_training.paired import auroc_difference, paired_errors, rate

RECENT: Final = 200
"""So many of all reviews, the newest, count as recent."""
MIN_PAIRS: Final = 60
"""Each package is timed on so many frames at least: a small test set goes round again."""
_ORDER: Final[tuple[Outcome, ...]] = (
    "new escape", "new false reject", "new undecided", "escape caught", "false reject mended", "other",
)  # fmt: skip

Floats = NDArray[np.float64]
Tell = Callable[[float, str], None]


class Judge:
    """A package that is loaded and proved, and decides as the line does."""

    def __init__(self, package: ModelPackage, provider: str = "auto", threads: int = 1) -> None:
        self.package = package
        self.threads = threads
        self.inspector = Inspector(package, provider, threads)
        self._recipe = Recipe(package.manifest.name, {VIEW: self.inspector.view_recipe})

    def decide(self, prediction: Prediction) -> Decision:
        """Return the decision on what the model says."""
        return decide([prediction], self._recipe).decision

    def said(self, prediction: Prediction) -> Said:
        """Return what the package says of an image."""
        classes = prediction.class_scores
        return Said(
            decision=self.decide(prediction), score=prediction.score, threshold=self.package.manifest.thresholds.score,
            predicted=max(classes, key=classes.__getitem__) if classes else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A comparison, with what draws pictures: both packages, and the sample of each difference."""

    comparison: Comparison
    champion: Judge
    candidate: Judge | None
    samples: tuple[Sample, ...]


def compare(
    champion: ModelPackage,
    candidate: ModelPackage,
    version: Version,
    parts: PartSet,
    gate: GateSettings,
    recent: int = RECENT,
    provider: str = "auto",
    threads: int = 1,
    tell: Tell = lambda share, text: None,
) -> Compared:
    """Compare two packages on the frozen test set of `version`, whose parts are `parts`.

    Raises:
        DataError: there is no test set, or an image or mask of it is wrong.
        PackageError: a package cannot be run here; a candidate's parity alone is a verdict.
    """
    samples = parts.tests()
    if not samples:
        raise DataError(f"{version.folder}: no images to measure on: review more parts, and make a new version")
    check_sizes(samples, parts.name)
    check_masks(samples, parts.name)
    first = Judge(champion, provider, threads)
    try:
        second = Judge(candidate, provider, threads)
    except ParityError as error:
        return Compared(refused(champion, version, samples, gate, str(error), candidate, recent), first, None, ())
    said, speed = _run(first, second, samples, tell)
    items = {item.image: item for item in version.record.items}
    newest = _newest(version, recent)
    of_recent = np.array([sample.name in newest for sample in samples], bool)
    frozen = _numbers(samples, said, np.ones(len(samples), bool))
    differing = _differences(samples, said, items, newest)
    comparison = Comparison(
        created_at=_now(),
        version=_version(version),
        champion=_facts(champion, samples),
        candidate=_facts(candidate, samples),
        frozen=frozen,
        recent=_numbers(samples, said, of_recent) if of_recent.any() else None,
        recent_reviews=recent,
        speed=speed,
        differences=tuple(difference for difference, _ in differing),
        gate=judge(gate, frozen, speed),
    )
    return Compared(comparison, first, second, tuple(sample for _, sample in differing))


def refused(
    champion: ModelPackage, version: Version, samples: Sequence[Sample], gate: GateSettings, reason: str,
    candidate: ModelPackage | None = None, recent: int = RECENT,
) -> Comparison:  # fmt: skip
    """Return the comparison with a candidate that fails parity, or that was not made because of it: no-go."""
    return Comparison(
        created_at=_now(), version=_version(version), champion=_facts(champion, samples),
        candidate=None if candidate is None else _facts(candidate, samples), frozen=None, recent=None, recent_reviews=recent,
        speed=None, differences=(), gate=refuse(gate, "parity", reason),
    )  # fmt: skip


def _run(first: Judge, second: Judge, samples: Sequence[Sample], tell: Tell) -> tuple[list[tuple[Said, Said]], Speed]:
    """Return what both say of each sample, and how fast."""
    said: list[tuple[Said, Said]] = []
    taken: list[tuple[float, float]] = []
    rounds = -(-MIN_PAIRS // len(samples)) if len(samples) < MIN_PAIRS else 1
    for turn in range(rounds):
        for index, sample in enumerate(samples):
            frame = frame_of(sample, index)
            # Whoever comes first finds the frame cold: by turns, it is the one and the other.
            if (index + turn) % 2 == 0:
                one, one_ms = _timed(first, frame)
                other, other_ms = _timed(second, frame)
            else:
                other, other_ms = _timed(second, frame)
                one, one_ms = _timed(first, frame)
            taken.append((one_ms, other_ms))
            if turn == 0:
                for judge_of, prediction in ((first, one), (second, other)):
                    if not np.isfinite(prediction.score):
                        raise DataError(f"{sample.path}: {judge_of.package.reference} gives no number: train again")
                said.append((first.said(one), second.said(other)))
            tell(
                (turn * len(samples) + index + 1) / (rounds * len(samples)), f"comparing, {index + 1} of {len(samples)} images"
            )
    one_ms, other_ms = (float(value) for value in np.median(np.array(taken), axis=0))
    speed = Speed(
        champion_ms=one_ms, candidate_ms=other_ms, ratio=other_ms / max(one_ms, 1e-9), pairs=len(taken),
        provider=second.inspector.provider, threads=first.threads,
    )  # fmt: skip
    return said, speed


def _timed(judge_of: Judge, frame: Frame) -> tuple[Prediction, float]:
    started = time.perf_counter()
    prediction = judge_of.inspector.predict(frame)
    return prediction, (time.perf_counter() - started) * 1e3


def _numbers(samples: Sequence[Sample], said: Sequence[tuple[Said, Said]], chosen: NDArray[np.bool_]) -> SetNumbers:
    """Return the numbers of both packages on the chosen samples (n,)."""
    kept = [sample for sample, wanted in zip(samples, chosen, strict=True) if wanted]
    defective = np.array([sample.defective for sample in kept], bool)
    labels = np.array([sample.label for sample in kept])
    scores, passed, failed = [], [], []
    for which in range(2):
        of_one = [pair[which] for pair, wanted in zip(said, chosen, strict=True) if wanted]
        scores.append(np.array([one.score for one in of_one], np.float64))
        passed.append(np.array([one.decision is Decision.PASS for one in of_one], bool))
        failed.append(np.array([one.decision is Decision.FAIL for one in of_one], bool))
    packages = [_package_numbers(scores[which], passed[which], failed[which], defective, labels) for which in range(2)]
    return SetNumbers(
        good=int((~defective).sum()), defective=int(defective.sum()), champion=packages[0], candidate=packages[1],
        escapes=paired_errors(passed[0] & defective, passed[1] & defective),
        false_rejects=paired_errors(failed[0] & ~defective, failed[1] & ~defective),
        auroc_difference=auroc_difference(scores[0], scores[1], defective),
    )  # fmt: skip


def _package_numbers(
    scores: Floats, passed: NDArray[np.bool_], failed: NDArray[np.bool_], defective: NDArray[np.bool_],
    labels: NDArray[np.str_],
) -> PackageNumbers:  # fmt: skip
    defects, goods = int(defective.sum()), int((~defective).sum())
    auroc = metrics.image_auroc(scores, defective)
    undecided = ~passed & ~failed
    classes = sorted(set(labels[defective].tolist()))
    return PackageNumbers(
        escapes=rate(int((passed & defective).sum()), defects),
        false_rejects=rate(int((failed & ~defective).sum()), goods),
        undecided_defective=rate(int((undecided & defective).sum()), defects),
        undecided_good=rate(int((undecided & ~defective).sum()), goods),
        escapes_by_class={
            label: rate(int((passed & (labels == label)).sum()), int((labels == label).sum())) for label in classes
        },
        auroc=auroc,
        auroc_ci95=metrics.auroc_interval(auroc, defects, goods),
    )


def _differences(
    samples: Sequence[Sample], said: Sequence[tuple[Said, Said]], items: dict[str, VersionItem], newest: set[str]
) -> list[tuple[Difference, Sample]]:
    """Return the images of which the packages say different things, the worst first, with their samples."""
    found = []
    for sample, (one, other) in zip(samples, said, strict=True):
        if one.decision is other.decision:
            continue
        item = items[sample.name]
        difference = Difference(
            image=item.image, sha256=item.sha256, group=item.group, view=item.view, label=item.label,
            verdict_id=item.verdict_id, reviewed_at=item.reviewed_at, recent=sample.name in newest,
            outcome=_outcome(sample.defective, one.decision, other.decision), champion=one, candidate=other, picture=None,
        )  # fmt: skip
        found.append((difference, sample))
    # The surer the candidate is of what it should not say, the worse.
    found.sort(key=lambda pair: (_ORDER.index(pair[0].outcome), -_margin(pair[0].candidate), pair[0].sha256))
    return found


def _margin(said: Said) -> float:
    return abs(said.score - said.threshold)


def _outcome(defective: bool, champion: Decision, candidate: Decision) -> Outcome:
    """Return what the change means for a part: `wrong` is what a defective and a good part should not be called."""
    wrong = Decision.PASS if defective else Decision.FAIL
    if candidate is wrong:
        return "new escape" if defective else "new false reject"
    if champion is wrong:
        return "escape caught" if defective else "false reject mended"
    return "new undecided" if candidate is Decision.UNDECIDED else "other"


def _newest(version: Version, recent: int) -> set[str]:
    """Return the images of the newest `recent` reviews, of both splits."""
    dated = [(item.reviewed_at, item.image) for item in version.record.items if item.reviewed_at is not None]
    return {image for _, image in sorted(dated, reverse=True)[:recent]}


def _facts(package: ModelPackage, samples: Sequence[Sample]) -> PackageFacts:
    seen = seen_in_training(package, samples)
    manifest = package.manifest
    return PackageFacts(
        name=manifest.name, version=manifest.version, digest=package.digest, threshold=manifest.thresholds.score,
        undecided_below=manifest.thresholds.undecided_below, seen_in_training=None if seen is None else len(seen),
    )  # fmt: skip


def _version(version: Version) -> ComparedVersion:
    return ComparedVersion(name=version.record.name, number=version.record.number, digest=version.record.digest)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
