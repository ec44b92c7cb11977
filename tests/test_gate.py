"""The gate: each rule goes and stops, and says why in one line; too few parts never go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linegate.comparison import PackageNumbers, SetNumbers, Speed
from linegate.errors import SettingsError
from linegate_training.gate import GateSettings, judge, read_gate, refuse
from linegate_training.paired import paired_errors, rate

NONE = np.zeros(0, bool)


def package(escapes: dict[str, tuple[int, int]], false_rejects: tuple[int, int]) -> PackageNumbers:
    return PackageNumbers(
        escapes=rate(sum(one for one, _ in escapes.values()), sum(many for _, many in escapes.values())),
        false_rejects=rate(*false_rejects), undecided_defective=rate(0, 0), undecided_good=rate(0, 0),
        escapes_by_class={label: rate(*counts) for label, counts in escapes.items()}, auroc=None, auroc_ci95=None,
    )  # fmt: skip


def numbers(champion: PackageNumbers, candidate: PackageNumbers) -> SetNumbers:
    return SetNumbers(
        good=champion.false_rejects.trials, defective=champion.escapes.trials, champion=champion, candidate=candidate,
        escapes=paired_errors(NONE, NONE), false_rejects=paired_errors(NONE, NONE), auroc_difference=None,
    )  # fmt: skip


def speed(ratio: float = 1.0) -> Speed:
    return Speed(champion_ms=10, candidate_ms=10 * ratio, ratio=ratio, pairs=60, provider="cpu", threads=1)


SAME = package({"dent": (1, 20), "scratch": (2, 20)}, (3, 100))


def broken(candidate: PackageNumbers, ratio: float = 1.0, settings: GateSettings | None = None) -> list[str]:
    verdict = judge(settings or GateSettings(), numbers(SAME, candidate), speed(ratio))
    assert verdict.go == all(rule.met for rule in verdict.rules)
    assert all(rule.reason and "\n" not in rule.reason for rule in verdict.rules)
    return [rule.name for rule in verdict.rules if not rule.met]


def test_a_candidate_that_is_the_same_goes() -> None:
    assert broken(SAME) == []


@pytest.mark.parametrize(
    ("candidate", "ratio", "expected"),
    [
        (package({"dent": (1, 20), "scratch": (3, 20)}, (3, 100)), 1.0, ["max_escape_increase", "no_class_escapes_more"]),
        (package({"dent": (2, 20), "scratch": (1, 20)}, (3, 100)), 1.0, ["no_class_escapes_more"]),
        (package({"dent": (1, 20), "scratch": (2, 20)}, (4, 100)), 1.0, []),
        (package({"dent": (1, 20), "scratch": (2, 20)}, (5, 100)), 1.0, ["max_false_reject_increase"]),
        (SAME, 1.2, []),
        (SAME, 1.21, ["max_slowdown"]),
    ],
)
def test_each_rule_stops_what_it_is_for(candidate: PackageNumbers, ratio: float, expected: list[str]) -> None:
    assert broken(candidate, ratio) == expected


def test_too_few_parts_to_tell_never_go() -> None:
    few = package({"dent": (0, 9)}, (0, 29))
    verdict = judge(GateSettings(), numbers(few, few), speed())
    assert not verdict.go
    reasons = {rule.name: rule.reason for rule in verdict.rules if not rule.met}
    assert reasons == {
        "min_test_good": "29 good parts in the frozen test set are too few to tell, 30 are needed: review more parts",
        "min_test_defective": "9 defective parts in the frozen test set are too few to tell, 10 are needed: review more parts",
    }


def test_without_defective_parts_escapes_cannot_be_told_whatever_the_minimum() -> None:
    none = package({}, (0, 50))
    verdict = judge(GateSettings(min_test_defective=0), numbers(none, none), speed())
    assert [rule.name for rule in verdict.rules if not rule.met] == ["max_escape_increase"]


@given(more=st.integers(0, 100), allowed=st.integers(0, 100))
def test_an_increase_of_just_what_is_allowed_is_met(more: int, allowed: int) -> None:
    champion, candidate = package({"dent": (0, 20)}, (0, 100)), package({"dent": (0, 20)}, (more, 100))
    verdict = judge(GateSettings(max_false_reject_increase=allowed / 100), numbers(champion, candidate), speed())
    assert verdict.go == (more <= allowed)


def test_a_candidate_that_could_not_be_measured_is_refused_with_its_reason() -> None:
    verdict = refuse(GateSettings(), "parity", "the score differs by 0.2")
    assert not verdict.go
    assert verdict.rules[0].reason == "the score differs by 0.2"


def test_a_gate_comes_from_a_file_and_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert read_gate(None) == GateSettings()
    (tmp_path / "gate.toml").write_text("max_slowdown = 1.5\nno_class_escapes_more = false\n")
    assert read_gate(tmp_path / "gate.toml").max_slowdown == 1.5
    (tmp_path / "gate.toml").write_text("max_slow_down = 1.5\n")
    with pytest.raises(SettingsError, match="did you mean 'max_slowdown'"):
        read_gate(tmp_path / "gate.toml")
    with pytest.raises(SettingsError, match="no such settings file"):
        read_gate(tmp_path / "none.toml")
