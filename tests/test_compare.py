"""Champion and candidate on one frozen test set: statistics by published values, what differs, and what the gate says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from conftest import spot_picture, write_spot_package
from linegate import cli
from linegate.comparison import Comparison, load_comparison
from linegate.dataset_version import Version
from linegate.errors import DataError, PackageError
from linegate.package import PARITY_FILE, ModelPackage, write_package
from linegate_edge.review.dataset_versions import build_version
from linegate_training.compare import compare
from linegate_training.data.versions import parts_of
from linegate_training.gate import GateSettings
from linegate_training.paired import auroc_difference, mcnemar_exact, paired_errors, rate
from simulators.reviews import NOON, reviewed


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (9, 2, 0.06543),  # Fay, R package exact2x2, the example of mcnemar.exact
        (1, 5, 14 / 64),  # by hand: 2 (1 + 6) / 2**6
        (0, 6, 2 / 64),
        (4, 4, 1.0),
    ],
)
def test_mcnemar_is_exact(first: int, second: int, p: float) -> None:
    assert mcnemar_exact(first, second) == pytest.approx(p, abs=5e-6)
    assert mcnemar_exact(second, first) == mcnemar_exact(first, second)


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_intervals_of_rates_are_those_that_newcombe_printed(events: int, trials: int, low: float, high: float) -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I."""
    found = rate(events, trials)
    assert found.rate == events / trials
    assert found.ci95 == pytest.approx((low, high), abs=5e-5)


def test_no_trials_no_rate() -> None:
    assert rate(0, 0).rate is None
    assert rate(0, 0).ci95 is None


def test_errors_are_counted_in_pairs() -> None:
    champion, candidate = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 1, 0], bool)
    found = paired_errors(champion, candidate)
    assert (found.both, found.champion_only, found.candidate_only, found.p) == (1, 2, 1, 1.0)


def test_auroc_difference_without_one_kind_of_part_is_none() -> None:
    assert auroc_difference(np.ones(3), np.ones(3), np.zeros(3, bool)) is None
    assert auroc_difference(np.ones(0), np.ones(0), np.zeros(0, bool)) is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), goods=st.integers(1, 30), defects=st.integers(1, 700))
def test_auroc_difference_is_that_of_the_two_aurocs(seed: int, goods: int, defects: int) -> None:
    random = np.random.default_rng(seed)
    defective = random.permutation(np.arange(goods + defects) < defects)
    one, other = random.integers(0, 9, (2, goods + defects)) / 3 + defective
    found = auroc_difference(one, other, defective, draws=200)
    assert found is not None
    expected = roc_auc_score(defective, other) - roc_auc_score(defective, one)
    assert found.difference == pytest.approx(expected, abs=1e-6)
    assert found.ci95[0] - 1e-9 <= found.ci95[1]
    assert 0 < found.p <= 1


def test_auroc_difference_has_the_interval_of_a_bootstrap_done_by_hand() -> None:
    random = np.random.default_rng(1)
    defective = np.arange(120) < 50
    one = random.normal(0, 1, 120) + 0.8 * defective
    other = 0.6 * one + random.normal(0, 0.8, 120) + 0.6 * defective
    found = auroc_difference(one, other, defective, draws=4000)
    assert found is not None
    by_hand = []
    for _ in range(1000):
        rows = np.concatenate([random.integers(0, 50, 50), random.integers(50, 120, 70)])
        by_hand.append(roc_auc_score(defective[rows], other[rows]) - roc_auc_score(defective[rows], one[rows]))
    assert found.ci95 == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.015)
    share = min((np.array(by_hand) <= 0).mean(), (np.array(by_hand) >= 0).mean())
    assert found.p == pytest.approx(2 * share, abs=0.06)


def test_equal_packages_do_not_differ_and_far_ones_do() -> None:
    defective = np.arange(60) < 30
    scores = np.random.default_rng(0).normal(0, 1, 60) + 3 * defective
    same = auroc_difference(scores, scores, defective)
    far = auroc_difference(-scores, scores, defective)
    assert same is not None
    assert far is not None
    assert (same.difference, same.p) == (0, 1)
    assert far.p < 0.01
    assert auroc_difference(-scores, scores, defective) == far


