"""Where a request comes from: its address, whether that is this very machine, and whether the browser speaks https.

Rules kept here: what a header says counts only from a proxy that the settings trust; any sign of a proxy makes a request one
from the network, however near the proxy is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

COOKIE: Final = "linegate_session"
_SIGNS_OF_A_PROXY: Final = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, as far as the connection tells; `local`: a program of this machine, through no proxy."""

    address: str
    local: bool
    https: bool


def read_client(scope: Scope, headers: Headers, trusted: Collection[Network]) -> Client:
    """Return where a request comes from."""
    peer = _address((scope.get("client") or ("", 0))[0])
    through_proxy = any(sign in headers for sign in _SIGNS_OF_A_PROXY)
    local = peer is not None and peer.is_loopback and not through_proxy
    address, https = peer, scope.get("scheme") == "https"
    if peer is not None and through_proxy and _is_trusted(peer, trusted):
        # The last one that no trusted proxy wrote: what stands before it, the client may have made up.
        named = ",".join(headers.getlist("x-forwarded-for")).split(",")
        for text in reversed(named):
            address = _address(text.strip())
            if address is None or not _is_trusted(address, trusted):
                break
        https = https or headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower() == "https"
    return Client("unknown" if address is None else str(address), local, https)


def _is_trusted(address: Address, trusted: Collection[Network]) -> bool:
    return any(address in network for network in trusted)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def cookies_of(headers: Headers, name: str) -> list[str]:
    """Return the values of all cookies of a name: a browser may send two, of which one was planted."""
    pairs = (pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
    return [value for key, _, value in pairs if key == name]
