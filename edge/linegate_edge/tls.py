"""TLS to the broker: the context from the settings' files, what changed in them, and errors in words.

Rules kept here: TLS 1.2 or later, the broker's name is always checked; a context that cannot be made is told in one line with
the mend. When to connect is left to `publish` and `mqtt_connection`.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final

from linegate.errors import SettingsError
from linegate_edge.settings import MqttSection

# OpenSSL's verify codes (x509_vfy.h) and alerts (RFC 8446, 6.2), as Python's ssl names them.
_NOT_TRUSTED: Final = frozenset({2, 18, 19, 20, 21})
_ALERT_S: Final = 1.0
_EXPIRED, _NOT_YET_VALID, _OTHER_NAMES = 10, 9, frozenset({62, 64})
_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": "asks for a client certificate: give [mqtt] cert_file and key_file",
    "HANDSHAKE_FAILURE": "refuses the handshake: it may ask for a client certificate, [mqtt] cert_file and key_file",
    "CERTIFICATE_EXPIRED": "refuses this station's certificate, which has expired: renew [mqtt] cert_file",
    "CERTIFICATE_REVOKED": "refuses this station's certificate, which was revoked: have a new [mqtt] cert_file made",
    "UNKNOWN_CA": "does not trust this station's certificate: have [mqtt] cert_file signed by the CA that the broker knows",
    "BAD_CERTIFICATE": "refuses this station's certificate: check [mqtt] cert_file",
    "CERTIFICATE_UNKNOWN": "refuses this station's certificate: check [mqtt] cert_file",
    "UNSUPPORTED_CERTIFICATE": "refuses this kind of certificate: check [mqtt] cert_file",
    "DECRYPT_ERROR": "refuses this station's certificate: [mqtt] cert_file and key_file may not belong together",
    "PROTOCOL_VERSION": "speaks no TLS 1.2 or later: update the broker",
    "WRONG_VERSION_NUMBER": "does not speak TLS on this port: check [mqtt] port, or set tls = false",
}
NO_TLS_HERE: Final = "breaks the TLS handshake off: does it speak TLS on this port? check [mqtt] port, or set tls = false"


def make_context(settings: MqttSection) -> ssl.SSLContext | None:
    """Return the context for a connection to the broker, or None where the settings ask for no TLS.

    Raises:
        SettingsError: a file cannot be read or used; the text says which, and how to mend it.
    """
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"[mqtt] ca_file {settings.ca_file}: {_words(error)}: give the CA's certificate, in PEM") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file is not None:
        key = settings.key_file
        try:
            context.load_cert_chain(settings.cert_file, key, password=_no_password)
        except ssl.SSLError as error:
            mend = "the two must belong together, in PEM, the key without a password"
            raise SettingsError(f"[mqtt] cert_file {settings.cert_file} and key_file {key}: {_words(error)}: {mend}") from error
        except (OSError, ValueError) as error:
            raise SettingsError(f"[mqtt] cert_file {settings.cert_file} or key_file {key}: {_words(error)}") from error
    return context


def fingerprint(settings: MqttSection) -> tuple[tuple[int, int, int] | None, ...]:
    """Return what changes when one of the files is replaced: inode, size and time of change of each."""
    return tuple(_state(path) for path in (settings.ca_file, settings.cert_file, settings.key_file) if path is not None)


def explain(settings: MqttSection) -> str | None:
    """Return in words why the broker breaks TLS off, by trying once more; None where it does not.

    A broker that wants another certificate says so after the handshake (TLS 1.3), and by then a client that writes may hear
    no more than that the connection is gone. So here nothing is written.
    """
    try:
        context = make_context(settings)
        if context is None:
            return None
        with (
            socket.create_connection((settings.host, settings.port), settings.connect_timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=settings.host) as connection,
        ):
            connection.settimeout(_ALERT_S)
            connection.recv(1)
    except ssl.SSLCertVerificationError as error:
        return words_for_refusal(error, settings.host)
    except OSError as error:
        return words_for(str(error))
    except SettingsError as error:
        return str(error)
    return None


def words_for(text: str) -> str | None:
    """Return in words what an error of TLS means, from its text; None where it is none that is known."""
    for alert, words in _ALERTS.items():
        if alert in text.upper().replace(" ", "_"):
            return words
    return f"breaks TLS off ({text.strip()}): see the broker's log" if "[SSL" in text else None


def words_for_refusal(error: ssl.SSLCertVerificationError, host: str) -> str:
    """Return in words why the broker's certificate is not taken."""
    code = error.verify_code
    if code in _NOT_TRUSTED:
        return "shows a certificate that no CA in [mqtt] ca_file has signed: give the CA that signed the broker's"
    if code == _EXPIRED:
        return "shows a certificate that has expired: renew the broker's, or check this machine's clock"
    if code == _NOT_YET_VALID:
        return "shows a certificate that is not valid yet: check this machine's clock"
    if code in _OTHER_NAMES:
        return f"shows a certificate for another name than {host}: give the name in the certificate as [mqtt] host"
    return f"shows a certificate that is not taken ({error.verify_message}): see the broker's certificate"


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _no_password() -> str:
    """Keep OpenSSL from asking at a terminal that a service does not have."""
    raise ValueError("the key has a password: store it without one, readable by the station's user alone")


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
