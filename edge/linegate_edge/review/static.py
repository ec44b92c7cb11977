"""The pages and what they load: the files of the folder `pages`, as they are.

Rules kept here: a page is served at the address that `PAGES` gives it, where its file is there; everything else of the folder
is at `/assets/NAME`, by its suffix, and nothing beside the folder is; a browser asks each time, and the digest makes that
cheap. Who may see which page is left to `access.policy`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

from fastapi import FastAPI, HTTPException, Request, Response

PAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/": "live.html",
        "/login": "login.html",
        "/queue": "queue.html",
        "/parts": "parts.html",
        "/part": "part.html",
        "/quality": "quality.html",
        "/models": "models.html",
        "/admin": "admin.html",
    }
)
"""Address → file of a page; a page whose file is not there is not served."""

_MEDIA_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


def served_pages() -> tuple[tuple[str, str], ...]:
    """Return the pages that people go to, as (address, name), in the order of the navigation."""
    folder = _folder()
    return tuple(
        (address, file.removesuffix(".html"))
        for address, file in PAGES.items()
        if address != "/login" and folder.joinpath(file).is_file()
    )


def add_pages(app: FastAPI) -> None:
    """Add the pages that are there, and `/assets/{name}`."""
    folder = _folder()
    files = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    kinds = {name: kind for name in files for suffix, kind in _MEDIA_TYPES.items() if name.endswith(suffix)}
    for address, name in PAGES.items():
        if name in files:
            _add_page(app, address, files[name])

    @app.get("/assets/{name}", include_in_schema=False)
    async def get_asset(request: Request, name: str) -> Response:
        if name not in kinds:
            raise HTTPException(404, f"no asset '{name[:64]}'")
        return _static(request, files[name], kinds[name])


def _folder() -> Traversable:
    return importlib.resources.files("linegate_edge.review").joinpath("pages")


def _add_page(app: FastAPI, address: str, page: bytes) -> None:
    @app.get(address, include_in_schema=False)
    async def get_page(request: Request) -> Response:
        return _static(request, page, "text/html; charset=utf-8")


def _static(request: Request, data: bytes, media_type: str) -> Response:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    # Asked for each time, so that a new release and its page never mix; the tag makes that cheap.
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
