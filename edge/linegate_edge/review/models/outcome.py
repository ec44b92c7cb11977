"""What a comparison of a candidate with the champion came to, as far as a promotion asks.

Rules kept here: a comparison speaks of one candidate and one champion, by digest; one that says nothing clear is no "go".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from linegate.errors import PackageError
from linegate_edge.review.models.contents import COMPARISON_FILE


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the gate said go, why, and which champion the candidate was measured beside."""

    go: bool
    reasons: tuple[str, ...]
    champion_digest: str | None


def read_outcome(raw: bytes, digest: str) -> Outcome:
    """Return the outcome in the bytes of a `comparison.json` that must speak of the package of `digest`.

    Raises:
        PackageError: it is no comparison, or one of another package.
    """
    try:
        values = json.loads(raw)
        candidate, champion, gate = _object(values, "candidate"), _object(values, "champion"), _object(values, "gate")
    except (ValueError, TypeError, KeyError) as error:
        raise PackageError(f"{COMPARISON_FILE} is no comparison that this Linegate reads: {error}") from error
    if candidate.get("digest") != digest:
        text = f"speaks of package {str(candidate.get('digest'))[:12]}, not of {digest[:12]}: bring each with its own"
        raise PackageError(f"{COMPARISON_FILE} {text}")
    champion_digest = champion.get("digest")
    return Outcome(
        gate.get("verdict") == "go",
        tuple(str(reason) for reason in gate.get("reasons", ())),
        champion_digest if isinstance(champion_digest, str) else None,
    )


def _object(values: Any, key: str) -> dict[str, Any]:
    found = values[key]
    if not isinstance(found, dict):
        raise TypeError(f"'{key}' is no object")
    return found
