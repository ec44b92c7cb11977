"""The tables of a station's store, and how an older store becomes a newer one.

Rules kept here: a migration that was released is never changed; verdicts only ever come at the end. When migrations run is left
to `store`.
"""

from __future__ import annotations

from typing import Final

SPAN: Final = 1024
"""So many verdicts, in the order of their sequence, share one row of `verdict_span`: between which times they were decided.

An index over time would cost each commit a row, and could not give a page in the order of the sequence. A thousandth of the
rows is enough to find where a time lies, also where the clock was set back.
"""

# Each entry moves the schema one version on; its number is written in the same transaction.
MIGRATIONS: Final = (
    """
    CREATE TABLE station (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE verdict (
        sequence INTEGER PRIMARY KEY,
        verdict_id TEXT NOT NULL UNIQUE,
        origin TEXT UNIQUE,
        serial TEXT NOT NULL,
        decision TEXT NOT NULL,
        decided_at TEXT NOT NULL,
        message TEXT NOT NULL
    );
    CREATE INDEX verdict_by_serial ON verdict (serial);
    CREATE TABLE outbox (sequence INTEGER PRIMARY KEY REFERENCES verdict (sequence));
    CREATE TABLE evidence (
        sequence INTEGER NOT NULL REFERENCES verdict (sequence),
        sha256 TEXT NOT NULL,
        name TEXT NOT NULL,
        media_type TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        decision TEXT NOT NULL,
        stored_at TEXT NOT NULL,
        PRIMARY KEY (sequence, sha256)
    ) WITHOUT ROWID;
    CREATE INDEX evidence_by_age ON evidence (decision, sequence);
    CREATE INDEX evidence_by_name ON evidence (name);
    """,
    """
    CREATE TABLE open_trigger (
        verdict_id TEXT PRIMARY KEY,
        origin TEXT UNIQUE,
        part TEXT NOT NULL,
        triggered_at TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE late_frame (
        sequence INTEGER REFERENCES verdict (sequence),
        verdict_id TEXT,
        view TEXT NOT NULL,
        camera TEXT NOT NULL,
        frame_id TEXT NOT NULL,
        captured_at TEXT NOT NULL,
        arrived_at TEXT NOT NULL,
        detail TEXT NOT NULL,
        origin TEXT
    );
    CREATE INDEX late_frame_by_verdict ON late_frame (verdict_id);
    CREATE INDEX late_frame_by_origin ON late_frame (origin) WHERE origin IS NOT NULL;
    CREATE TABLE frame_origin (
        origin TEXT PRIMARY KEY,
        sequence INTEGER NOT NULL REFERENCES verdict (sequence)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE verdict_span (
        block INTEGER PRIMARY KEY,
        earliest TEXT NOT NULL,
        latest TEXT NOT NULL
    );
    INSERT INTO verdict_span
        SELECT (sequence - 1) / 1024, min(decided_at), max(decided_at) FROM verdict GROUP BY 1;
    CREATE TRIGGER verdict_in_span AFTER INSERT ON verdict BEGIN
        INSERT INTO verdict_span VALUES ((new.sequence - 1) / 1024, new.decided_at, new.decided_at)
        ON CONFLICT (block) DO UPDATE SET
            earliest = min(earliest, excluded.earliest), latest = max(latest, excluded.latest)
            WHERE excluded.earliest < earliest OR excluded.latest > latest;
    END;
    CREATE INDEX verdict_by_reject ON verdict (decision) WHERE decision <> 'pass';
    """,
    """
    CREATE TABLE trace (
        sequence INTEGER NOT NULL REFERENCES verdict (sequence),
        view TEXT NOT NULL,
        frame_id TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        roi TEXT NOT NULL,
        heat BLOB NOT NULL,
        thumbnail BLOB NOT NULL,
        PRIMARY KEY (sequence, view)
    ) WITHOUT ROWID;
    """,
)
