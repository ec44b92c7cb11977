"""What the models page shows: packages, views, promotions, shadows, runs and data sets, read together.

Rules kept here: nothing is changed here; a package that cannot be read is listed with its problem, and hides no other.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linegate.dataset_version import Version, is_version
from linegate.errors import DataError, LinegateError
from linegate.package import CARD_FILE, Manifest, ModelPackage
from linegate_edge.recipes import Place
from linegate_edge.review.models.answers import (
    AgreementCell,
    ApprovalAnswer,
    BrokenModel,
    DatasetAnswer,
    DatasetsAnswer,
    ModelAnswer,
    ModelsAnswer,
    PlaceAnswer,
    PromotionAnswer,
    ShadowAnswer,
    ShadowPart,
    ThresholdsAnswer,
    TrainingAnswer,
    ViewAnswer,
    summary_of,
)
from linegate_edge.review.models.promotion import Promotion
from linegate_edge.review.models.room import ModelRoom
from linegate_edge.review.models.run_record import RunRecord, read_log, read_progress, read_result
from linegate_edge.review.models.shelf import Candidate

_DIFFERING = 100


def models_answer(room: ModelRoom) -> ModelsAnswer:
    """Return all packages: those in service, and those of the register."""
    registered = room.register.registered()
    models: list[ModelAnswer] = []
    broken: list[BrokenModel] = []
    serving = {inspector.package.digest: inspector.package for inspector in room.book.inspectors}
    for digest in (*(digest for digest in serving if digest not in registered), *registered):
        try:
            models.append(model_answer(room, digest, registered, serving))
        except LinegateError as error:
            entry = registered[digest]
            broken.append(BrokenModel(digest=digest, name=entry["name"], version=entry["version"], problem=str(error)))
        except LookupError as error:
            entry = registered[digest]
            broken.append(BrokenModel(digest=digest, name=entry["name"], version=entry["version"], problem=str(error.args[0])))
    order = ("champion", "shadow", "candidate", "retired")
    models.sort(key=lambda model: order.index(model.state))
    return ModelsAnswer(
        views=views_answer(room), models=tuple(models), broken=tuple(broken), approvals_needed=room.register.needed
    )


def model_answer(
    room: ModelRoom,
    digest: str,
    registered: Mapping[str, Mapping[str, Any]] | None = None,
    serving: Mapping[str, ModelPackage] | None = None,
) -> ModelAnswer:
    """Return one package.

    Raises:
        LookupError: there is none of this digest.
        PackageError: it is known, and damaged.
    """
    registered = room.register.registered() if registered is None else registered
    if serving is None:
        serving = {inspector.package.digest: inspector.package for inspector in room.book.inspectors}
    candidate = room.shelf.find(digest) if digest in registered else None
    if candidate is None and digest not in serving:
        raise LookupError(f"no package '{digest[:64]}' here")
    judges = [place for place, package in _judging(room).items() if package == digest]
    shadows = [place for place, shadow in room.shadow_places().items() if shadow == digest]
    before = {row.package_digest for row in room.promotions.listed()} | {row.former_digest for row in room.promotions.listed()}
    manifest, card = _known(candidate, serving.get(digest))
    entry = registered.get(digest, {})
    thresholds = manifest.thresholds
    return ModelAnswer(
        digest=digest,
        reference=f"{manifest.name} {manifest.version} ({digest[:12]})",
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        labels=manifest.labels,
        created_at=manifest.created_at.isoformat(),
        dataset=manifest.dataset.name,
        input_wh=manifest.input.size_wh,
        state="champion" if judges else "shadow" if shadows else "retired" if digest in before else "candidate",
        on_shelf=candidate is not None,
        judges=tuple(map(_place, judges)),
        shadows=tuple(map(_place, shadows)),
        thresholds=ThresholdsAnswer(
            version=thresholds.version,
            score=thresholds.score,
            undecided_below=thresholds.undecided_below,
            set_by=thresholds.set_by,
            set_at=thresholds.set_at.isoformat(),
        ),
        metrics=manifest.metrics,
        card=card,
        imported_by=entry.get("imported_by"),
        imported_at=entry.get("imported_at"),
        source=entry.get("source"),
        trained_by=entry.get("trained_by"),
        comparison=None if candidate is None or candidate.comparison is None else summary_of(candidate.comparison),
        approvals=() if candidate is None else _approvals(room, candidate),
        problem=None,
    )


def views_answer(room: ModelRoom) -> tuple[ViewAnswer, ...]:
    """Return what judges each view."""
    in_force, shadows = room.promotions.in_force(), room.shadow_places()
    return tuple(
        ViewAnswer(
            recipe=name,
            view=view,
            package=loaded.inspector.package.reference,
            digest=loaded.inspector.package.digest,
            threshold=recipe.recipe.views[view].threshold,
            undecided_below=recipe.recipe.views[view].undecided_below,
            threshold_version=loaded.threshold_version,
            provider=loaded.inspector.provider,
            promotion=in_force[name, view].number if (name, view) in in_force else None,
            shadow=shadows.get((name, view)),
        )
        for name, recipe in room.book.recipes.items()
        for view, loaded in recipe.views.items()
    )


def promotion_answer(room: ModelRoom, row: Promotion, note: str | None = None) -> PromotionAnswer:
    """Return one promotion."""
    holds = room.promotions.in_force().get((row.recipe, row.view))
    return PromotionAnswer(
        number=row.number,
        recipe=row.recipe,
        view=row.view,
        package=row.package,
        digest=row.package_digest,
        former=row.former_package,
        former_digest=row.former_digest,
        by=row.by,
        at=row.at,
        override_reason=row.override_reason,
        rolls_back=row.rolls_back,
        in_force=holds is not None and holds.number == row.number,
        note=note,
    )


def shadow_answer(room: ModelRoom, digest: str) -> ShadowAnswer:
    """Return what a candidate said in the shadow."""
    cells = _rows(
        room,
        "SELECT champion_decision, decision, count(*) FROM shadow WHERE package_digest = ? AND error IS NULL GROUP BY 1, 2",
        digest,
    )
    failed = _rows(room, "SELECT count(*) FROM shadow WHERE package_digest = ? AND error IS NOT NULL", digest)
    differing = _rows(
        room,
        "SELECT verdict_id, serial, recipe, view, at, champion_decision, champion_score, decision, score, threshold "
        "FROM shadow WHERE package_digest = ? AND decision <> champion_decision AND error IS NULL "
        f"ORDER BY number DESC LIMIT {_DIFFERING}",
        digest,
    )
    spent = _rows(room, "SELECT duration_ms FROM shadow WHERE package_digest = ? ORDER BY number DESC LIMIT 500", digest)
    keys = ("verdict_id", "serial", "recipe", "view", "at", "champion", "champion_score", "candidate", "score", "threshold")
    state = room.shadow.state
    return ShadowAnswer(
        digest=digest,
        places=tuple(_place(place) for place, shadow in room.shadow_places().items() if shadow == digest),
        parts=sum(row[2] for row in cells),
        failed=failed[0][0],
        agreement=tuple(AgreementCell(champion=row[0], candidate=row[1], parts=row[2]) for row in cells),
        differing=tuple(ShadowPart.model_validate(dict(zip(keys, row, strict=True))) for row in differing),
        median_ms=statistics.median(row[0] for row in spent) if spent else None,
        dropped=state.dropped,
        share=state.share,
        hangs=state.hangs,
        last_error=state.last_error,
    )


def training_answer(room: ModelRoom, run: RunRecord, *, log_lines: int) -> TrainingAnswer:
    """Return one training run with the last lines of its log."""
    folder = room.runs.folder_of(run.number)
    result = read_result(folder) if run.state == "done" else None
    digest = None if result is None or result.candidate is None else result.candidate.digest
    return TrainingAnswer(
        run=run,
        progress=read_progress(folder),
        gate=None if result is None else result.gate,
        candidate_digest=digest,
        on_shelf=digest is not None and digest in room.register.registered(),
        log=tuple(read_log(folder, log_lines)),
    )


def datasets_answer(folder: Path) -> DatasetsAnswer:
    """Return the data set versions in a folder; their files are checked when one is used."""
    items, broken = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_version(path) or path.name.startswith("."):
            continue
        try:
            record = Version.load(path, verify=False).record
        except DataError as error:
            broken.append(str(error))
            continue
        items.append(
            DatasetAnswer(
                folder=path.name,
                name=record.name,
                number=record.number,
                digest=record.digest,
                parent=record.parent,
                created_at=record.created_at.isoformat(),
                created_by=record.created_by,
                note=record.note,
                stations=record.stations,
                train=record.counts.train,
                test=record.counts.test,
                left_out=record.counts.left_out,
                conflicts=len(record.conflicts),
                near_duplicates=len(record.near_duplicates),
            )
        )
    items.sort(key=lambda item: (item.created_at, item.number), reverse=True)
    return DatasetsAnswer(items=tuple(items), broken=tuple(broken))


def _rows(room: ModelRoom, sql: str, digest: str) -> list[tuple[Any, ...]]:
    with room.database.look() as db:
        return list(db.execute(sql, (digest,)))


def _judging(room: ModelRoom) -> dict[Place, str]:
    return {
        (name, view): loaded.inspector.package.digest
        for name, recipe in room.book.recipes.items()
        for view, loaded in recipe.views.items()
    }


def _place(place: Place) -> PlaceAnswer:
    return PlaceAnswer(recipe=place[0], view=place[1])


def _known(candidate: Candidate | None, package: ModelPackage | None) -> tuple[Manifest, str]:
    if candidate is not None:
        return candidate.manifest, candidate.card
    assert package is not None  # one of them is there, or it would not be listed
    return package.manifest, package.files[CARD_FILE].decode(errors="replace")


def _approvals(room: ModelRoom, candidate: Candidate) -> tuple[ApprovalAnswer, ...]:
    counted = {known.number for known in room.register.counted(candidate)}
    return tuple(
        ApprovalAnswer(by=known.by, at=known.at, comment=known.comment, counts=known.number in counted)
        for known in room.register.approvals(candidate)
    )
