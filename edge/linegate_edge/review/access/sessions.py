"""Sessions of browsers and tokens of machines: who a request comes from, by what it carries.

Rules kept here: of a session or token only the SHA-256 is kept, so that who reads the file can log in as nobody; a session
ends after some idle time, and in any case after some hours; it belongs to the browser that it was made for, and one that
comes from another is ended; what is kept of use is written once a minute at most. Passwords are left to `users`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from linegate.errors import AccessError
from linegate_edge.message import utc_now
from linegate_edge.review.access.roles import NEW_PASSWORD_FIRST, NOBODY, ROLES, Permission
from linegate_edge.review.access.users import User, plain_name
from linegate_edge.review.audit import Actor, AuditTrail
from linegate_edge.review.database import ReviewDatabase

TOKEN_PREFIX: Final = "linegate_"
_SESSIONS_OF_A_USER: Final = 20
_WRITE_EVERY: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Session:
    """An open session: whose, and what its page has to send with each change; `digest` names it in the store."""

    digest: str
    user: str
    role: str
    csrf: str
    must_change: bool

    @property
    def actor(self) -> Actor:
        """Who it is, for the audit trail."""
        return Actor(self.user, self.role)

    @property
    def permissions(self) -> frozenset[Permission]:
        """What its user may do now."""
        granted = ROLES.get(self.role, NOBODY)
        return granted & NEW_PASSWORD_FIRST if self.must_change else granted


class StolenSessionError(AccessError):
    """A session came from another browser than the one it was made for, and was ended."""


@dataclass(frozen=True, slots=True)
class Token:
    """A machine's token, without what opens the door."""

    name: str
    role: str
    created_by: str
    created_at: str
    expires_at: str
    revoked_at: str | None


