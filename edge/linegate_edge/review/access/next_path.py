"""Where to go after a login: a path of this station, and nothing that a browser could take for another one."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote, urlsplit

from linegate.errors import AccessError

_DECODINGS: Final = 4


def checked_next(path: str | None) -> str:
    """Return the path to go to after a login, `/` where none is asked for.

    Raises:
        AccessError: it leads elsewhere, or would in some browser once it is decoded.
    """
    if not path:
        return "/"
    form = path
    for _ in range(_DECODINGS):
        if not _is_local(form):
            raise AccessError(f"'next' must be a path of this station, such as /queue, got {path[:80]!r}")
        decoded = unquote(form)
        if decoded == form:
            return path
        form = decoded
    raise AccessError(f"'next' is encoded over and over: {path[:80]!r}")


def _is_local(path: str) -> bool:
    if not path.startswith("/") or path.startswith("//") or "\\" in path or not path.isprintable():
        return False
    try:
        parts = urlsplit(path)
    except ValueError:
        return False
    steps = parts.path.split("/")
    return not parts.scheme and not parts.netloc and ".." not in steps and "" not in steps[1:-1]
