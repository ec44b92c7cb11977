"""Logins and sessions: what is stored, when they end, and what a stolen cookie, a foreign page or a guesser gets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import AGENT, PASSWORD, MakeStation, add_user, free_port, signed_in
from linegate.errors import AccessError
from linegate_edge.review.access import gate
from linegate_edge.review.access.client import COOKIE
from linegate_edge.review.access.next_path import checked_next
from linegate_edge.review.access.passwords import check_password, hash_password, is_password
from linegate_edge.review.access.rate_limit import RateLimit
from linegate_edge.review.access.sessions import Sessions
from linegate_edge.review.access.users import FIRST_PASSWORD_FILE, Users, plain_name
from linegate_edge.review.audit import SYSTEM, AuditTrail, verify
from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase
from linegate_edge.station import Station

NETWORK = {"X-Forwarded-For": "10.0.0.9"}
NEW = "three ships on a quiet sea"


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    return make_station(free_port())


@pytest.fixture
def anna(station: Station) -> Iterator[httpx.Client]:
    with signed_in(station, "anna", "quality") as client:
        yield client


@pytest.fixture
def nobody(station: Station) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=station.address, timeout=30, headers={"User-Agent": AGENT}) as client:
        yield client


def log_in(client: httpx.Client, name: str = "anna", password: str = PASSWORD, **more: Any) -> httpx.Response:
    return client.post("/api/v1/login", json={"name": name, "password": password, **more})


def last(station: Station) -> tuple[str, str, str]:
    line = station.reviews.trail.lines(limit=1)[0]
    return line.action, line.actor, line.subject


# -- the first admin and forced change --------------------------------------------------------------------------------


def test_a_store_without_users_gets_one_admin_who_has_to_choose_a_password(
    make_station: MakeStation, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING, "linegate.access"):
        station = make_station(free_port())
    first = station.settings.station.store / FIRST_PASSWORD_FILE
    password = first.read_text().strip()
    assert first.stat().st_mode & 0o777 == 0o600
    assert [password in record.message for record in caplog.records if record.name == "linegate.access"] == [True]
    with httpx.Client(base_url=station.address, timeout=30) as client:
        answer = log_in(client, "Admin", password).json()
        assert (answer["must_change"], answer["pages"]) == (True, [])
        client.headers["X-CSRF-Token"] = answer["csrf"]
        response = client.get("/api/v1/users")
        assert (response.status_code, response.json()["error"]) == (403, "choose a new password first: POST /api/v1/password")
        assert client.get("/admin").headers["location"] == "/login?next=/admin"
        for new in (password, "short", "aaaaaaaaaaaaaa", "adminadminadmin", "linegate-admin!"):
            response = client.post("/api/v1/password", json={"current": password, "new": new})
            assert response.status_code == 422, new
            assert new not in response.text or new == "short"
        assert first.exists()
        cookie = client.cookies[COOKIE]
        answer = client.post("/api/v1/password", json={"current": password, "new": NEW}).json()
        assert answer["must_change"] is False
        assert client.cookies[COOKIE] != cookie
        client.headers["X-CSRF-Token"] = answer["csrf"]
        assert client.get("/api/v1/users").status_code == 200
    assert not first.exists()
    raw = (station.settings.station.store / REVIEWS_FILE).read_bytes()
    assert password.encode() not in raw
    station.stop()
    again = make_station(free_port())
    assert [user.name for user, _ in again.access.users.list()] == ["admin"]
    assert not first.exists()


# -- what a session is ------------------------------------------------------------------------------------------------


def test_the_cookie_is_for_this_site_alone_and_only_its_digest_is_kept(station: Station, nobody: httpx.Client) -> None:
    add_user(station, "anna", "quality")
    response = log_in(nobody)
    (cookie,) = response.headers.get_list("set-cookie")
    parts = cookie.split("; ")
    secret = parts[0].partition("=")[2]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(parts)
    assert "Secure" not in parts
    assert len(secret) == 43
    for file in station.settings.station.store.glob(f"{REVIEWS_FILE}*"):
        assert secret.encode() not in file.read_bytes()
        assert PASSWORD.encode() not in file.read_bytes()
    assert nobody.get("/api/v1/parts").status_code == 200


@pytest.mark.parametrize(("more", "forwarded"), [("cookie_secure = true", None), ('trusted_proxies = ["127.0.0.1"]', "https")])
def test_the_cookie_is_secure_where_the_browser_speaks_https(
    make_station: MakeStation, more: str, forwarded: str | None
) -> None:
    station = make_station(free_port(), more=f"[evidence]\nmin_free_mib = 0\n[access]\n{more}\n")
    add_user(station, "anna", "quality")
    headers = {"X-Forwarded-For": "10.0.0.9", "X-Forwarded-Proto": forwarded} if forwarded else {}
    body = {"name": "anna", "password": PASSWORD}
    response = httpx.post(f"{station.address}api/v1/login", json=body, headers=headers)
    assert "; Secure" in response.headers["set-cookie"]
    assert station.reviews.trail.lines(limit=1)[0].detail["address"] == ("10.0.0.9" if forwarded else "127.0.0.1")


def test_a_login_makes_a_new_session_and_ends_the_one_that_was_brought(
    station: Station, anna: httpx.Client, nobody: httpx.Client
) -> None:
    planted = anna.cookies[COOKIE]
    nobody.cookies.set(COOKIE, planted, domain="127.0.0.1")
    assert log_in(nobody).status_code == 200
    assert nobody.cookies[COOKIE] != planted
    assert anna.get("/api/v1/parts").status_code == 401


def test_a_stolen_cookie_is_refused_ended_and_in_the_trail(station: Station, anna: httpx.Client) -> None:
    with httpx.Client(base_url=station.address, cookies=dict(anna.cookies), headers={"User-Agent": "thief"}) as thief:
        response = thief.get("/api/v1/parts")
        assert (response.status_code, "another browser" in response.json()["error"]) == (401, True)
        assert f"{COOKIE}=;" in response.headers["set-cookie"]
        assert thief.get("/api/v1/parts").status_code == 401
    assert last(station) == ("session.stolen", "anna", "anna")
    assert anna.get("/api/v1/parts").status_code == 401


def test_sessions_end_when_idle_and_in_any_case(tmp_path: Path) -> None:
    database = ReviewDatabase(tmp_path)
    now = [datetime.now(UTC)]
    trail = AuditTrail(database)
    users = Users(database, trail)
    users.add(SYSTEM, "anna", "quality", PASSWORD)
    user = users.find("anna")
    assert user is not None
    sessions = Sessions(database, trail, longest=timedelta(hours=2), idle=timedelta(minutes=30), now=lambda: now[0])
    secret, _ = sessions.open(user, "a", address="", how="test")
    for _ in range(5):
        now[0] += timedelta(minutes=20)
        assert sessions.find(secret, "a", address="") is not None
    now[0] += timedelta(minutes=20)
    assert sessions.find(secret, "a", address="") is None, "after two hours it is over, however busy"
    secret, _ = sessions.open(user, "a", address="", how="test")
    now[0] += timedelta(minutes=20)
    assert sessions.find(secret, "a", address="", touch=False) is not None
    now[0] += timedelta(minutes=10)
    assert sessions.find(secret, "a", address="") is None, "what only listens is no use of it"
    for _ in range(30):
        sessions.open(user, "a", address="", how="test")
    assert users.list()[0][1] == 20
    database.close()


def test_logout_ends_this_session_and_end_all_ends_the_others(station: Station, anna: httpx.Client) -> None:
    with signed_in(station, "anna") as second, signed_in(station, "anna") as third, signed_in(station, "root", "admin") as root:
        assert anna.post("/api/v1/logout").status_code == 204
        assert last(station) == ("logout", "anna", "anna")
        assert anna.get("/api/v1/parts").status_code == 401
        assert second.get("/api/v1/parts").status_code == 200
        assert root.patch("/api/v1/users/anna", json={"end_sessions": True}).status_code == 200
        assert {client.get("/api/v1/parts").status_code for client in (second, third)} == {401}


@pytest.mark.parametrize("change", [{"role": "operator"}, {"disabled": True}, {"reset_password": True}])
def test_a_change_of_the_user_ends_all_sessions(station: Station, anna: httpx.Client, change: dict[str, Any]) -> None:
    with signed_in(station, "root", "admin") as root:
        response = root.patch("/api/v1/users/anna", json=change)
        assert response.status_code == 200
        assert response.json()["user"]["sessions"] == 0
        assert (response.json()["one_time_password"] is not None) == ("reset_password" in change)
    assert anna.get("/api/v1/parts").status_code == 401


@pytest.mark.parametrize(
    "change", [{}, {"role": "ml", "disabled": True}, {"role": "king"}, {"disabled": "maybe"}, {"name": "eve"}]
)
def test_a_change_that_is_none_or_two_leaves_everything_as_it_was(
    station: Station, anna: httpx.Client, change: dict[str, Any]
) -> None:
    with signed_in(station, "root", "admin") as root:
        before = station.reviews.trail.head()
        response = root.patch("/api/v1/users/anna", json=change)
        assert (response.status_code, list(response.json())) == (422, ["error"])
        assert station.reviews.trail.head() == before
    assert anna.get("/api/v1/parts").status_code == 200


def test_an_own_new_password_ends_the_other_sessions_and_keeps_this_one(station: Station, anna: httpx.Client) -> None:
    with signed_in(station, "anna") as other:
        answer = anna.post("/api/v1/password", json={"current": "not the password", "new": NEW})
        assert (answer.status_code, last(station)[0]) == (403, "password.refused")
        answer = anna.post("/api/v1/password", json={"current": PASSWORD, "new": NEW})
        assert answer.status_code == 200
        assert other.get("/api/v1/parts").status_code == 401
    assert anna.get("/api/v1/parts").status_code == 200


def test_an_event_stream_ends_soon_after_its_session(
    station: Station, anna: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_CHECK_STREAMS_EVERY_S", 0.2)
    with anna.stream("GET", "/live/events", headers=NETWORK, timeout=20) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        station.access.users.end_sessions(SYSTEM, "anna")
        started = time.monotonic()
        for _ in lines:
            pass
        assert time.monotonic() - started < 10
    assert httpx.get(f"{station.address}healthz").status_code == 200


@pytest.mark.parametrize(("role", "stays"), [("operator", True), ("quality", False)])
def test_a_display_stays_up_and_a_page_that_could_do_more_does_not(
    station: Station, monkeypatch: pytest.MonkeyPatch, role: str, stays: bool
) -> None:
    monkeypatch.setattr(gate, "_CHECK_STREAMS_EVERY_S", 0.1)
    add_user(station, "wall", role)
    station.access.sessions.idle = timedelta(seconds=3)
    with signed_in(station, "wall") as page, page.stream("GET", "/live/events", headers=NETWORK, timeout=20) as response:
        assert response.status_code == 200
        started = time.monotonic()
        for _ in response.iter_lines():
            if time.monotonic() - started > 9:
                break
        assert (time.monotonic() - started > 9) == stays


# -- other sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "made up", "ü"])
def test_a_change_without_the_token_of_its_session_is_refused(station: Station, anna: httpx.Client, token: str | None) -> None:
    headers = {} if token is None else {"X-CSRF-Token": token.encode()}
    with httpx.Client(base_url=station.address, cookies=dict(anna.cookies), headers={"User-Agent": AGENT}) as page:
        response = page.post("/api/v1/logout", headers=headers)
        assert (response.status_code, "X-CSRF-Token" in response.json()["error"]) == (403, True)
        assert page.post("/frames", content=b"x", headers={**headers, "Content-Type": "image/png"}).status_code == 403
    assert last(station) == ("csrf.refused", "anna", "POST /api/v1/logout")
    assert anna.get("/api/v1/parts").status_code == 200


def test_a_page_of_another_site_is_refused_and_in_the_trail_once(station: Station, anna: httpx.Client) -> None:
    for _ in range(3):
        response = anna.post("/api/v1/logout", headers={"Origin": "https://evil.example"})
        assert response.status_code == 403
    assert last(station) == ("cross_site.refused", "nobody", "POST /api/v1/logout")
    assert len([line for line in station.reviews.trail.lines() if line.action == "cross_site.refused"]) == 1
    assert anna.get("/api/v1/parts").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/%2f%2fevil.example/..",
        "/%5cevil.example",
        "/%252f%252fevil.example",
        "/%25252525252f",
        "/\tevil.example",
        "/\n/evil.example",
        "/queue\0",
        "queue",
        "/./..//evil.example",
    ],
)
def test_a_path_out_of_the_station_is_refused_before_the_password_is_looked_at(
    station: Station, nobody: httpx.Client, path: str
) -> None:
    add_user(station, "anna", "quality")
    response = log_in(nobody, next=path)
    assert response.status_code == 422
    assert list(response.json()) == ["error"]
    assert "set-cookie" not in response.headers
    assert last(station) == ("login.refused", "nobody", "next")


@pytest.mark.parametrize("path", ["/", "/queue", "/parts?serial=A%2F17&class=a%26b", "/part?id=x#heat", None, ""])
def test_a_path_of_the_station_is_kept(path: str | None) -> None:
    assert checked_next(path) == (path or "/")


# -- guessing ---------------------------------------------------------------------------------------------------------


def test_wrong_passwords_and_unknown_users_get_the_same_words_in_the_same_time(station: Station, nobody: httpx.Client) -> None:
    add_user(station, "anna", "quality")
    answers, times = [], []
    for name in ("anna", "no such user", "nobody"):
        started = time.monotonic()
        answers.append(log_in(nobody, name, "wrong " + PASSWORD))
        times.append(time.monotonic() - started)
    assert {(answer.status_code, answer.text) for answer in answers} == {(401, '{"error":"name or password is wrong"}')}
    assert min(times) > 0.02, "each of them made a hash"
    whys = [line.detail["why"] for line in station.reviews.trail.lines(limit=3)]
    assert whys == ["no such user", "no name for a user", "wrong password"]


def test_a_disabled_user_does_not_come_in(station: Station, nobody: httpx.Client) -> None:
    add_user(station, "anna", "quality")
    station.access.users.disable(SYSTEM, "anna")
    assert log_in(nobody).status_code == 401
    assert station.reviews.trail.lines(limit=1)[0].detail["why"] == "the user is disabled"


def test_guessing_is_slowed_down_told_and_audited_once(station: Station, nobody: httpx.Client) -> None:
    add_user(station, "anna", "quality")
    statuses = [log_in(nobody, "anna", f"guess number {number}").status_code for number in range(9)]
    assert statuses[:3] == [401, 401, 401]
    assert 429 in statuses
    response = log_in(nobody)
    assert response.status_code == 429, "not even the right one, for a while"
    assert int(response.headers["retry-after"]) >= 1
    assert "try again in" in response.json()["error"]
    limited = [line for line in station.reviews.trail.lines() if line.action == "login.limited"]
    assert 1 <= len(limited) <= 2


def test_delays_grow_per_user_and_address_and_memory_is_bounded() -> None:
    now = [0.0]
    limit = RateLimit(clock=lambda: now[0])
    assert [limit.attempt("anna", f"a{number}")[0] for number in range(3)] == [0, 0, 0]
    waits = []
    for number in range(10):
        wait, new = limit.attempt("anna", f"b{number}")
        assert (wait > 0, new) == (True, True)
        assert limit.attempt("anna", "c") == (wait, False)
        waits.append(wait)
        now[0] += wait
        assert limit.attempt("anna", f"d{number}")[0] == 0
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert limit.attempt("berta", "z") == (0, False)
    for number in range(9):
        assert limit.attempt(f"user{number}", "z")[0] == 0
    assert limit.attempt("another", "z")[0] == 1, "one address that tries many names"
    now[0] += 901
    assert limit.attempt("anna", "z")[0] == 0
    for number in range(10_000):
        limit.attempt(f"name{number}", f"address{number}")
    assert len(limit) <= 4096


def test_many_guesses_at_once_gain_nothing() -> None:
    limit = RateLimit()
    barrier = threading.Barrier(16)

    def guess(_: int) -> int:
        barrier.wait()
        return limit.attempt("anna", "1.2.3.4")[0]

    with ThreadPoolExecutor(16) as pool:
        assert sum(wait == 0 for wait in pool.map(guess, range(16))) == 3


# -- what people type -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "anna", "password": "x" * 1_000_000}, 413),
        ({"name": "anna", "password": "x" * 2000}, 422),
        ({"name": "anna"}, 422),
        ({"name": "anna", "password": PASSWORD, "role": "admin"}, 422),
        ({"name": ["anna"], "password": PASSWORD}, 422),
        ({"name": "", "password": PASSWORD}, 422),
        ([], 422),
    ],
)
def test_a_login_that_cannot_be_is_one_line_without_the_password(
    station: Station, nobody: httpx.Client, body: Any, status: int
) -> None:
    add_user(station, "anna", "quality")
    response = nobody.post("/api/v1/login", json=body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert "\n" not in response.json()["error"]
    assert PASSWORD not in response.text
    assert "xxx" not in response.text
    assert "set-cookie" not in response.headers
    if status == 413:
        assert last(station) == ("body.refused", "this machine", "/api/v1/login")
    assert log_in(nobody).status_code == 200


NAMES = [("Anna", "anna"), ("JÜRGEN", "jürgen"), ("Straße", "strasse"), ("Ａnna", "anna"), ("李雷", "李雷")]
NO_NAMES = ["", " ", "a b", "a/b", "a\0b", "a\u202eb", "a\u200bb", "...", "x" * 65, "<b>", "🙂", "this machine"]


@pytest.mark.parametrize(("typed", "kept"), NAMES)
def test_a_name_has_one_form_however_it_is_typed(station: Station, nobody: httpx.Client, typed: str, kept: str) -> None:
    with signed_in(station, "root", "admin") as root:
        response = root.post("/api/v1/users", json={"name": typed, "role": "operator", "password": PASSWORD})
        assert response.status_code == 201
        assert response.json()["user"]["name"] == kept
        assert root.post("/api/v1/users", json={"name": kept, "role": "operator"}).status_code == 409
        assert root.patch(f"/api/v1/users/{kept}", json={"role": "auditor"}).status_code == 200
    assert log_in(nobody, typed).json()["name"] == kept
    assert verify(station.settings.station.store).problem is None


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_could_be_mistaken_is_none(name: str) -> None:
    with pytest.raises(AccessError, match="is no name"):
        plain_name(name)


def test_a_password_is_the_same_however_its_letters_are_composed() -> None:
    composed, decomposed = "caf\u00e9 auf der m\u00f6we", "cafe\u0301 auf der mo\u0308we"
    kept = hash_password(composed)
    assert kept.startswith("$argon2id$")
    assert is_password(kept, decomposed)
    assert not is_password(kept, composed + " ")
    assert not is_password(None, composed)
    assert not is_password("damaged", composed)
    check_password("correct horse battery staple", "anna")
    check_password("ein Satz mit 🙂 und Ü", "anna")


def test_one_admin_always_remains(station: Station) -> None:
    with signed_in(station, "root", "admin") as root:
        station.access.users.disable(SYSTEM, "admin")
        for change in ({"disabled": True}, {"role": "operator"}):
            response = root.patch("/api/v1/users/root", json=change)
            assert (response.status_code, "last admin" in response.json()["error"]) == (409, True)
        assert root.get("/api/v1/users").status_code == 200


# -- tokens and the trail ---------------------------------------------------------------------------------------------


def test_a_token_opens_until_it_is_revoked_or_over(station: Station) -> None:
    with signed_in(station, "root", "admin") as root:
        made = root.post("/api/v1/tokens", json={"name": "Camera-1"}).json()
        assert (made["token"]["name"], made["token"]["role"]) == ("camera-1", "machine")
        assert root.post("/api/v1/tokens", json={"name": "camera-1"}).status_code == 409
        assert made["secret"] not in root.get("/api/v1/tokens").text
        bearer = NETWORK | {"Authorization": f"Bearer {made['secret']}"}
        assert httpx.get(f"{station.address}live/state", headers=bearer).status_code == 200
        assert root.delete("/api/v1/tokens/camera-1").status_code == 204
        assert root.delete("/api/v1/tokens/camera-1").status_code == 404
        response = httpx.get(f"{station.address}live/state", headers=bearer)
        assert (response.status_code, "revoked or over" in response.json()["error"]) == (401, True)
        assert last(station)[0] == "token.refused"
    secret, _ = station.access.tokens.add(SYSTEM, "camera-2", "machine", 1)
    with station.reviews.database.change() as db:
        db.execute("UPDATE token SET expires_at = '2020-01-01T00:00:00+00:00' WHERE name = 'camera-2'")
    bearer = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{station.address}healthz", headers=bearer).status_code == 401, "a token that is over is told, also here"


def test_the_trail_is_read_page_by_page_and_verified(station: Station) -> None:
    with signed_in(station, "olaf", "auditor") as olaf:
        for number in range(7):
            station.reviews.trail.add(SYSTEM, "test", f"thing {number}", {"n": number})
        first = olaf.get("/api/v1/audit", params={"limit": 5}).json()
        second = olaf.get("/api/v1/audit", params={"limit": 500, "before": first["next"]}).json()
        numbers = [item["number"] for item in first["items"] + second["items"]]
        assert numbers == list(range(len(numbers), 0, -1))
        assert second["next"] is None
        head = olaf.get("/api/v1/audit/head").json()
        assert (head["number"], head["digest"]) == (first["items"][0]["number"], first["items"][0]["digest"])
        assert olaf.get("/api/v1/audit/verify", params={"noted": head["digest"]}).json()["holds"] is True
        assert olaf.get("/api/v1/audit/verify", params={"noted": "0" * 64}).json()["holds"] is False
        assert olaf.get("/api/v1/audit/verify", params={"noted": "x"}).status_code == 422
        assert olaf.get("/api/v1/audit", params={"limit": 0}).status_code == 422
