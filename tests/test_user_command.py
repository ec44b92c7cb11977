"""`linegate user` and `linegate audit` as somebody at the machine calls them, beside a station that runs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import apsw
import httpx
import pytest

from conftest import PASSWORD, MakeStation, free_port, signed_in
from linegate.cli import main
from linegate_edge.review.audit import verify
from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase


@pytest.fixture
def store(tmp_path: Path) -> Path:
    ReviewDatabase(tmp_path / "store").close()
    return tmp_path / "store"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


def actions(store: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["audit", "show", str(store), "--json"]) == 0
    return [json.loads(line)["action"] for line in capsys.readouterr().out.splitlines()]


def test_an_empty_store_has_no_users_and_a_trail_that_holds(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["user", "list", str(store)]) == 0
    assert main(["audit", "show", str(store)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["audit", "verify", str(store)]) == 0
    assert "holds: 0 lines" in capsys.readouterr().out


def test_users_are_added_changed_disabled_and_listed(
    store: Path, password_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["user", "add", str(store), "root", "admin"]) == 0
    assert "one-time password: " in capsys.readouterr().out
    assert main(["user", "add", str(store), "Anna", "operator", "--password-file", str(password_file)]) == 0
    assert PASSWORD not in capsys.readouterr().out
    assert main(["user", "role", str(store), "anna", "quality"]) == 0
    password_file.write_text("another few words here")
    assert main(["user", "password", str(store), "anna", "--password-file", str(password_file)]) == 0
    assert main(["user", "disable", str(store), "anna"]) == 0
    capsys.readouterr()
    assert main(["user", "list", str(store), "--json"]) == 0
    users = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(user["name"], user["role"], user["disabled_at"] is None) for user in users] == [
        ("anna", "quality", False),
        ("root", "admin", True),
    ]
    assert "password" not in users[0]
    assert actions(store, capsys) == ["user.add", "user.add", "user.role", "user.password", "user.disable"]
    assert verify(store).problem is None


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["user", "add", "STORE", "a b", "operator"], "is no name"),
        (["user", "add", "STORE", "root", "operator"], "already"),
        (["user", "role", "STORE", "nobody", "operator"], "no user 'nobody'"),
        (["user", "role", "STORE", "root", "operator"], "last admin"),
        (["user", "disable", "STORE", "root"], "last admin"),
        (["user", "password", "STORE", "root", "--password-file", "missing"], "cannot be read"),
        (["user", "password", "STORE", "root"], "no terminal"),
        (["user", "token", "STORE", "camera", "--days", "0"], "1 to 3650"),
        (["user", "token", "STORE", "camera", "--revoke"], "no token 'camera'"),
        (["user", "list", "STORE/elsewhere"], "no such folder"),
        (["audit", "verify", "STORE/elsewhere"], "give the folder"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    store: Path, capsys: pytest.CaptureFixture[str], command: list[str], text: str
) -> None:
    assert main(["user", "add", str(store), "root", "admin"]) == 0
    capsys.readouterr()
    assert main([word.replace("STORE", str(store)) for word in command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error
    assert actions(store, capsys) == ["user.add"]


def test_a_changed_trail_and_a_digest_that_it_lacks_end_with_status_1(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["user", "add", str(store), "root", "admin"])
    capsys.readouterr()
    main(["audit", "head", str(store)])
    number, digest = capsys.readouterr().out.split()
    assert number == "1"
    assert main(["audit", "verify", str(store), "--noted", digest]) == 0
    assert main(["audit", "verify", str(store), "--noted", "0" * 64]) == 1
    with contextlib.closing(apsw.Connection(str(store / REVIEWS_FILE))) as db:
        db.execute("DROP TRIGGER audit_is_not_edited; UPDATE audit SET actor = 'somebody else'")
    capsys.readouterr()
    assert main(["audit", "verify", str(store), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["holds"], "line 1 was changed" in report["problem"]) == (False, True)


def test_beside_a_running_station_a_token_opens_it_and_a_disabled_user_is_out_at_once(
    make_station: MakeStation, capsys: pytest.CaptureFixture[str]
) -> None:
    station = make_station(free_port())
    store = str(station.settings.station.store)
    network = {"X-Forwarded-For": "10.0.0.9"}
    assert main(["user", "token", store, "camera-1"]) == 0
    bearer = {"Authorization": f"Bearer {capsys.readouterr().out.strip()}"}
    assert httpx.get(f"{station.address}metrics", headers=network).status_code == 401
    assert httpx.get(f"{station.address}metrics", headers=network | bearer).status_code == 200
    assert httpx.get(f"{station.address}api/v1/parts", headers=network | bearer).status_code == 403
    assert main(["user", "token", store, "camera-1", "--revoke"]) == 0
    assert httpx.get(f"{station.address}metrics", headers=network | bearer).status_code == 401

    with signed_in(station, "anna", "quality") as anna:
        assert anna.get("/api/v1/parts").status_code == 200
        assert main(["user", "disable", store, "anna"]) == 0
        assert anna.get("/api/v1/parts").status_code == 401
    assert verify(station.settings.station.store).problem is None
