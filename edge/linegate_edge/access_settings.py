"""`[access]`: how long a login holds, which proxies are believed, and the plant's identity provider.

Rules kept here: the client's secret is in a file of its own; an address of a provider is https, or on this very machine.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from linegate.settings import Settings
from linegate_edge.review.access.roles import PersonRole
from linegate_edge.setting_types import FilePath, Name, as_tuple


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"no address or network: {error}") from None
    return text


def _check_issuer(address: str) -> str:
    if not is_safe_address(address):
        raise ValueError("expected the address of the provider with https:// (http:// only on loopback), without query")
    return address


def is_safe_address(address: str) -> bool:
    """Say whether nobody between here and there can read what is asked at an address."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        _ = parts.port  # a property that raises on nonsense
    except ValueError:
        return False
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    plain = host != "" and parts.username is None and not parts.query and not parts.fragment
    return plain and (parts.scheme == "https" or (parts.scheme == "http" and loopback))


class AccessSection(Settings):
    """`[access]`: logins of people; without a provider all users are the station's own."""

    session_hours: float = Field(default=12, gt=0, le=720)
    idle_minutes: float = Field(default=30, gt=0, le=43_200)
    cookie_secure: bool = False
    trusted_proxies: Annotated[tuple[Annotated[str, AfterValidator(_check_network)], ...], BeforeValidator(as_tuple)] = ()
    oidc_issuer: Annotated[Name, AfterValidator(_check_issuer)] | None = None
    oidc_client_id: Name | None = None
    oidc_client_secret_file: FilePath | None = None
    oidc_ca_file: FilePath | None = None
    oidc_scopes: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ("openid", "profile")
    oidc_name_claim: Name = "preferred_username"
    oidc_role_claim: Name = "roles"
    oidc_roles: dict[Name, PersonRole] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _provider_is_whole(self) -> Self:
        if self.oidc_issuer is None:
            if self.oidc_client_id or self.oidc_client_secret_file or self.oidc_ca_file or self.oidc_roles:
                raise ValueError("oidc_client_id, oidc_client_secret_file, oidc_ca_file and oidc_roles need oidc_issuer")
        elif self.oidc_client_id is None or not self.oidc_roles:
            raise ValueError("oidc_issuer needs oidc_client_id, and oidc_roles: which of its groups is which role here")
        elif "openid" not in self.oidc_scopes:
            raise ValueError("oidc_scopes must hold 'openid'")
        return self
