"""A page of one line, for a browser that is told something before it gets where it wanted."""

from __future__ import annotations

import html
from collections.abc import Mapping


def small_page(text: str, links: Mapping[str, str], then: str | None = None) -> str:
    """Return a page with a line of text and links (address → words); `then` is where the browser goes by itself."""
    refresh = "" if then is None else f'<meta http-equiv="refresh" content="0; url={html.escape(then)}">'
    buttons = " ".join(f'<a class="button" href="{html.escape(to)}">{html.escape(words)}</a>' for to, words in links.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Linegate</title>'
        '<link rel="stylesheet" href="/assets/shell.css"><link rel="stylesheet" href="/assets/login.css">'
        f'{refresh}</head><body><main id="main"><p>{html.escape(text)}</p><p>{buttons}</p></main></body></html>'
    )
