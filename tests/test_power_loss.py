"""Power lost at any moment: the store opens, what was committed is there, and the sequence has no gap.

What is promised: once `Store.commit` has returned, its transaction is in the WAL by an fsync; the first test holds the store to
that. So of its files only what a disk may lose is broken here: the WAL behind what was synced, sectors of a write under way,
pages of the database that a checkpoint was copying. A WAL is also cut further forward, among transactions of which no
checkpoint has copied anything: then exactly those before the cut are left.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from linegate.stages import Part
from linegate_edge.changes import Changes, NewVerdict, OpenTrigger
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.store import DATABASE_FILE, Store, StoreReader

TOPIC = "a/b/c/d/e"
WAL_FILE = f"{DATABASE_FILE}-wal"
MOMENT = "2026-01-01T00:00:00+00:00"
SECTOR = 512
WAL_HEADER, FRAME_HEADER = 32, 24
TRANSACTIONS = 200
SEEDS = [1, 2, 3]


@dataclass(frozen=True)
class State:
    """What a store must hold: messages by sequence from 1 on, the outbox, the journal of triggers."""

    messages: tuple[str, ...] = ()
    outbox: frozenset[int] = frozenset()
    triggers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Files:
    """The bytes of database and WAL."""

    database: bytes
    wal: bytes

    @property
    def generation(self) -> bytes:
        """The salts of the WAL, which change when it begins anew."""
        return self.wal[16:24]

    @property
    def end(self) -> int:
        """Where in the WAL the last transaction of this generation ends; what lies behind is of an older one."""
        if len(self.wal) < WAL_HEADER:
            return 0
        frame = FRAME_HEADER + struct.unpack(">I", self.wal[8:12])[0]
        end = WAL_HEADER
        for at in range(WAL_HEADER, len(self.wal) - frame + 1, frame):
            _, size_after_commit, *salts = struct.unpack(">II4s4s", self.wal[at : at + 16])
            if b"".join(salts) != self.generation:
                break
            if size_after_commit:
                end = at + frame
        return end


@dataclass(frozen=True)
class Step:
    """One transaction: files and state on either side of it, and the transactions that a cut of the WAL can take away.

    `cuts` are the ends of transactions in the WAL with the state after each; the first is where a cut may begin.
    """

    before: Files
    after: Files
    state_before: State
    state_after: State
    cuts: tuple[tuple[int, State], ...] = field(repr=False)


def read_files(folder: Path) -> Files:
    wal = folder / WAL_FILE
    return Files((folder / DATABASE_FILE).read_bytes(), wal.read_bytes() if wal.exists() else b"")


def run_store(folder: Path, rng: random.Random) -> Iterator[Step]:
    """Commit random transactions to a real store and yield each as soon as its commit has returned."""
    store = Store(folder, TOPIC)
    state, files = State(), read_files(folder)
    cuts = [(files.end, state)]
    for number in range(TRANSACTIONS):
        changes, wanted = transaction(rng, number, state)
        store.commit(changes)
        after = read_files(folder)
        if after.generation != files.generation:
            cuts = [(0, state)]
        cuts.append((after.end, wanted))
        if after.database != files.database:  # a checkpoint: a WAL that it has copied from is no longer cut
            cuts = cuts[-1:]
        yield Step(files, after, state, wanted, tuple(cuts))
        state, files = wanted, after
    store.close()


def new_verdict(verdict_id: str, text: str, *, journalled: bool = False) -> NewVerdict:
    return NewVerdict(verdict_id, "serial", "pass", MOMENT, lambda _: text, journalled=journalled)


def transaction(rng: random.Random, number: int, state: State) -> tuple[Changes, State]:
    texts = [f"{number}:{index}:" + "x" * rng.randrange(100, 12_000) for index in range(rng.randrange(1, 6))]
    first = len(state.messages) + 1
    acknowledged = {sequence for sequence in state.outbox if rng.random() < 0.3}
    done = {trigger for trigger in state.triggers if rng.random() < 0.5}
    verdicts = [new_verdict(f"id-{first + index}", text) for index, text in enumerate(texts)]
    for trigger in sorted(done):
        texts.append(f"verdict of {trigger}")
        verdicts.append(new_verdict(trigger, texts[-1], journalled=True))
    opened = OpenTrigger(f"trigger-{number}", f"plc:{number}", Part("serial", "plc"), MOMENT)
    fresh = set(range(first, first + len(texts)))
    wanted = State(
        state.messages + tuple(texts),
        (state.outbox - acknowledged) | fresh,
        (state.triggers - done) | {opened.verdict_id},
    )
    return Changes(verdicts, opened=[opened], acknowledged=sorted(acknowledged)), wanted


def reopen(folder: Path, files: Files) -> State:
    """Start a station's store on what power loss has left, use it, and return what it held."""
    folder.mkdir()
    (folder / DATABASE_FILE).write_bytes(files.database)
    (folder / WAL_FILE).write_bytes(files.wal)
    store = Store(folder, TOPIC)
    reader = StoreReader(store.path)
    rows = everything(store.path)
    assert [sequence for sequence, _ in rows] == list(range(1, len(rows) + 1)), "the sequence has a gap"
    outbox = frozenset(sequence for sequence, _ in reader.outbox_after(0, 10**6))
    held = State(tuple(text for _, text in rows), outbox, frozenset(left.verdict_id for left in store.open_triggers()))
    (following,) = store.commit(Changes([new_verdict("next", "{}")]))
    assert following.sequence == store.last_sequence == len(rows) + 1
    reader.close()
    store.close()
    return held


