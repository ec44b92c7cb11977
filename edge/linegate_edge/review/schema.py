"""The tables of what people do: users, decisions, the audit trail; and of the index that makes parts quick to find.

Rules kept here: a migration that was released is never changed; a decision and a line of the trail are only ever added, and
triggers refuse all else; `part` and `tally` are projections of the verdicts, and may be thrown away and made again. When
migrations run is left to `database`.
"""

from __future__ import annotations

from typing import Final

TALLY_MINUTES: Final = 15
"""Parts are counted by quarters of an hour, so that shifts may begin at any of them."""

MIGRATIONS: Final = (
    """
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        actor TEXT NOT NULL,
        role TEXT NOT NULL,
        action TEXT NOT NULL,
        subject TEXT NOT NULL,
        detail TEXT NOT NULL,
        previous TEXT NOT NULL,
        digest TEXT NOT NULL
    );
    CREATE INDEX audit_by_subject ON audit (subject);
    CREATE TRIGGER audit_is_not_edited BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
    CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;

    CREATE TABLE user (
        name TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        password TEXT,
        must_change INTEGER NOT NULL DEFAULT 0,
        issuer TEXT,
        subject TEXT,
        created_at TEXT NOT NULL,
        disabled_at TEXT,
        UNIQUE (issuer, subject)
    ) WITHOUT ROWID;
    CREATE TABLE session (
        digest TEXT PRIMARY KEY,
        user TEXT NOT NULL REFERENCES user (name),
        csrf TEXT NOT NULL,
        agent TEXT NOT NULL,
        created_at TEXT NOT NULL,
        seen_at TEXT NOT NULL,
        expires_at TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX session_by_user ON session (user);
    CREATE TABLE token (
        digest TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        role TEXT NOT NULL,
        created_by TEXT NOT NULL,
        created_at TEXT NOT NULL,
        expires_at TEXT NOT NULL,
        revoked_at TEXT
    ) WITHOUT ROWID;

    CREATE TABLE decision (
        number INTEGER PRIMARY KEY,
        sequence INTEGER NOT NULL,
        verdict_id TEXT NOT NULL,
        disposition TEXT,
        defect_class TEXT,
        regions TEXT NOT NULL,
        comment TEXT NOT NULL,
        by TEXT NOT NULL,
        at TEXT NOT NULL,
        previous INTEGER REFERENCES decision (number)
    );
    CREATE INDEX decision_by_part ON decision (sequence);
    CREATE INDEX decision_by_time ON decision (at);
    CREATE TRIGGER decision_is_not_edited BEFORE UPDATE ON decision
        BEGIN SELECT RAISE(ABORT, 'decisions are only ever added'); END;
    CREATE TRIGGER decision_is_not_cut BEFORE DELETE ON decision
        BEGIN SELECT RAISE(ABORT, 'decisions are only ever added'); END;
    CREATE TABLE drawing (
        decision INTEGER NOT NULL REFERENCES decision (number),
        view TEXT NOT NULL,
        mask BLOB NOT NULL,
        PRIMARY KEY (decision, view)
    ) WITHOUT ROWID;

    CREATE TABLE part (
        sequence INTEGER PRIMARY KEY,
        verdict_id TEXT NOT NULL UNIQUE,
        serial TEXT NOT NULL,
        decision TEXT NOT NULL,
        decided_at TEXT NOT NULL,
        mode TEXT NOT NULL,
        recipe TEXT NOT NULL,
        package TEXT NOT NULL,
        package_digest TEXT NOT NULL,
        part_type TEXT,
        batch TEXT,
        supplier_lot TEXT,
        defect_class TEXT,
        reason TEXT NOT NULL,
        view TEXT,
        score REAL,
        threshold REAL,
        queued TEXT,
        disposition TEXT,
        decided_class TEXT,
        decision_number INTEGER
    );
    CREATE INDEX part_by_serial ON part (serial);
    CREATE INDEX part_by_time ON part (decided_at);
    CREATE INDEX part_by_class ON part (defect_class) WHERE defect_class IS NOT NULL;
    CREATE INDEX part_by_reject ON part (decision) WHERE decision <> 'pass';
    CREATE INDEX part_by_batch ON part (batch) WHERE batch IS NOT NULL;
    CREATE INDEX part_by_disposition ON part (disposition) WHERE disposition IS NOT NULL;
    CREATE INDEX part_waiting ON part (sequence) WHERE queued IS NOT NULL AND disposition IS NULL;
    CREATE TABLE tally (
        quarter TEXT NOT NULL,
        recipe TEXT NOT NULL,
        package TEXT NOT NULL,
        batch TEXT NOT NULL,
        supplier_lot TEXT NOT NULL,
        mode TEXT NOT NULL,
        first_pass INTEGER NOT NULL,
        decision TEXT NOT NULL,
        defect_class TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (quarter, recipe, package, batch, supplier_lot, mode, first_pass, decision, defect_class)
    ) WITHOUT ROWID;
    CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE model (
        digest TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        version TEXT NOT NULL,
        imported_by TEXT NOT NULL,
        imported_at TEXT NOT NULL,
        source TEXT NOT NULL,
        trained_by TEXT
    ) WITHOUT ROWID;
    CREATE TABLE shadow (
        number INTEGER PRIMARY KEY,
        verdict_id TEXT NOT NULL,
        serial TEXT NOT NULL,
        recipe TEXT NOT NULL,
        view TEXT NOT NULL,
        champion_digest TEXT NOT NULL,
        champion_decision TEXT NOT NULL,
        champion_score REAL,
        package_digest TEXT NOT NULL,
        decision TEXT NOT NULL,
        score REAL,
        threshold REAL,
        error TEXT,
        duration_ms REAL NOT NULL,
        at TEXT NOT NULL
    );
    CREATE INDEX shadow_by_package ON shadow (package_digest, decision, champion_decision);
    CREATE INDEX shadow_that_differs ON shadow (package_digest, number) WHERE decision <> champion_decision;
    CREATE TABLE shadow_place (
        recipe TEXT NOT NULL,
        view TEXT NOT NULL,
        package_digest TEXT NOT NULL REFERENCES model (digest),
        by TEXT NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (recipe, view)
    ) WITHOUT ROWID;
    CREATE TABLE approval (
        number INTEGER PRIMARY KEY,
        package_digest TEXT NOT NULL REFERENCES model (digest),
        by TEXT NOT NULL,
        at TEXT NOT NULL,
        comment TEXT NOT NULL,
        comparison TEXT NOT NULL,
        withdrawn_at TEXT
    );
    CREATE UNIQUE INDEX approval_once ON approval (package_digest, by) WHERE withdrawn_at IS NULL;
    CREATE TABLE promotion (
        number INTEGER PRIMARY KEY,
        recipe TEXT NOT NULL,
        view TEXT NOT NULL,
        package_digest TEXT NOT NULL,
        package TEXT NOT NULL,
        place TEXT NOT NULL,
        configured TEXT NOT NULL,
        former_digest TEXT NOT NULL,
        former_package TEXT NOT NULL,
        former_place TEXT NOT NULL,
        by TEXT NOT NULL,
        at TEXT NOT NULL,
        override_reason TEXT,
        rolls_back INTEGER UNIQUE REFERENCES promotion (number)
    );
    CREATE INDEX promotion_by_view ON promotion (recipe, view, number);
    """,
    # A rare class in a long queue: without these each part that waits is looked at.
    """
    CREATE INDEX part_waiting_by_class ON part (defect_class, sequence)
        WHERE queued IS NOT NULL AND disposition IS NULL AND defect_class IS NOT NULL;
    CREATE INDEX part_waiting_by_kind ON part (queued, sequence) WHERE queued IS NOT NULL AND disposition IS NULL;
    """,
)
