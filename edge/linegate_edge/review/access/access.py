"""Access to one station, put together: users, sessions, tokens, the rate of logins, and the plant's identity provider.

Rules kept here: what is refused again and again fills no disk, one line of the trail a minute for each address and reason is
enough. What a request may do is left to `gate`, what is answered to `routes`.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from linegate.errors import SettingsError, StoreError
from linegate_edge.access_settings import AccessSection
from linegate_edge.review.access.client import Network
from linegate_edge.review.access.oidc import Provider
from linegate_edge.review.access.rate_limit import RateLimit
from linegate_edge.review.access.sessions import Sessions, Tokens
from linegate_edge.review.access.users import Users
from linegate_edge.review.audit import NOBODY as NOBODY_AT_ALL
from linegate_edge.review.audit import Actor, AuditTrail
from linegate_edge.review.database import ReviewDatabase

log = logging.getLogger("linegate.access")
_NOTED_KEPT: Final = 1024
_NOTE_EVERY_S: Final = 60.0


class Access:
    """Who may come in at one station.

    Raises:
        SettingsError: the settings name an identity provider that cannot be used.
    """

    def __init__(
        self,
        database: ReviewDatabase,
        trail: AuditTrail,
        settings: AccessSection | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or AccessSection()
        self.database, self.trail = database, trail
        self.users = Users(database, trail)
        self.sessions = Sessions(
            database,
            trail,
            longest=timedelta(hours=self.settings.session_hours),
            idle=timedelta(minutes=self.settings.idle_minutes),
        )
        self.tokens = Tokens(database, trail)
        self.limit = RateLimit(clock)
        self.trusted = tuple(_network(text) for text in self.settings.trusted_proxies)
        self.provider = None if self.settings.oidc_issuer is None else Provider(self.settings)
        self._clock = clock
        self._noted: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def note_browser(self, route: str, address: str, why: str) -> None:
        """Put a request that a page of another site sent into the audit trail."""
        self.note(NOBODY_AT_ALL, "cross_site.refused", route, address, why)

    def note(self, actor: Actor, action: str, subject: str, address: str, why: str) -> None:
        """Put something refused into the audit trail, once a minute for each actor, address and action."""
        now, key = self._clock(), (action, address, actor.name)
        if now - self._noted.get(key, -_NOTE_EVERY_S) < _NOTE_EVERY_S:
            return
        self._noted[key] = now
        self._noted.move_to_end(key)
        while len(self._noted) > _NOTED_KEPT:
            self._noted.popitem(last=False)
        try:
            self.trail.add(actor, action, subject[:256], {"address": address, "why": why[:256]})
        except StoreError as error:
            log.error("the audit trail does not know of %s %s from %s: %s", action, subject[:256], address, error)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise SettingsError(f"[access] trusted_proxies: '{text}' is no address or network: {error}") from None