FAINT = 210
"""A spot of this grey scores 0.82, a white one 1."""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Spot pictures: good ones, white spots (class spot) and grey ones (class faint); the last twenty reviewed in December."""
    place = tmp_path_factory.mktemp("spots")
    reviews = []
    for seed in range(160):
        kind = ("good", "good", "spot", "faint")[seed % 4]
        pixels = spot_picture(defect=kind != "good", seed=seed)
        if kind == "faint":
            pixels[pixels == 255] = FAINT
        review = reviewed(place / "evidence", seed, kind, pixels=pixels, mask=None)
        reviews.append(replace(review, reviewed_at=NOON.replace(month=12)) if seed >= 140 else review)
    return build_version(reviews, place / "datasets", name="spots", created_by="ada", test_share=0.5)


def package(place: Path, threshold: float, undecided_below: float = 0.0) -> Path:
    made = write_spot_package(place, threshold=threshold, name="spots")
    thresholds = made.manifest.thresholds.model_copy(update={"undecided_below": undecided_below})
    write_package(place, made.manifest.model_copy(update={"thresholds": thresholds}), made.files)
    return place


def compared(version: Version, place: Path, champion: float, candidate: float, **options: Any) -> Comparison:
    one, other = package(place / "one", champion), package(place / "two", candidate, **options)
    gate = GateSettings(max_slowdown=10)
    return compare(ModelPackage.load(one), ModelPackage.load(other), version, parts_of(version), gate, recent=20).comparison


def test_two_packages_that_say_the_same_differ_in_nothing(version: Version, tmp_path: Path) -> None:
    found = compared(version, tmp_path, 0.5, 0.6)
    assert found.differences == ()
    assert found.gate.go
    assert found.frozen is not None
    assert found.frozen.champion.escapes.events == 0
    assert found.frozen.auroc_difference is not None
    assert found.frozen.auroc_difference.difference == 0


def test_new_escapes_are_counted_by_class_and_come_first(version: Version, tmp_path: Path) -> None:
    found = compared(version, tmp_path, 0.5, 0.9)
    assert found.frozen is not None
    faint = sum(item.label == "faint" and item.split == "test" for item in version.record.items)
    assert found.frozen.candidate.escapes.events == faint
    assert found.frozen.candidate.escapes_by_class["faint"].events == faint
    assert found.frozen.candidate.escapes_by_class["spot"].events == 0
    assert (found.frozen.escapes.champion_only, found.frozen.escapes.candidate_only) == (0, faint)
    assert found.frozen.escapes.p == mcnemar_exact(0, faint)
    assert {one.outcome for one in found.differences} == {"new escape"}
    margins = [one.candidate.threshold - one.candidate.score for one in found.differences]
    assert margins == sorted(margins, reverse=True)
    assert {rule.name for rule in found.gate.rules if not rule.met} == {"max_escape_increase", "no_class_escapes_more"}


def test_escapes_caught_are_a_go(version: Version, tmp_path: Path) -> None:
    found = compared(version, tmp_path, 0.9, 0.5)
    assert found.gate.go
    assert {one.outcome for one in found.differences} == {"escape caught"}


def test_false_rejects_stop_at_the_gate(version: Version, tmp_path: Path) -> None:
    found = compared(version, tmp_path, 0.5, 0.1)
    assert {one.outcome for one in found.differences} == {"new false reject"}
    assert [rule.name for rule in found.gate.rules if not rule.met] == ["max_false_reject_increase"]


def test_an_undecided_part_neither_escapes_nor_is_falsely_rejected(version: Version, tmp_path: Path) -> None:
    found = compared(version, tmp_path, 0.5, 0.9, undecided_below=0.2)
    assert found.frozen is not None
    assert found.frozen.candidate.escapes.events == 0
    assert found.frozen.candidate.undecided_defective.events > 0
    assert found.frozen.candidate.undecided_good.events == 0
    assert {one.outcome for one in found.differences} == {"new undecided"}


def test_what_was_reviewed_last_is_shown_apart(version: Version, tmp_path: Path) -> None:
    found = compared(version, tmp_path, 0.5, 0.9)
    assert found.recent is not None
    wanted = [item for item in version.record.items if item.split == "test" and item.reviewed_at.month == 12]  # type: ignore[union-attr]
    assert found.recent.good + found.recent.defective == len(wanted) > 0
    assert sum(one.recent for one in found.differences) == found.recent.candidate.escapes.events


def with_other_parity(place: Path) -> Path:
    made = write_spot_package(place, name="spots")
    samples = made.parity_samples
    shifted = replace(samples, scores=samples.scores + 0.2)
    write_package(place, made.manifest, {**made.files, PARITY_FILE: shifted.to_bytes()})
    return place


def test_a_candidate_that_fails_parity_is_no_go_and_a_champion_an_error(version: Version, tmp_path: Path) -> None:
    broken = ModelPackage.load(with_other_parity(tmp_path / "broken"))
    whole = ModelPackage.load(package(tmp_path / "whole", 0.5))
    found = compare(whole, broken, version, parts_of(version), GateSettings()).comparison
    assert not found.gate.go
    assert [rule.name for rule in found.gate.rules] == ["parity"]
    assert "the score differs by 0.2" in found.gate.rules[0].reason
    assert found.frozen is None
    with pytest.raises(PackageError, match="differs"):
        compare(broken, whole, version, parts_of(version), GateSettings())


Run = Callable[..., int]


@pytest.fixture
def run(version: Version, tmp_path: Path) -> Run:
    def started(champion: float, candidate: float, *options: str, out: str = "out") -> int:
        packages = [str(package(tmp_path / "one", champion)), str(package(tmp_path / "two", candidate))]
        (tmp_path / "gate.toml").write_text("max_slowdown = 10.0\n")
        gate = ["--gate", str(tmp_path / "gate.toml")]
        return cli.main(["compare", *packages, str(version.folder), "--out", str(tmp_path / out), *gate, *options])

    return started


def test_the_command_writes_numbers_page_and_pictures(
    run: Run, tmp_path: Path, version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(0.5, 0.9, "--json") == 1
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    found = load_comparison(tmp_path / "out" / "comparison.json")
    assert found.model_dump(mode="json") == printed
    assert found.version.digest == version.record.digest
    assert found.differences
    for one in found.differences:
        assert one.picture is not None
        assert (tmp_path / "out" / one.picture).read_bytes()[:2] == b"\xff\xd8"
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "No-go: " in page
    assert page.count("<img ") == min(24, len(found.differences))
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert found.speed is not None
    assert found.speed.pairs >= 60


def test_the_command_says_go_and_replaces_what_lay_there(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(0.5, 0.9) == 1
    assert run(0.5, 0.5) == 0
    assert capsys.readouterr().out.splitlines()[-2] == "go"
    assert list((tmp_path / "out" / "differences").iterdir()) == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "comparison.html", "differences"}


def test_mistakes_are_one_line(run: Run, tmp_path: Path, version: Version, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(0.5, 0.5, "--recent", "0") == 2
    assert "--recent 0: at least 1" in capsys.readouterr().err
    assert run(0.5, 0.5, "--gate", str(tmp_path / "none.toml")) == 2
    assert "no such settings file" in capsys.readouterr().err
    assert run(0.5, 0.5, out="one") == 2
    assert "which is never changed" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(0.5, 0.5, out="file/run") == 2
    assert "cannot be written" in capsys.readouterr().err
    image = version.folder / version.record.items[0].image
    before = image.read_bytes()
    image.chmod(0o644)
    image.write_bytes(before + b"!")
    try:
        assert run(0.5, 0.5) == 2
    finally:
        image.write_bytes(before)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "was changed: SHA-256 is" in lines[0]


def test_a_comparison_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compare the packages again"):
        load_comparison(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"schema_version": 2}')
    with pytest.raises(DataError, match="compare the packages again"):
        load_comparison(tmp_path / "bad.json")
