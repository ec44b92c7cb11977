"""Roles and what each may do.

Rules kept here: a permission is given to a role, never to a person; what nobody logged in may do is a set as well. Which route
needs which permission is left to `policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal


class Permission(StrEnum):
    """What a route asks for; `SELF` is what concerns nobody but who asks: logout, the own password."""

    PUBLIC = "public"
    SELF = "self"
    LIVE = "live"
    FRAMES = "frames"
    COMMANDS = "commands"
    METRICS = "metrics"
    RECORDS = "records"
    READ = "read"
    REVIEW = "review"
    MODELS_READ = "models_read"
    MODELS_WRITE = "models_write"
    APPROVE = "approve"
    USERS = "users"
    AUDIT = "audit"


P = Permission
_READER: Final = frozenset({P.PUBLIC, P.SELF, P.LIVE, P.RECORDS, P.READ})
ROLES: Final[Mapping[str, frozenset[Permission]]] = MappingProxyType(
    {
        "operator": _READER,
        "quality": _READER | {P.REVIEW, P.MODELS_READ, P.APPROVE},
        "ml": _READER | {P.MODELS_READ, P.MODELS_WRITE, P.APPROVE},
        "auditor": _READER | {P.MODELS_READ, P.AUDIT},
        "admin": frozenset(P),
        "machine": frozenset({P.PUBLIC, P.LIVE, P.FRAMES, P.COMMANDS, P.METRICS}),
    }
)
"""The permissions of each role; `machine` is for tokens alone."""


PersonRole = Literal["operator", "quality", "ml", "auditor", "admin"]
TokenRole = Literal["operator", "quality", "ml", "auditor", "admin", "machine"]
PEOPLE: Final = tuple(role for role in ROLES if role != "machine")

NOBODY: Final = frozenset({P.PUBLIC})
"""What a request from the network may do that shows no login."""

LOOPBACK: Final = frozenset({P.PUBLIC, P.LIVE, P.FRAMES, P.COMMANDS, P.METRICS, P.RECORDS})
"""What programs on the station's own machine may do without a login: judge parts, and read the machine's records."""

NEW_PASSWORD_FIRST: Final = frozenset({P.PUBLIC, P.SELF})
"""What is left to somebody who has to choose a new password before anything else."""
