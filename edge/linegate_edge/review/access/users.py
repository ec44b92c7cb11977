"""The users of a station: people with a password here, and those that the plant's identity provider knows.

Rules kept here: each change is one transaction with its line of the audit trail; a user is never deleted, for the trail names
it, but disabled; whoever loses a role, a password or the right to come in loses all sessions with it; one admin always
remains. Sessions themselves are left to `sessions`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from linegate.errors import AccessError, StoreError
from linegate_edge.message import utc_now
from linegate_edge.review.access.passwords import check_password, hash_password, is_password, one_time_password
from linegate_edge.review.access.roles import PEOPLE
from linegate_edge.review.audit import SYSTEM, Actor, AuditTrail
from linegate_edge.review.database import REVIEWS_FILE, ReviewDatabase

log = logging.getLogger("linegate.access")
FIRST_ADMIN: Final = "admin"
FIRST_PASSWORD_FILE: Final = "first-admin-password"
MAX_NAME: Final = 64
_SIGNS: Final = frozenset("._-@+")
_COLUMNS: Final = "name, role, password, must_change, issuer, subject, created_at, disabled_at"


@dataclass(frozen=True, slots=True)
class User:
    """A user; `issuer` and `subject` are null for one with a password here."""

    name: str
    role: str
    password: str | None
    must_change: bool
    issuer: str | None
    subject: str | None
    created_at: str
    disabled_at: str | None


def plain_name(name: str) -> str:
    """Return a user's name as it is kept: one form for what looks the same, lower case.

    Raises:
        AccessError: it is empty, too long, or holds something else than letters, digits and . _ - @ +
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    good = all(sign in _SIGNS or unicodedata.category(sign)[0] in "LMN" for sign in plain)
    if not 1 <= len(plain) <= MAX_NAME or not good or not any(unicodedata.category(sign)[0] in "LN" for sign in plain):
        wanted = f"expected 1 to {MAX_NAME} letters, digits and . _ - @ +"
        raise AccessError(f"{name[:MAX_NAME]!r} is no name for a user or token: {wanted}")
    return plain


