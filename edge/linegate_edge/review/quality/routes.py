"""The API of quality, under `/api/v1/quality`: what verdicts and reviews say, with intervals and tests.

Rules kept here: it only reads; every answer names the span that it looked at; numbers come from the pure modules beside it. Who
may ask is left to `access`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import numpy as np
from fastapi import FastAPI, Query

from linegate_edge.message import utc_now
from linegate_edge.review.answers import people_errors
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.quality import answers, counts, drift
from linegate_edge.review.quality.control import control_chart
from linegate_edge.review.quality.distributions import clopper_pearson
from linegate_edge.review.quality.operating import is_defective, operating_curve
from linegate_edge.review.quality.periods import day_begin, periods, system_zone
from linegate_edge.settings import StationSettings

CONFIDENCE: Final = 0.95
REFERENCE_PARTS: Final = 500
"""So many first parts of a package are what its later scores are compared with."""
_FEW_SCORES: Final = 50
_ERRORS: Final = people_errors()
_NOTE: Final = (
    "Counted on reviewed parts alone. What nobody has looked at is in none of the counts: there are more escapes than shown, "
    "and a lower threshold rejects more good parts than shown."
)


class _Clock:
    """The plant's shifts and time zone."""

    def __init__(self, settings: StationSettings) -> None:
        self.shifts = settings.review.shifts
        self.zone = system_zone() if settings.review.time_zone is None else ZoneInfo(settings.review.time_zone)

    def begin(self, until: datetime, days: int) -> datetime:
        return day_begin(until, self.shifts, self.zone, days_before=days - 1)

    def answer(self, span: counts.Span) -> answers.SpanAnswer:
        return answers.SpanAnswer(since=span.since, until=span.until, time_zone=self.zone.key)

    def span(self, query: answers.SpanQuery) -> counts.Span:
        until = query.until or utc_now()
        return counts.Span(self.begin(until, query.days), until, query.recipe, query.package)


def add_quality(app: FastAPI, database: ReviewDatabase, settings: StationSettings) -> None:
    """Add the routes to an application."""
    clock = _Clock(settings)
    _add_tallies(app, database, clock, settings.station.topic)
    _add_chart(app, database, clock)
    _add_reviews(app, database, clock, settings.review.audit_share)
    _add_scores(app, database, clock)


def _add_tallies(app: FastAPI, database: ReviewDatabase, clock: _Clock, station: str) -> None:
    @app.get("/api/v1/quality/yield", tags=["quality"], responses=_ERRORS, summary="First-pass yield")
    def get_yield(query: Annotated[answers.SpanQuery, Query()]) -> answers.YieldAnswer:
        """Return the share of parts that passed at their first inspection, and that of the same time before."""
        span = clock.span(query)
        before = counts.Span(clock.begin(span.since, query.days + 1), span.since, span.recipe, span.package)
        with database.look() as db:
            now, then, packages = counts.totals(db, span), counts.totals(db, before), counts.packages(db)
        return answers.YieldAnswer(
            span=clock.answer(span), now=_totals(now), before=_totals(then), packages=tuple(name for name, _ in packages)
        )

    @app.get("/api/v1/quality/pareto", tags=["quality"], responses=_ERRORS, summary="Where rejects come from")
    def get_pareto(query: Annotated[answers.ParetoQuery, Query()]) -> answers.ParetoAnswer:
        """Return rejects (parts that did not pass at their first inspection) by class, shift, batch and so on, most first."""
        span = clock.span(query)
        with database.look() as db:
            if query.by == "station":
                found = [(station, counts.totals(db, span))]
            elif query.by == "shift":
                found = _by_shift(db, span, clock)
            else:
                found = counts.groups(db, span, query.by)
        return _pareto(query, clock.answer(span), found)


def _by_shift(db: Any, span: counts.Span, clock: _Clock) -> list[tuple[str, counts.Totals]]:
    spans = periods(span.since, span.until, "shift", clock.shifts, clock.zone)
    found = counts.by_period(db, span, spans)
    total: dict[str, counts.Totals] = {}
    for period, passed, failed, undecided in zip(spans, *(column.tolist() for column in found), strict=True):
        so_far = total.get(period.shift, counts.Totals())
        total[period.shift] = counts.Totals(so_far.passed + passed, so_far.failed + failed, so_far.undecided + undecided)
    ends = dict(zip(clock.shifts, (*clock.shifts[1:], clock.shifts[0]), strict=True))
    return [(f"{begin}–{ends[begin]}", count) for begin, count in total.items()]


