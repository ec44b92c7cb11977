"""The disk under a store: is it of a kind that keeps what was written, how fast, and how much room is there?

Rules kept here: what is measured is measured where the store lies, or will lie, and leaves nothing behind.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from linegate.errors import StoreError
from linegate_edge.findings import Finding, fail, ok, warn
from linegate_edge.settings import EvidenceSection
from linegate_edge.store import DATABASE_FILE, StoreReader

_FSYNCS: Final = 20
_SLOW_FSYNC_MS: Final = 20.0
_VERDICT_ROOM_MIB: Final = 256
_CLOCK_SLACK_S: Final = 5.0
_IN_MEMORY: Final = {"tmpfs", "ramfs"}
_ON_NETWORK: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs"}
_WITHOUT_JOURNAL: Final = {"vfat", "msdos", "exfat", "ext2", "overlay"}


def disk_findings(folder: Path, evidence: EvidenceSection) -> Iterator[Finding]:
    """Yield what was found of a store's folder and the disk under it."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        verb = "written to" if existing == folder else f"made: {existing} is no folder that may be written to"
        yield fail("store", f"{folder} cannot be {verb}", f"give user {_user()} a folder that it may write to: [station] store")
        return
    yield ok("store", f"{folder} {'may be written to' if existing == folder else 'can be made'}")
    yield judge_filesystem(filesystem_of(existing, Path("/proc/self/mountinfo").read_text()))
    room = os.statvfs(existing)
    yield judge_room(room.f_bavail * room.f_frsize / 2**20, room.f_favail, room.f_files, evidence.min_free_mib)
    yield judge_fsync(measure_fsync_ms(existing))
    if (folder / DATABASE_FILE).exists():
        yield _judge_store(folder / DATABASE_FILE)


def judge_filesystem(kind: str) -> Finding:
    """Judge the kind of file system under the store."""
    if kind in _IN_MEMORY:
        return fail("disk", f"{kind} lies in memory: verdicts do not outlive a restart", "put [station] store on a disk")
    if kind in _ON_NETWORK:
        return fail(
            "disk", f"{kind} is a network file system, on which SQLite's WAL does not work", "put [station] store on a disk"
        )
    if kind in _WITHOUT_JOURNAL:
        mend = "mount a volume there" if kind == "overlay" else "take ext4, xfs or btrfs"
        return warn("disk", f"{kind} may lose files at a power cut or with the container", mend)
    return ok("disk", f"file system {kind}")


def judge_room(free_mib: float, free_files: int, files: int, min_free_mib: int) -> Finding:
    """Judge the free space, against what evidence leaves to verdicts."""
    what = f"{free_mib / 1024:.1f} GiB free"
    if free_mib < _VERDICT_ROOM_MIB:
        return fail("disk", what, "make room: the line stops when verdicts cannot be stored")
    if free_mib < min_free_mib:
        return warn("disk", what, f"make room: no evidence is kept below [evidence] min_free_mib = {min_free_mib}")
    if files > 0 and free_files < 10_000:
        return warn("disk", f"{what}, but room for {free_files} files only", "make room: each picture of evidence is a file")
    return ok("disk", what)


def judge_fsync(milliseconds: float) -> Finding:
    """Judge how long a durable write takes; each commit waits for one."""
    what = f"a durable write takes {milliseconds:.1f} ms"
    if milliseconds > _SLOW_FSYNC_MS:
        return warn("disk", what, "take an SSD with power-loss protection: every part waits for such a write")
    return ok("disk", what)


def judge_last_verdict(decided_at: datetime | None, now: datetime) -> Finding:
    """Judge the clock by the time of the last verdict in the store, which cannot lie in the future."""
    if decided_at is None:
        return ok("store", "holds no verdict yet")
    ahead_s = (decided_at - now).total_seconds()
    if ahead_s > _CLOCK_SLACK_S:
        mend = "set the clock: new verdicts would seem older than those before"
        return warn("clock", f"the last verdict lies {ahead_s:.0f} s in the future, so the clock was set back", mend)
    return ok("store", f"last verdict at {decided_at.isoformat(timespec='seconds').replace('+00:00', 'Z')}")


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Return the kind of file system on which a path lies, from the text of proc(5)'s mountinfo."""
    place, best, kind = path.resolve(), -1, "unknown"
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        mounted_on = Path(fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # The last line of several for one place is the one on top.
        if place.is_relative_to(mounted_on) and len(mounted_on.parts) >= best:
            best, kind = len(mounted_on.parts), fields[fields.index("-") + 1]
    return kind


def measure_fsync_ms(folder: Path) -> float:
    """Return the median time of a 4 KiB write with fdatasync, in milliseconds; the file is gone afterwards."""
    durations = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_FSYNCS):
            started = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            durations.append((time.perf_counter() - started) * 1e3)
    return statistics.median(durations)


def _judge_store(path: Path) -> Finding:
    try:
        reader = StoreReader(path)
        try:
            last = reader.last_decided_at()
        finally:
            reader.close()
    except StoreError as error:
        return fail("store", str(error), "restore it from a backup, or move it away: a new one is made at the next start")
    return judge_last_verdict(None if last is None else datetime.fromisoformat(last), datetime.now(UTC))


def _user() -> str:
    return f"{os.geteuid()}"