class Users:
    """The users of one station; all methods may be called from any thread."""

    def __init__(self, database: ReviewDatabase, trail: AuditTrail) -> None:
        self._database, self._trail = database, trail

    def find(self, name: str) -> User | None:
        """Return the user of this name, as it is kept."""
        with self._database.look() as db:
            return _one(db, "name = ?", name)

    def list(self) -> list[tuple[User, int]]:
        """Return all users by name, each with its number of open sessions."""
        with self._database.look() as db:
            now = utc_now().isoformat()
            sessions = "SELECT count(*) FROM session WHERE user = name AND expires_at > ?"
            rows: list[Any] = db.execute(f"SELECT {_COLUMNS}, ({sessions}) FROM user ORDER BY name", (now,)).fetchall()
        return [(_user(row[:-1]), row[-1]) for row in rows]

    def add(self, actor: Actor, name: str, role: str, password: str | None = None) -> str | None:
        """Add a user, who has to choose a new password at the first login; return the one-time password where none is given.

        Raises:
            AccessError: name, role or password cannot be, or the name is taken.
        """
        name, role = plain_name(name), _person_role(role)
        made = None if password is not None else one_time_password()
        if password is not None:
            check_password(password, name)
        hashed = hash_password(password or made or "")
        with self._trail.change(actor, "user.add", name, {"role": role}) as db:
            if _one(db, "name = ?", name) is not None:
                raise AccessError(f"there is a user '{name}' already: choose another name", 409)
            self._insert(db, User(name, role, hashed, True, None, None, utc_now().isoformat(), None))
        return made

    def add_first_admin(self) -> None:
        """Give a store without users its first admin, and tell the one-time password: in the log, and in a file."""
        with self._database.look() as db:
            if db.execute("SELECT 1 FROM user LIMIT 1").fetchone() is not None:
                return
        try:
            password = self.add(SYSTEM, FIRST_ADMIN, "admin")
        except AccessError:
            return  # the command line was quicker
        assert password is not None
        path = self._database.folder / FIRST_PASSWORD_FILE
        try:
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(f"{password}\n")
        except OSError as error:
            log.error("%s could not be written: %s", path, error)
        log.warning(
            "first start: log in as '%s' with the password %s (also in %s), and choose another one", FIRST_ADMIN, password, path
        )

    def change_password(self, actor: Actor, name: str, new: str, current: str | None = None, keep: str = "") -> None:
        """Give a user a new password; all sessions of the user end but the one with the digest `keep`.

        `current` is the password so far where the user changes it; without it, an admin does, and the user has to choose
        another one at the next login.

        Raises:
            AccessError: there is no such user, the current password is another one, or the new one cannot be.
        """
        user = self._local(name)
        if current is not None and not is_password(user.password, current):
            self._trail.add(actor, "password.refused", user.name, {"why": "wrong current password"})
            raise AccessError("the current password is another one", 403)
        if is_password(user.password, new):
            raise AccessError("the new password is the current one: choose another one")
        check_password(new, user.name)
        hashed, must_change = hash_password(new), current is None
        with self._trail.change(actor, "user.password", user.name, {"must_change": must_change}) as db:
            db.execute("UPDATE user SET password = ?, must_change = ? WHERE name = ?", (hashed, must_change, user.name))
            db.execute("DELETE FROM session WHERE user = ? AND digest <> ?", (user.name, keep))
        if user.name == FIRST_ADMIN:
            with contextlib.suppress(OSError):
                (self._database.folder / FIRST_PASSWORD_FILE).unlink(missing_ok=True)

    def reset_password(self, actor: Actor, name: str) -> str:
        """Give a user a one-time password, and return it."""
        password = one_time_password()
        self.change_password(actor, name, password)
        return password

    def change_role(self, actor: Actor, name: str, role: str) -> None:
        """Give a user another role; the user's sessions end."""
        role = _person_role(role)
        with self._changing(actor, "user.role", name, {"role": role}) as (db, user):
            if role != "admin":
                _keep_an_admin(db, user)
            db.execute("UPDATE user SET role = ? WHERE name = ?", (role, user.name))

    def disable(self, actor: Actor, name: str, disabled: bool = True) -> None:
        """Let a user in no more, or again; the user's sessions end."""
        with self._changing(actor, "user.disable" if disabled else "user.enable", name, {}) as (db, user):
            if disabled:
                _keep_an_admin(db, user)
            moment = utc_now().isoformat() if disabled else None
            db.execute("UPDATE user SET disabled_at = ? WHERE name = ?", (moment, user.name))

    def end_sessions(self, actor: Actor, name: str) -> None:
        """Log a user out everywhere."""
        with self._changing(actor, "session.end_all", name, {}):
            pass

    def from_provider(self, issuer: str, subject: str, name: str, role: str) -> User:
        """Return the user that an identity provider vouches for, made or given its role anew where needed.

        Raises:
            AccessError: the user is disabled here, or somebody else has the name.
        """
        with self._database.look() as db:
            user = _one(db, "issuer = ? AND subject = ?", issuer, subject)
        if user is None:
            name = plain_name(name)
            made = User(name, _person_role(role), None, False, issuer, subject, utc_now().isoformat(), None)
            with self._trail.change(SYSTEM, "user.add", name, {"role": role, "issuer": issuer, "subject": subject}) as db:
                if _one(db, "name = ?", name) is not None:
                    raise AccessError(f"another user is called '{name}' here already: ask an admin of this station", 403)
                self._insert(db, made)
            return made
        if user.disabled_at is not None:
            raise AccessError(f"user '{user.name}' is disabled at this station: ask an admin", 403)
        if user.role != role:
            with self._changing(SYSTEM, "user.role", user.name, {"role": role, "issuer": issuer}) as (db, _):
                db.execute("UPDATE user SET role = ? WHERE name = ?", (role, user.name))
        found = self.find(user.name)
        assert found is not None
        return found

    @contextlib.contextmanager
    def _changing(self, actor: Actor, action: str, name: str, detail: dict[str, Any]) -> Iterator[tuple[apsw.Connection, User]]:
        with self._trail.change(actor, action, name, detail) as db:
            user = _one(db, "name = ?", name)
            if user is None:
                raise AccessError(f"there is no user '{name[:MAX_NAME]}'", 404)
            detail["before"] = user.role if action == "user.role" else "disabled" if user.disabled_at else "enabled"
            yield db, user
            ended = db.execute("DELETE FROM session WHERE user = ? RETURNING 1", (user.name,)).fetchall()
            detail["sessions_ended"] = len(ended)

    def _local(self, name: str) -> User:
        user = self.find(name)
        if user is None:
            raise AccessError(f"there is no user '{name[:MAX_NAME]}'", 404)
        if user.issuer is not None:
            raise AccessError(f"user '{name}' logs in by {user.issuer}: the password is changed there", 409)
        return user

    @staticmethod
    def _insert(db: apsw.Connection, user: User) -> None:
        values = (user.name, user.role, user.password, user.must_change, user.issuer, user.subject, user.created_at, None)
        db.execute(f"INSERT INTO user ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _person_role(role: str) -> str:
    if role not in PEOPLE:
        raise AccessError(f"'{role[:MAX_NAME]}' is no role of people: expected one of {', '.join(PEOPLE)}")
    return role


def _keep_an_admin(db: apsw.Connection, user: User) -> None:
    others = "SELECT 1 FROM user WHERE role = 'admin' AND disabled_at IS NULL AND name <> ? LIMIT 1"
    if user.role == "admin" and db.execute(others, (user.name,)).fetchone() is None:
        raise AccessError(f"'{user.name}' is the last admin: make somebody else an admin first", 409)


def _one(db: apsw.Connection, where: str, *values: str) -> User | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM user WHERE {where}", values).fetchone()
    return None if row is None else _user(row)


def _user(row: tuple[Any, ...]) -> User:
    name, role, password, must_change, *rest = row
    return User(name, role, password, bool(must_change), *rest)


def open_store(folder: Path, *, look: bool = False) -> ReviewDatabase:
    """Return the database of a store, for the command line; `look` asks for one that is there already.

    Raises:
        StoreError: there is no such folder, or nothing to look at in it.
    """
    if look and folder.is_dir() and not (folder / REVIEWS_FILE).is_file():
        raise StoreError(f"{folder}: no {REVIEWS_FILE} here: give the folder of a station's store")
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder: give the folder of a station's store, [station] store in STATION.toml")
    return ReviewDatabase(folder)
