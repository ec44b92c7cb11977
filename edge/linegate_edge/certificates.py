"""How long certificates are valid: the dates in PEM files, read without a library for the rest of X.509.

Rules kept here: only the dates are read, and they prove nothing; whether a certificate is trusted is left to TLS.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from linegate_edge.findings import Finding, fail, ok, warn

_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SOON: Final = timedelta(days=30)


def certificate_finding(name: str, path: Path, now: datetime) -> Finding:
    """Judge the certificates in a PEM file by the one that ends first; `now` is aware UTC."""
    try:
        periods = [validity(ssl.PEM_cert_to_DER_cert(block.decode("ascii"))) for block in _PEM.findall(path.read_bytes())]
    except OSError as error:
        return fail("certificate", f"{name} {path}: cannot be read: {error.strerror}", "let the station's user read it")
    except ValueError as error:
        return fail("certificate", f"{name} {path}: {error}", "write it anew, in PEM")
    if not periods:
        return fail("certificate", f"{name} {path}: holds no certificate", "write it anew, in PEM")
    begins, ends = max(begin for begin, _ in periods), min(end for _, end in periods)
    until = f"{name} {path}: valid until {ends:%Y-%m-%d}"
    if now < begins:
        return fail("certificate", f"{name} {path}: valid from {begins:%Y-%m-%d} on", "check the clock, or the certificate")
    if now > ends:
        return fail("certificate", f"{name} {path}: expired on {ends:%Y-%m-%d}", "have it renewed")
    if ends - now < _SOON:
        return warn("certificate", f"{until}, {(ends - now).days} days from now", "have it renewed")
    return ok("certificate", until)


def validity(der: bytes) -> tuple[datetime, datetime]:
    """Return from when until when a certificate in DER is valid (RFC 5280, 4.1), aware UTC.

    Raises:
        ValueError: these bytes are no certificate.
    """
    try:
        fields = _fields(next(value for _, value in _fields(next(value for _, value in _fields(der)))))
        kinds = list(fields)
        at = 4 if kinds[0][0] == _VERSION else 3  # version is left out where it is 1; serial, signature, issuer follow
        begins, ends = (_time(tag, value) for tag, value in _fields(kinds[at][1]))
    except (IndexError, StopIteration, ValueError) as error:
        raise ValueError("is no certificate") from error
    return begins, ends


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in DER."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("torn")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("no time")
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: from 50 on they are of the last century
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
