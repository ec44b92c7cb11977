"""What the access routes take and answer, as types.

Rules kept here: no answer holds a password or a digest of one; a secret that was made is in one answer and never again.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from linegate_edge.review.access.passwords import MAX_LENGTH
from linegate_edge.review.access.roles import Permission, PersonRole, TokenRole
from linegate_edge.review.access.users import MAX_NAME

UserName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, description="Letters, digits and . _ - @ +, in lower case")]
Password = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]
Next = Annotated[str, Field(max_length=2048, description="Where to go afterwards: a path of this station")]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoginRequest(_Closed):
    """Name and password."""

    name: str = Field(min_length=1, max_length=256)
    password: Password
    next: Next | None = None


class PasswordRequest(_Closed):
    """The password so far, and the new one: at least 12 characters."""

    current: Password
    new: Password


class SessionAnswer(_Closed):
    """Who is logged in; without a login `name`, `role` and `csrf` are null.

    `csrf` goes into the header `X-CSRF-Token` of each change; `pages` are the pages that this user may open; `oidc` says
    whether the plant's identity provider may be asked (`GET /api/v1/oidc/start`); `next` is where to go after a login.
    """

    name: str | None
    role: str | None
    permissions: tuple[Permission, ...]
    pages: tuple[str, ...]
    csrf: str | None
    must_change: bool
    oidc: bool
    next: str | None = None


class UserAnswer(_Closed):
    """A user; `issuer` is the identity provider of one that has no password here."""

    name: str
    role: str
    issuer: str | None
    must_change: bool
    created_at: str
    disabled_at: str | None
    sessions: int


class UserList(_Closed):
    """All users, by name."""

    items: tuple[UserAnswer, ...]


class NewUser(_Closed):
    """A user to add; without a password a one-time password is made."""

    name: UserName
    role: PersonRole
    password: Password | None = None


class UserChange(_Closed):
    """What to change of a user, one thing at a time."""

    role: PersonRole | None = None
    disabled: bool | None = None
    reset_password: bool = False
    end_sessions: bool = False


class ChangedUser(_Closed):
    """The user as it is now; `one_time_password` where one was made: it is never to be had again."""

    user: UserAnswer
    one_time_password: str | None


class NewToken(_Closed):
    """A token to make for a machine."""

    name: UserName
    role: TokenRole = "machine"
    days: int = Field(365, ge=1, le=3650, description="How long it is good")


class TokenAnswer(_Closed):
    """A token, without what opens the door."""

    name: str
    role: str
    created_by: str
    created_at: str
    expires_at: str
    revoked_at: str | None


class TokenList(_Closed):
    """All tokens, by name."""

    items: tuple[TokenAnswer, ...]


class MadeToken(_Closed):
    """A token just made; `secret` goes into `Authorization: Bearer …`, and is never to be had again."""

    token: TokenAnswer
    secret: str


class AuditItem(_Closed):
    """One line of the audit trail."""

    number: int
    at: str
    actor: str
    role: str
    action: str
    subject: str
    detail: dict[str, object]
    previous: str
    digest: str


class AuditPage(_Closed):
    """Lines, newest first; `next` is `before` of the page after it, null where there is none."""

    items: tuple[AuditItem, ...]
    next: int | None


class AuditHead(_Closed):
    """Number and digest of the last line: note them elsewhere, and the trail up to here can be proved later."""

    number: int
    digest: str


class AuditVerdict(_Closed):
    """Whether the trail holds; `problem` is the first thing that is wrong, null where nothing is."""

    holds: bool
    lines: int
    head: str
    problem: str | None
