"""Words, numbers and tables of the report as HTML.

Rules kept here: everything that comes from outside is escaped; a heading of a table is a heading to a screen reader too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

Interval = tuple[float, float] | None


def escape(text: object) -> str:
    """Return a text that HTML shows as it is, in content and in attributes."""
    return html.escape(str(text))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, as people write it; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text.replace("-", "−")


def percent(value: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.1f}\u00a0%"


def between(interval: tuple[float, float], of_one: bool = False) -> str:
    """Return the two ends of an interval of shares, or `of_one` of a measure from 0 to 1."""
    low, high = interval
    return f"{low:.3f} to {high:.3f}" if of_one else f"{100 * low:.1f} to {percent(high)}"


def share(value: float | None, interval: Interval = None, of_one: bool = False) -> str:
    """Return a share, or `of_one` a measure from 0 to 1, with its interval; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.3f}" if of_one else percent(value)
    return f"{text} ({between(interval, of_one)})" if interval is not None else text


def count(number_of: int, one: str, many: str) -> str:
    """Return a count with its noun."""
    return f"{number_of} {one if number_of == 1 else many}"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", numeric_from: int = 1) -> str:
    """Return a table; cells are HTML already. A row's first is its heading, those from `numeric_from` on are numbers."""
    kinds = [' class="number"' if index >= numeric_from else "" for index in range(len(head))]
    parts = ['<div class="scroll"><table>']
    if caption:
        parts.append(f"<caption>{escape(caption)}</caption>")
    if any(head):
        cells = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(head, kinds, strict=True))
        parts.append(f"<thead><tr>{cells}</tr></thead>")
    parts.append("<tbody>")
    for first, *others in rows:
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
        parts.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return "".join([*parts, "</tbody></table></div>"])


def details(summary: str, values: Mapping[str, Any]) -> str:
    """Return a folded table of the settings in a nested mapping, keys joined by dots."""
    rows = [[escape(key), escape(value)] for key, value in flatten(values)]
    return f"<details><summary>{escape(summary)}</summary>{table(['', ''], rows, numeric_from=9)}</details>" if rows else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the leaves of a nested mapping as pairs of dotted key and text."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            pairs.append((f"{prefix}{key}", number(value, 5)))
        elif isinstance(value, list | tuple):
            pairs.append((f"{prefix}{key}", ", ".join(number(one, 5) if isinstance(one, float) else str(one) for one in value)))
        else:
            pairs.append((f"{prefix}{key}", "–" if value is None else str(value)))
    return pairs


def markdown(text: str) -> str:
    """Return the Markdown that cards use as HTML: headings, paragraphs, lists, tables, quotes, fenced code, `code`.

    Links stay text, so that nothing in the report leads out of it.
    """
    blocks: list[str] = []
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            end = next((index for index, one in enumerate(lines) if one.startswith("```")), len(lines))
            blocks.append(f"<pre><code>{escape(chr(10).join(lines[:end]))}</code></pre>")
            lines = lines[end + 1 :]
        elif heading := re.match(r"(#+) (.*)", line):
            # The report's own headings are h1 and h2.
            level = min(6, len(heading[1]) + 2)
            blocks.append(f"<h{level}>{_inline(heading[2])}</h{level}>")
        elif line.strip():
            kind = next((kind for kind in ("|", "- ", "> ") if line.startswith(kind)), "")
            group = [line]
            while lines and lines[0].strip() and not lines[0].startswith(("```", "#")) and _kind(lines[0], kind):
                group.append(lines.pop(0))
            blocks.append(_block(kind, group))
    return "\n".join(blocks)


def _kind(line: str, kind: str) -> bool:
    """Say whether a line goes on with a block of `kind`; a list's items may run over lines that are set in."""
    starts = next((one for one in ("|", "- ", "> ") if line.startswith(one)), "")
    return starts == kind or (kind == "- " and line.startswith(" "))


def _block(kind: str, group: list[str]) -> str:
    if kind == "|":
        rows = [[_inline(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in group]
        body = [row for row in rows[1:] if any(set(cell) - set("-: ") for cell in row)]
        width = len(rows[0])
        return table([html.unescape(cell) for cell in rows[0]], [(row + [""] * width)[:width] for row in body], numeric_from=99)
    if kind == "- ":
        items = "\n".join(group).removeprefix("- ").split("\n- ")
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    if kind == "> ":
        return "<blockquote>" + "<br>".join(_inline(line.removeprefix("> ")) for line in group) + "</blockquote>"
    return f"<p>{_inline(' '.join(group))}</p>"


def _inline(text: str) -> str:
    pieces = re.split(r"`([^`]+)`", text)
    return "".join(f"<code>{escape(piece)}</code>" if index % 2 else _bold(piece) for index, piece in enumerate(pieces))


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