def _pareto(
    query: answers.ParetoQuery, span: answers.SpanAnswer, found: Iterable[tuple[str, counts.Totals]]
) -> answers.ParetoAnswer:
    groups = [(name, count) for name, count in found if count.failed + count.undecided]
    groups.sort(key=lambda group: (-group[1].failed - group[1].undecided, group[0]))
    total, so_far, bars = sum(count.failed + count.undecided for _, count in groups), 0, []
    for name, count in groups[: query.limit]:
        rejects = count.failed + count.undecided
        so_far += rejects
        parts = None if query.by == "defect_class" else count.parts
        bars.append(
            answers.ParetoBar(
                name=name or None,
                failed=count.failed,
                undecided=count.undecided,
                rejects=rejects,
                share=rejects / total,
                cumulative=so_far / total,
                parts=parts,
                reject_rate=None if parts is None else rejects / parts,
            )
        )
    rest = max(0, len(groups) - query.limit)
    return answers.ParetoAnswer(span=span, by=query.by, rejects=total, bars=tuple(bars), rest=total - so_far, rest_groups=rest)


def _add_chart(app: FastAPI, database: ReviewDatabase, clock: _Clock) -> None:
    @app.get("/api/v1/quality/chart", tags=["quality"], responses=_ERRORS, summary="Control chart of rejects")
    def get_chart(query: Annotated[answers.ChartQuery, Query()]) -> answers.ChartAnswer:
        """Return the share of parts that did not pass by hour, shift or day, on a p chart or Laney's p′ chart.

        Points outside the limits (rule 1) and the eighth and later of a run on one side (Western Electric) are signals.
        """
        span = clock.span(query)
        spans = periods(span.since, span.until, query.period, clock.shifts, clock.zone)
        with database.look() as db:
            passed, failed, undecided = counts.by_period(db, span, spans)
        parts, rejects = passed + failed + undecided, failed + undecided
        some = parts > 0
        chart = control_chart(rejects[some], parts[some])
        if chart is None:
            return answers.ChartAnswer(
                span=clock.answer(span),
                period=query.period,
                kind="p",
                why="no parts in this time",
                centre=None,
                sigma_z=None,
                dispersion=None,
                p_value=None,
                preliminary=True,
                points=(),
            )
        shown = [period for period, there in zip(spans, some.tolist(), strict=True) if there]
        numbers = (column.tolist() for column in (parts[some], rejects[some], chart.shares, chart.low, chart.high))
        points = (
            answers.ChartPoint(
                begin=period.begin,
                end=period.end,
                shift=period.shift,
                parts=n,
                rejects=x,
                share=share,
                low=low,
                high=high,
                signals=signals,
            )
            for period, n, x, share, low, high, signals in zip(shown, *numbers, chart.signals, strict=True)
        )
        return answers.ChartAnswer(
            span=clock.answer(span),
            period=query.period,
            kind=chart.kind,
            why=chart.why,
            centre=chart.centre,
            sigma_z=chart.sigma_z,
            dispersion=chart.dispersion,
            p_value=chart.p_value,
            preliminary=chart.preliminary,
            points=tuple(points),
        )


def _add_reviews(app: FastAPI, database: ReviewDatabase, clock: _Clock, audit_share: float) -> None:
    @app.get("/api/v1/quality/reviews", tags=["quality"], responses=_ERRORS, summary="Escapes and false rejects")
    def get_reviews(query: Annotated[answers.ReviewsQuery, Query()]) -> answers.ReviewsAnswer:
        """Return what people found: false rejects, and escapes of the audit sample, with intervals; by class and period."""
        span = clock.span(query)
        with database.look() as db:
            groups, waiting = counts.reviewed(db, span), counts.waiting(db, span)
        told = [group for group in groups if group.disposition != "limit_sample"]
        audited = [group for group in told if group.queued == "audit"]
        spans = periods(span.since, span.until, query.period, clock.shifts, clock.zone)
        places = counts.places([group.minute for group in groups], spans).tolist() if groups and spans else []
        begins = [spans[place].begin.isoformat().replace("+00:00", "Z") for place in places]
        packages = sorted({group.package for group in audited})
        return answers.ReviewsAnswer(
            span=clock.answer(span),
            confidence=CONFIDENCE,
            audit_share=audit_share,
            false_rejects=_share([group for group in told if group.decision != "pass"], "false_reject"),
            audit=_share(audited, "escape"),
            close=_share([group for group in told if group.queued == "close"], "escape"),
            audit_waiting=waiting,
            audit_by_package=tuple(
                answers.PackageAudit(
                    package=name, escapes=_share([group for group in audited if group.package == name], "escape")
                )
                for name in packages
            ),
            by_class=_rows(groups, [group.defect_class for group in groups], by_count=True),
            by_period=_rows(groups, begins, by_count=False),
        )


def _share(groups: Sequence[counts.ReviewedGroup], disposition: str) -> answers.IntervalAnswer:
    count = sum(group.count for group in groups if group.disposition == disposition)
    found = clopper_pearson(count, sum(group.count for group in groups), CONFIDENCE)
    return answers.IntervalAnswer(count=found.count, total=found.total, share=found.share, low=found.low, high=found.high)


