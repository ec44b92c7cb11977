"""Passwords: what they must be, and their Argon2id hashes.

Rules kept here: at least 12 characters and no rules of composition (NIST SP 800-63B, 5.1.1.2), but not the user's own name nor
a few characters over and over; the work is the same whether a user is there or not; one hash at a time, for each takes 64 MiB
beside a line that judges. Who may try how often is left to `rate_limit`.
"""

from __future__ import annotations

import secrets
import threading
import unicodedata
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from linegate.errors import AccessError

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 1024
_MIN_DIFFERENT: Final = 5
# RFC 9106, 4, second recommended option, on one core: the others are the line's.
_HASHER: Final = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)
_ONE_AT_A_TIME: Final = threading.Lock()
# Of no password at all: what an unknown user's attempt is checked against, with these very parameters.
_NOBODYS: Final = "$argon2id$v=19$m=65536,t=3,p=1$bGluZWdhdGUtbm9ib2R5cw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def check_password(password: str, name: str) -> None:
    """Refuse a password that a guesser would try first.

    Raises:
        AccessError: it is too short, too long, or too plain; the text says what is asked for.
    """
    if len(password) < MIN_LENGTH:
        raise AccessError(f"the password has {len(password)} characters: choose at least {MIN_LENGTH}, a few words for example")
    if len(password) > MAX_LENGTH:
        raise AccessError(f"the password has {len(password)} characters: choose at most {MAX_LENGTH}")
    if not password.isprintable():
        raise AccessError("the password holds characters that nobody can type, such as a line break: leave them out")
    plain = _normal(password).casefold()
    rest = plain.replace(name.casefold(), "").replace("linegate", "").replace("password", "")
    if len(set(plain)) < _MIN_DIFFERENT or len(rest) < MIN_LENGTH // 2:
        raise AccessError("the password is easy to guess: not the user's name, not a few characters over and over")


def hash_password(password: str) -> str:
    """Return the hash to keep, with its salt and parameters."""
    with _ONE_AT_A_TIME:
        return _HASHER.hash(_normal(password))


def is_password(kept: str | None, password: str) -> bool:
    """Say whether a password is the one whose hash was kept; for None it takes as long, and it never is."""
    with _ONE_AT_A_TIME:
        try:
            return _HASHER.verify(kept or _NOBODYS, _normal(password[:MAX_LENGTH])) and kept is not None
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False


def one_time_password() -> str:
    """Return a random password to give to somebody once, 120 bits in groups that can be read aloud."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"  # without characters that look alike
    return "-".join("".join(secrets.choice(alphabet) for _ in range(6)) for _ in range(4))


def _normal(password: str) -> str:
    # A keyboard may send é as one character or as two (NIST SP 800-63B, 5.1.1.2).
    return unicodedata.normalize("NFKC", password)