def digest_of(secret: str) -> str:
    """Return what is kept of a secret of full entropy."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Sessions:
    """The sessions of one station; all methods may be called from any thread."""

    def __init__(
        self,
        database: ReviewDatabase,
        trail: AuditTrail,
        *,
        longest: timedelta = timedelta(hours=12),
        idle: timedelta = timedelta(minutes=30),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database, self._trail, self._now = database, trail, now
        self.longest, self.idle = longest, idle

    def open(self, user: User, agent: str, *, address: str, how: str, instead_of: str | None = None) -> tuple[str, Session]:
        """Open a session and return its secret, which is never to be had again; `instead_of` is a secret that ends with it."""
        secret, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(32), self._now()
        digest = digest_of(secret)
        detail = {"address": address, "by": how}
        with self._trail.change(Actor(user.name, user.role), "login", user.name, detail) as db:
            # Looked at again inside: between the password and here an admin may have ended it all.
            row = db.execute("SELECT role, must_change, disabled_at FROM user WHERE name = ?", (user.name,)).fetchone()
            if row is None or row[2] is not None:
                raise AccessError("name or password is wrong", 401)
            db.execute("DELETE FROM session WHERE expires_at <= ?", (now.isoformat(),))
            if instead_of is not None:
                db.execute("DELETE FROM session WHERE digest = ?", (digest_of(instead_of),))
            db.execute(
                "DELETE FROM session WHERE user = ?1 AND digest NOT IN "
                "(SELECT digest FROM session WHERE user = ?1 ORDER BY seen_at DESC LIMIT ?2)",
                (user.name, _SESSIONS_OF_A_USER - 1),
            )
            ends = now + self.longest
            times = (now.isoformat(), now.isoformat(), ends.isoformat())
            db.execute("INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, ?)", (digest, user.name, csrf, digest_of(agent), *times))
        return secret, Session(digest, user.name, row[0], csrf, bool(row[1]))

    def find(self, secret: str, agent: str, *, address: str, touch: bool = True) -> Session | None:
        """Return the open session of this secret; `touch` counts it as used.

        Raises:
            StolenSessionError: it belongs to another browser; it was ended, and the audit trail tells of it.
        """
        digest, now = digest_of(secret), self._now()
        row = self._row(digest)
        if row is None:
            return None
        user, role, csrf, must_change, made_for, seen_at, expires_at = row
        seen = datetime.fromisoformat(seen_at)
        if now >= datetime.fromisoformat(expires_at) or now - seen >= self.idle:
            return None
        if not hmac.compare_digest(made_for, digest_of(agent)):
            detail = {"address": address, "why": "it came from another browser than the one it was made for"}
            with self._trail.change(Actor(user, role), "session.stolen", user, detail) as db:
                db.execute("DELETE FROM session WHERE digest = ?", (digest,))
            raise StolenSessionError("this session was made for another browser and is ended: log in again", 401)
        if touch and now - seen >= min(_WRITE_EVERY, self.idle / 4):
            with self._database.change() as db:
                db.execute("UPDATE session SET seen_at = ? WHERE digest = ?", (now.isoformat(), digest))
        return Session(digest, user, role, csrf, bool(must_change))

    def peek(self, secret: str, agent: str) -> Session | None:
        """Return the open session of this secret where nothing has to be written for it: microseconds, and no thread is needed.

        None says nothing: ask `find`.
        """
        digest, now = digest_of(secret), self._now()
        row = self._row(digest)
        if row is None:
            return None
        user, role, csrf, must_change, made_for, seen_at, expires_at = row
        fresh = now - datetime.fromisoformat(seen_at) < min(_WRITE_EVERY, self.idle / 4)
        if not fresh or now >= datetime.fromisoformat(expires_at) or not hmac.compare_digest(made_for, digest_of(agent)):
            return None
        return Session(digest, user, role, csrf, bool(must_change))

    def _row(self, digest: str) -> tuple[Any, ...] | None:
        with self._database.look() as db:
            row: tuple[Any, ...] | None = db.execute(
                "SELECT s.user, u.role, s.csrf, u.must_change, s.agent, s.seen_at, s.expires_at FROM session s "
                "JOIN user u ON u.name = s.user WHERE s.digest = ? AND u.disabled_at IS NULL",
                (digest,),
            ).fetchone()
        return row

    def renew(self, session: Session, address: str) -> tuple[str, Session]:
        """Give a session another secret, after its user has chosen a new password; the one before ends."""
        secret, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        digest = digest_of(secret)
        with self._trail.change(session.actor, "session.renew", session.user, {"address": address}) as db:
            row = db.execute(
                "UPDATE session SET digest = ?, csrf = ? WHERE digest = ? RETURNING 1", (digest, csrf, session.digest)
            ).fetchall()
            if not row:
                raise AccessError("this session has ended: log in again", 401)
        return secret, Session(digest, session.user, session.role, csrf, False)

    def end(self, session: Session, address: str) -> None:
        """Log out."""
        with self._trail.change(session.actor, "logout", session.user, {"address": address}) as db:
            db.execute("DELETE FROM session WHERE digest = ?", (session.digest,))


class Tokens:
    """The tokens of machines; all methods may be called from any thread."""

    def __init__(self, database: ReviewDatabase, trail: AuditTrail, *, now: Callable[[], datetime] = utc_now) -> None:
        self._database, self._trail, self._now = database, trail, now

    def add(self, actor: Actor, name: str, role: str, days: int) -> tuple[str, Token]:
        """Make a token and return its secret, which is never to be had again.

        Raises:
            AccessError: name or role cannot be, or the name is or was another token's.
        """
        name = plain_name(name)
        if role not in ROLES:
            raise AccessError(f"'{role[:64]}' is no role: expected one of {', '.join(ROLES)}")
        if not 1 <= days <= 3650:
            raise AccessError(f"a token is good for 1 to 3650 days, got {days}")
        secret, now = TOKEN_PREFIX + secrets.token_urlsafe(32), self._now()
        token = Token(name, role, actor.name, now.isoformat(), (now + timedelta(days=days)).isoformat(), None)
        with self._trail.change(actor, "token.add", name, {"role": role, "expires_at": token.expires_at}) as db:
            if db.execute("SELECT 1 FROM token WHERE name = ?", (name,)).fetchone() is not None:
                raise AccessError(f"there is, or was, a token '{name}': choose another name, so that the trail is clear", 409)
            values = (digest_of(secret), name, role, token.created_by, token.created_at, token.expires_at, None)
            db.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return secret, token

    def revoke(self, actor: Actor, name: str) -> None:
        """End a token.

        Raises:
            AccessError: there is none of this name, or it is revoked already.
        """
        with self._trail.change(actor, "token.revoke", name) as db:
            row = db.execute(
                "UPDATE token SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL RETURNING 1",
                (self._now().isoformat(), name),
            ).fetchall()
            if not row:
                raise AccessError(f"there is no token '{name[:64]}' that could be revoked", 404)

    def find(self, secret: str) -> Token | None:
        """Return the token of this secret, where it is good now."""
        with self._database.look() as db:
            row = db.execute(f"{_TOKENS} WHERE digest = ? AND revoked_at IS NULL", (digest_of(secret),)).fetchone()
        token = None if row is None else _token(row)
        return token if token is not None and self._now() < datetime.fromisoformat(token.expires_at) else None

    def list(self) -> list[Token]:
        """Return all tokens by name, those that are over too."""
        with self._database.look() as db:
            return [_token(row) for row in db.execute(f"{_TOKENS} ORDER BY name").fetchall()]


_TOKENS: Final = "SELECT name, role, created_by, created_at, expires_at, revoked_at FROM token"


def _token(row: tuple[Any, ...]) -> Token:
    return Token(*row)