def _rows(groups: Sequence[counts.ReviewedGroup], names: Sequence[str], *, by_count: bool) -> tuple[answers.ReviewRow, ...]:
    found: dict[str, Counter[str]] = {}
    for group, name in zip(groups, names, strict=True):
        found.setdefault(name, Counter())[group.disposition] += group.count
    order = sorted(found, key=lambda name: (-found[name].total() if by_count else 0, name))
    return tuple(
        answers.ReviewRow(
            name=name,
            reviewed=found[name].total(),
            confirmed=found[name]["confirmed"],
            false_rejects=found[name]["false_reject"],
            escapes=found[name]["escape"],
            limit_samples=found[name]["limit_sample"],
        )
        for name in order
    )


def _add_scores(app: FastAPI, database: ReviewDatabase, clock: _Clock) -> None:
    @app.get("/api/v1/quality/drift", tags=["quality"], responses=_ERRORS, summary="Drift of scores")
    def get_drift(query: Annotated[answers.DriftQuery, Query()]) -> answers.DriftAnswer:
        """Return by package whether the scores of its last parts are distributed as those of its first."""
        until = query.until or utc_now()
        span = counts.Span(clock.begin(until, query.days), until)
        rows = []
        with database.look() as db:
            for package, first in counts.packages(db):
                last = counts.last_scores(db, package, span, query.last)
                reference = counts.first_scores(db, package, first, REFERENCE_PARTS)
                rows.append((package, reference, last))
        tested = [row for row in rows if min(len(row[1]), len(row[2])) >= _FEW_SCORES]
        tests = {row[0]: drift.kolmogorov_smirnov(row[1], row[2]) for row in tested}
        adjusted = dict(zip(tests, drift.benjamini_hochberg([p for _, p in tests.values()]), strict=True))
        return answers.DriftAnswer(
            span=clock.answer(span),
            test=drift.TEST,
            adjustment="Benjamini–Hochberg over the packages",
            packages=tuple(_drift_row(*row, tests.get(row[0]), adjusted.get(row[0])) for row in reversed(rows)),
        )

    @app.get("/api/v1/quality/threshold", tags=["quality"], responses=_ERRORS, summary="What another threshold would do")
    def get_threshold(query: Annotated[answers.ThresholdQuery, Query()]) -> answers.ThresholdAnswer:
        """Return escapes, false rejects, confirmed rejects and passes of the parts reviewed last, at every threshold."""
        with database.look() as db:
            known = dict(counts.packages(db))
            package = query.package or next(reversed(known), None)
            if package is None or package not in known:
                reviewed, current = [], None
            else:
                reviewed = counts.last_reviewed(db, package, query.last)
                current = counts.threshold_in_force(db, package, known[package])
        truths = [is_defective(part.decision, part.disposition) for part in reviewed]
        scores = np.array([part.score for part, truth in zip(reviewed, truths, strict=True) if truth is not None], np.float64)
        curve = operating_curve(scores, np.array([truth for truth in truths if truth is not None], np.bool_))
        columns = (curve.thresholds, curve.escapes, curve.false_rejects, curve.confirmed, curve.passes)
        return answers.ThresholdAnswer(
            package=package,
            packages=tuple(reversed(known)),
            reviewed=len(scores),
            limit_samples=len(reviewed) - len(scores),
            current=current,
            breakpoints=tuple(
                answers.Breakpoint(
                    threshold=None if math.isinf(at) else at,
                    escapes=escapes,
                    false_rejects=false_rejects,
                    confirmed=confirmed,
                    passes=passes,
                )
                for at, escapes, false_rejects, confirmed, passes in zip(*(column.tolist() for column in columns), strict=True)
            ),
            note=_NOTE,
        )


def _drift_row(
    package: str,
    reference: counts.Floats,
    last: counts.Floats,
    test: tuple[float, float] | None,
    adjusted: float | None,
) -> answers.DriftRow:
    index = None if test is None else drift.stability_index(reference, last)
    note = None
    if test is None:
        note = f"a test needs {_FEW_SCORES} scores on both sides, there are {len(reference)} and {len(last)}"
    return answers.DriftRow(
        package=package,
        reference=f"its first {len(reference)} parts at this station",
        reference_parts=len(reference),
        parts=len(last),
        reference_median=float(np.median(reference)) if len(reference) else None,
        median=float(np.median(last)) if len(last) else None,
        distance=None if test is None else test[0],
        p_value=None if test is None else test[1],
        adjusted_p=adjusted,
        psi=index,
        level=None if adjusted is None or index is None else drift.level(adjusted, index),
        note=note,
    )


def _totals(found: counts.Totals) -> answers.TotalsAnswer:
    share = found.passed / found.parts if found.parts else None
    return answers.TotalsAnswer(
        parts=found.parts, passed=found.passed, failed=found.failed, undecided=found.undecided, first_pass_yield=share
    )