def everything(path: Path) -> list[tuple[int, str]]:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    assert list(db.execute("PRAGMA integrity_check")) == [("ok",)]
    rows = list(db.execute("SELECT sequence, message FROM verdict ORDER BY sequence"))
    db.close()
    return rows


def torn(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """Return a file of whose sectors some have been written anew, and of those that grew some not at all."""
    old = old.ljust(len(new), b"\0")
    return b"".join(rng.choice((old, new))[at : at + SECTOR] for at in range(0, len(new), SECTOR))


class Disk(apsw.VFS):
    """SQLite's own way to the disk, which also notes what is written and synced, as (file, write or sync, offset)."""

    def __init__(self) -> None:
        self.below = apsw.vfs_names()[0]  # the platform's, while this one is not the default yet
        super().__init__("noting", self.below, makedefault=True)
        self.done: list[tuple[str, str, int]] = []

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return DiskFile(self, name, flags)


class DiskFile(apsw.VFSFile):
    """One open file of a `Disk`."""

    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(disk.below, name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        self._name, self._done = Path(path).name, disk.done

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._done.append((self._name, "write", offset))
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._done.append((self._name, "sync", -1))
        super().xSync(flags)


@pytest.fixture
def disk() -> Iterator[Disk]:
    """What SQLite does to the disk, for as long as a test runs."""
    disk = Disk()
    yield disk
    disk.unregister()


def test_a_commit_returns_only_after_its_fsync(tmp_path: Path, disk: Disk) -> None:
    copied = 0
    for step in run_store(tmp_path, random.Random(0)):
        done = [entry for entry in disk.done if entry[0] in (WAL_FILE, DATABASE_FILE)]
        disk.done.clear()
        wal = [what for name, what, _ in done if name == WAL_FILE]
        assert "write" in wal
        assert wal[-1] == "sync", "the transaction was not on the disk yet"
        if step.before.database != step.after.database:
            copied += 1
            # The WAL is overwritten from its beginning next: what a checkpoint copied must be on the disk by then.
            first_copied = next(index for index, entry in enumerate(done) if entry[:2] == (DATABASE_FILE, "write"))
            assert (WAL_FILE, "sync", -1) in done[:first_copied]
            assert done[-1] == (DATABASE_FILE, "sync", -1)
    assert copied > 1


def test_only_the_index_of_parts_leaves_out_the_fsync_and_the_next_decision_makes_up_for_it(tmp_path: Path, disk: Disk) -> None:
    database = ReviewDatabase(tmp_path)
    wal_file = f"{database.path.name}-wal"

    def done_by(*, durable: bool) -> list[str]:
        disk.done.clear()
        with database.change(durable=durable) as db:
            db.execute("INSERT INTO state VALUES (hex(randomblob(16)), '')")
        return [what for name, what, _ in disk.done if name == wal_file]

    done_by(durable=True)
    for durable in (False, True, False, True):
        done = done_by(durable=durable)
        assert "write" in done
        # An fsync is of the whole file, so it covers what was written before without one.
        assert (done[-1] == "sync") == durable
        assert ("sync" in done) == durable
    database.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_wal_keeps_exactly_what_was_committed_before_the_cut(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    generations, kept = set(), []
    for number, step in enumerate(run_store(tmp_path / "store", rng)):
        generations.add(step.after.generation)
        if rng.random() > 0.15 and len(step.cuts) > 1:
            continue
        wal = step.after.wal
        # Before, at and after the end of a transaction, where a mistake by one byte would show, or anywhere.
        near = rng.choice(step.cuts)[0] + rng.choice((-1, 0, 1))
        cut = min(max(rng.choice((near, rng.randrange(len(wal) + 1))), step.cuts[0][0]), len(wal))
        behind = rng.choice((b"", bytes(len(wal) - cut), rng.randbytes(len(wal) - cut)))
        held = reopen(tmp_path / f"cut-{number}", Files(step.after.database, wal[:cut] + behind))
        wanted = [state for end, state in step.cuts if end <= cut][-1]
        assert held == wanted, f"cut at {cut} of {step.after.end}"
        kept.append(wanted is not step.state_after)
    assert len(generations) > 2, "no checkpoint came between: the test would have shown less than it says"
    assert any(kept)
    assert not all(kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_write_under_way_happens_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = 0
    began_anew = 0
    for number, step in enumerate(run_store(tmp_path / "store", rng)):
        fresh = step.before.generation != step.after.generation
        if (rng.random() > 0.2 and not fresh) or step.before.database != step.after.database:
            continue
        began_anew += fresh
        wal = torn(step.before.wal, step.after.wal, rng)
        if rng.random() < 0.3:
            wal = step.after.wal  # all of it was written, only the fsync had not come back
        held = reopen(tmp_path / f"torn-{number}", Files(step.after.database, wal))
        assert held in (step.state_before, step.state_after)
        whole += held == step.state_after
    assert began_anew > 1, "the WAL never began anew"
    assert whole > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_checkpoint_that_was_cut_off_loses_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    checkpoints = 0
    for number, step in enumerate(run_store(tmp_path / "store", rng)):
        if step.before.database == step.after.database:
            continue
        checkpoints += 1
        for attempt in range(3):
            database = torn(step.before.database, step.after.database, rng)
            cut_off = database[: rng.randrange(len(step.before.database), len(database) + 1)]
            assert reopen(tmp_path / f"part-{number}-{attempt}", Files(cut_off, step.after.wal)) == step.state_after
    assert checkpoints > 1


def test_a_damaged_sector_of_the_wal_takes_no_transaction_before_it(tmp_path: Path) -> None:
    rng = random.Random(0)
    steps = [step for step in run_store(tmp_path / "store", rng) if len(step.cuts) > 5][::15]
    assert len(steps) > 3
    for number, step in enumerate(steps):
        at = rng.randrange(WAL_HEADER, step.after.end)
        wal = bytearray(step.after.wal)
        wal[at] ^= 1 << rng.randrange(8)
        held = reopen(tmp_path / f"flip-{number}", Files(step.after.database, bytes(wal)))
        assert held == [state for end, state in step.cuts if end <= at][-1]
