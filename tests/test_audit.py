"""The audit trail: whatever is edited, removed or moved in it is found."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import apsw
import pytest

from linegate.errors import StoreError
from linegate_edge.review.audit import HEAD_FILE, Actor, AuditTrail, verify
from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase

ANNA = Actor("anna", "quality")


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    made = AuditTrail(ReviewDatabase(tmp_path))
    for number in range(1, 8):
        made.add(ANNA, "confirm", f"part {number}", {"class": "crack", "number": number, "text": "Maße: 3 µm"})
    return made


def edit(folder: Path, *statements: str) -> None:
    """Do to the file what somebody with the disk in hand can do: the triggers go first."""
    with contextlib.closing(apsw.Connection(str(folder / REVIEWS_FILE))) as db:
        db.execute("DROP TRIGGER audit_is_not_edited; DROP TRIGGER audit_is_not_cut")
        for statement in statements:
            db.execute(statement)


def test_an_empty_trail_holds(tmp_path: Path) -> None:
    ReviewDatabase(tmp_path)
    assert verify(tmp_path).problem is None


def test_an_untouched_trail_holds_and_knows_its_head(trail: AuditTrail, tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert (report.lines, report.problem) == (7, None)
    assert (report.lines, report.head) == trail.head()


@pytest.mark.parametrize("column", ["at", "actor", "role", "action", "subject", "detail", "previous", "digest"])
@pytest.mark.parametrize("line", [1, 4, 7])
def test_any_edited_field_of_any_line_is_found(trail: AuditTrail, tmp_path: Path, column: str, line: int) -> None:
    value = '{"class":"dent"}' if column == "detail" else "f" * 64
    edit(tmp_path, f"UPDATE audit SET {column} = '{value}' WHERE number = {line}")
    problem = verify(tmp_path).problem
    assert problem is not None
    assert f"line {line}" in problem


@pytest.mark.parametrize("line", [1, 4, 7])
def test_a_removed_line_is_found_also_at_the_end(trail: AuditTrail, tmp_path: Path, line: int) -> None:
    edit(tmp_path, f"DELETE FROM audit WHERE number = {line}")
    assert verify(tmp_path).problem is not None


@pytest.mark.parametrize("line", [1, 4, 6])
def test_a_removed_line_is_found_when_the_others_are_numbered_anew(trail: AuditTrail, tmp_path: Path, line: int) -> None:
    edit(
        tmp_path,
        f"DELETE FROM audit WHERE number = {line}",
        f"UPDATE audit SET number = -number WHERE number > {line}",
        "UPDATE audit SET number = -number - 1 WHERE number < 0",
    )
    assert verify(tmp_path).problem is not None


def test_lines_that_changed_places_are_found(trail: AuditTrail, tmp_path: Path) -> None:
    edit(
        tmp_path,
        "UPDATE audit SET number = -3 WHERE number = 3",
        "UPDATE audit SET number = 3 WHERE number = 4",
        "UPDATE audit SET number = 4 WHERE number = -3",
    )
    assert verify(tmp_path).problem is not None


def test_a_trail_without_its_head_or_cut_to_nothing_is_found(trail: AuditTrail, tmp_path: Path) -> None:
    edit(tmp_path, "DELETE FROM audit")
    assert "cut off" in str(verify(tmp_path).problem)
    (tmp_path / HEAD_FILE).unlink()


def test_a_digest_noted_elsewhere_must_be_in_the_trail(trail: AuditTrail, tmp_path: Path) -> None:
    noted = trail.lines()[3].digest
    assert verify(tmp_path, noted).problem is None
    assert "not the one" in str(verify(tmp_path, "a" * 64).problem)


def test_a_crash_before_the_head_was_written_breaks_nothing(trail: AuditTrail, tmp_path: Path) -> None:
    before = (tmp_path / HEAD_FILE).read_text()
    trail.add(ANNA, "confirm", "part 8")
    (tmp_path / HEAD_FILE).write_text(before)
    assert verify(tmp_path).problem is None


def test_the_trail_refuses_edits_through_its_own_database(tmp_path: Path, trail: AuditTrail) -> None:
    with pytest.raises(StoreError, match="append-only"), ReviewDatabase(tmp_path).change() as db:
        db.execute("UPDATE audit SET actor = 'nobody'")


def test_a_change_that_fails_leaves_no_line(trail: AuditTrail, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), trail.change(ANNA, "confirm", "part 9"):
        raise RuntimeError("it failed")
    assert trail.head()[0] == 7
    assert verify(tmp_path).problem is None


def test_many_at_once_make_one_chain(trail: AuditTrail, tmp_path: Path) -> None:
    def write(name: str) -> None:
        for number in range(20):
            trail.add(Actor(name, "quality"), "confirm", f"part {number}")

    threads = [threading.Thread(target=write, args=(f"user{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (verify(tmp_path).lines, verify(tmp_path).problem) == (107, None)


def test_no_trail_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="give the folder of a station's store"):
        verify(tmp_path / "nowhere")
