"""The one table of permissions: every route of the station, and what it asks for.

Rules kept here: a route that is not in the table does not exist for anybody, whatever the application has; a test holds the
table against the application. Who asks is left to `gate`.

A new route needs one line here, with the address as the application writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from starlette.routing import compile_path

from linegate_edge.review.access.roles import Permission
from linegate_edge.review.static import PAGES

ROUTES: Final[Mapping[tuple[str, str], Permission]] = MappingProxyType(
    {
        # pages
        ("GET", "/"): Permission.LIVE,
        ("GET", "/login"): Permission.PUBLIC,
        ("GET", "/queue"): Permission.REVIEW,
        ("GET", "/parts"): Permission.READ,
        ("GET", "/part"): Permission.READ,
        ("GET", "/quality"): Permission.READ,
        ("GET", "/models"): Permission.MODELS_READ,
        ("GET", "/admin"): Permission.AUDIT,
        ("GET", "/assets/{name}"): Permission.PUBLIC,
        # the station
        ("GET", "/healthz"): Permission.PUBLIC,
        ("GET", "/readyz"): Permission.PUBLIC,
        ("GET", "/metrics"): Permission.METRICS,
        ("GET", "/openapi.json"): Permission.LIVE,
        ("GET", "/live/events"): Permission.LIVE,
        ("GET", "/live/state"): Permission.LIVE,
        ("GET", "/live/last.jpg"): Permission.LIVE,
        ("POST", "/frames"): Permission.FRAMES,
        ("POST", "/commands"): Permission.COMMANDS,
        ("GET", "/verdicts"): Permission.RECORDS,
        ("GET", "/verdicts/{verdict_id}"): Permission.RECORDS,
        ("GET", "/evidence/{name}"): Permission.RECORDS,
        # parts and their review
        ("GET", "/api/v1/choices"): Permission.READ,
        ("GET", "/api/v1/parts"): Permission.READ,
        ("GET", "/api/v1/parts/{verdict_id}"): Permission.READ,
        ("GET", "/api/v1/parts/{verdict_id}/heat-map.png"): Permission.READ,
        ("GET", "/api/v1/parts/{verdict_id}/mask.png"): Permission.READ,
        ("GET", "/api/v1/parts/{verdict_id}/evidence.zip"): Permission.READ,
        ("GET", "/api/v1/pictures/{name}"): Permission.READ,
        ("POST", "/api/v1/queue/lend"): Permission.REVIEW,
        ("POST", "/api/v1/queue/give-back"): Permission.REVIEW,
        ("POST", "/api/v1/queue/decide"): Permission.REVIEW,
        ("POST", "/api/v1/parts/{verdict_id}/decision"): Permission.REVIEW,
        ("POST", "/api/v1/parts/{verdict_id}/undo"): Permission.REVIEW,
        # quality
        ("GET", "/api/v1/quality/yield"): Permission.READ,
        ("GET", "/api/v1/quality/pareto"): Permission.READ,
        ("GET", "/api/v1/quality/chart"): Permission.READ,
        ("GET", "/api/v1/quality/reviews"): Permission.READ,
        ("GET", "/api/v1/quality/drift"): Permission.READ,
        ("GET", "/api/v1/quality/threshold"): Permission.READ,
        # models
        ("GET", "/api/v1/models"): Permission.MODELS_READ,
        ("POST", "/api/v1/models"): Permission.MODELS_WRITE,
        ("GET", "/api/v1/models/{digest}"): Permission.MODELS_READ,
        ("GET", "/api/v1/models/{digest}/card"): Permission.MODELS_READ,
        ("GET", "/api/v1/models/{digest}/comparison"): Permission.MODELS_READ,
        ("GET", "/api/v1/models/{digest}/differences/{name}"): Permission.MODELS_READ,
        ("GET", "/api/v1/models/{digest}/shadow"): Permission.MODELS_READ,
        ("POST", "/api/v1/models/{digest}/shadow"): Permission.MODELS_WRITE,
        ("POST", "/api/v1/models/{digest}/approve"): Permission.APPROVE,
        ("POST", "/api/v1/models/{digest}/withdraw"): Permission.APPROVE,
        ("POST", "/api/v1/models/{digest}/promote"): Permission.APPROVE,
        ("GET", "/api/v1/promotions"): Permission.MODELS_READ,
        ("POST", "/api/v1/promotions/{number}/roll-back"): Permission.APPROVE,
        ("GET", "/api/v1/datasets"): Permission.MODELS_READ,
        ("POST", "/api/v1/datasets"): Permission.MODELS_WRITE,
        ("GET", "/api/v1/training"): Permission.MODELS_READ,
        ("POST", "/api/v1/training"): Permission.MODELS_WRITE,
        ("GET", "/api/v1/training/{run}"): Permission.MODELS_READ,
        ("POST", "/api/v1/training/{run}/cancel"): Permission.MODELS_WRITE,
        # access
        ("POST", "/api/v1/login"): Permission.PUBLIC,
        ("GET", "/api/v1/session"): Permission.PUBLIC,
        ("GET", "/api/v1/oidc/start"): Permission.PUBLIC,
        ("GET", "/api/v1/oidc/callback"): Permission.PUBLIC,
        ("POST", "/api/v1/logout"): Permission.SELF,
        ("POST", "/api/v1/password"): Permission.SELF,
        ("GET", "/api/v1/users"): Permission.USERS,
        ("POST", "/api/v1/users"): Permission.USERS,
        ("PATCH", "/api/v1/users/{name}"): Permission.USERS,
        ("GET", "/api/v1/tokens"): Permission.USERS,
        ("POST", "/api/v1/tokens"): Permission.USERS,
        ("DELETE", "/api/v1/tokens/{name}"): Permission.USERS,
        ("GET", "/api/v1/audit"): Permission.AUDIT,
        ("GET", "/api/v1/audit/head"): Permission.AUDIT,
        ("GET", "/api/v1/audit/verify"): Permission.AUDIT,
    }
)
"""(method, address as in the application) → the permission that it asks for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: the table's address, and the permission; None where the method is another one."""

    address: str
    permission: Permission | None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that there are at this address."""
        return tuple(sorted(_METHODS[self.address]))


_METHODS: Final = {
    address: {method: permission for (method, other), permission in ROUTES.items() if other == address} for _, address in ROUTES
}
_FIXED: Final = frozenset(address for address in _METHODS if "{" not in address)
_PATTERNS: Final = tuple((compile_path(address)[0], address) for address in _METHODS if address not in _FIXED)


def find(method: str, path: str) -> Asked | None:
    """Return what a request asks for, or None where nothing of the table is at this path."""
    address: str | None = path if path in _FIXED else None
    if address is None:
        address = next((address for pattern, address in _PATTERNS if pattern.match(path)), None)
    if address is None:
        return None
    return Asked(address, _METHODS[address].get("GET" if method == "HEAD" else method))


def is_page(address: str) -> bool:
    """Say whether people look at this address in a browser, who are then sent to the login page."""
    return address in PAGES
