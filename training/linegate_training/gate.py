"""May a candidate go to the line in the champion's place? The gate's rules, and the verdict on a comparison.

Rules kept here: every rule gives its reason, met or not, in one line; too few parts to tell is no-go, never go; a number
that is missing meets no rule. The gate looks at the whole frozen test set; what was reviewed last is part of it, and is shown
apart for people. Nothing here measures.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from linegate.comparison import GateVerdict, PackageNumbers, Rate, Rule, SetNumbers, Speed
from linegate.settings import Settings, load_toml


class GateSettings(Settings):
    """What a candidate must keep to: `gate.toml`. Rates are shares of the parts of their kind, from 0 to 1."""

    max_escape_increase: float = Field(default=0.0, ge=0, le=1)
    """By so much may the rate of escapes rise."""
    max_false_reject_increase: float = Field(default=0.01, ge=0, le=1)
    """By so much may the rate of false rejects rise."""
    max_slowdown: float = Field(default=1.2, gt=0, le=100)
    """At most so many times the champion's time for an image."""
    min_test_good: int = Field(default=30, ge=0)
    """With fewer good parts in the frozen test set nothing can be told."""
    min_test_defective: int = Field(default=10, ge=0)
    """With fewer defective parts in the frozen test set nothing can be told."""
    no_class_escapes_more: bool = True
    """No class of defects may escape more often than with the champion, whatever all together do."""


def read_gate(path: Path | None) -> GateSettings:
    """Return the gate in a TOML file, the defaults for None.

    Raises:
        SettingsError: the file cannot be read, or has a key or value that a gate has not.
    """
    return GateSettings() if path is None else load_toml(path, GateSettings)


def judge(settings: GateSettings, numbers: SetNumbers, speed: Speed) -> GateVerdict:
    """Return the verdict on two packages that were measured on one frozen test set."""
    champion, candidate = numbers.champion, numbers.candidate
    rules = [
        Rule(name="parity", met=True, reason="the candidate computes on this machine what it computed where it was made"),
        _enough("min_test_good", numbers.good, settings.min_test_good, "good"),
        _enough("min_test_defective", numbers.defective, settings.min_test_defective, "defective"),
        _increase("max_escape_increase", "escapes", champion.escapes, candidate.escapes, settings.max_escape_increase),
        _increase(
            "max_false_reject_increase", "false rejects", champion.false_rejects, candidate.false_rejects,
            settings.max_false_reject_increase,
        ),
        Rule(
            name="max_slowdown", met=speed.ratio <= settings.max_slowdown,
            reason=f"{speed.candidate_ms:.1f} ms an image against {speed.champion_ms:.1f} ms, {speed.ratio:.2f} times as much, "
            f"at most {settings.max_slowdown:g} times is allowed",
        ),
    ]  # fmt: skip
    if settings.no_class_escapes_more and champion.escapes_by_class:
        rules.append(_classes(champion, candidate))
    return _verdict(settings, rules)


def refuse(settings: GateSettings, rule: str, reason: str) -> GateVerdict:
    """Return the verdict on a candidate that could not be measured at all: no-go, by one rule."""
    return _verdict(settings, [Rule(name=rule, met=False, reason=reason)])


def _verdict(settings: GateSettings, rules: list[Rule]) -> GateVerdict:
    return GateVerdict(go=all(rule.met for rule in rules), rules=tuple(rules), settings=settings.model_dump())


def _enough(name: str, found: int, wanted: int, kind: str) -> Rule:
    if found >= wanted:
        return Rule(name=name, met=True, reason=f"{found} {kind} parts in the frozen test set, {wanted} are needed")
    text = f"{found} {kind} parts in the frozen test set are too few to tell, {wanted} are needed: review more parts"
    return Rule(name=name, met=False, reason=text)


def _increase(name: str, what: str, champion: Rate, candidate: Rate, allowed: float) -> Rule:
    if champion.rate is None or candidate.rate is None:
        return Rule(name=name, met=False, reason=f"{what} cannot be told without such parts in the frozen test set")
    # A whisker of room for the division: 3 of 30 less 2 of 30 is not quite 1 of 30.
    met = candidate.rate - champion.rate <= allowed + 1e-9
    text = f"{what}: {_counted(candidate)} against {_counted(champion)}, at most {100 * allowed:g} % more are allowed"
    return Rule(name=name, met=met, reason=text)


def _classes(champion: PackageNumbers, candidate: PackageNumbers) -> Rule:
    worse = [
        f"{label} ({_counted(one)} against {_counted(champion.escapes_by_class[label])})"
        for label, one in candidate.escapes_by_class.items()
        if one.events > champion.escapes_by_class[label].events
    ]
    classes = len(candidate.escapes_by_class)
    text = f"more escapes of {', '.join(worse)}" if worse else f"none of {classes} classes of defects escapes more often"
    return Rule(name="no_class_escapes_more", met=not worse, reason=text)


def _counted(rate: Rate) -> str:
    share = f", {100 * rate.rate:.1f} %" if rate.rate is not None else ""
    return f"{rate.events} of {rate.trials}{share}"
